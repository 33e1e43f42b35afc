"""What the page shows of the models: lineage, Pass@K heat map, score tables."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.evaluation.scores import MATH_UNION, Score
from nemo_vibethinker.report import charts, lineage, svg
from nemo_vibethinker.spectrum.pass_at_k import Estimate
from nemo_vibethinker.spectrum.selection import ProbeTable, select_specialists

SFT_LAST, FUSED, EXPORTED = "sft_last", "fused", "hf"


def percent(value: float) -> str:
    """A share as percent with one decimal, without the sign: 0.4125 -> "41.2"."""
    return f"{100 * value:.1f}"


def format_estimate(estimate: Estimate) -> str:
    """Value and interval in percent."""
    return f"{percent(estimate.mean)} [{percent(estimate.low)}, {percent(estimate.high)}]"


def signal_stages(config: Config) -> list[str]:
    """The run's reinforcement-learning stages in order, under their full names."""
    return [stage for stage in config.stages if stage.startswith("mgpo.")]


def stage_colour(stages: Sequence[str], name: str) -> str:
    """The colour that stands for a reinforcement-learning stage everywhere in the page (Matplotlib side)."""
    return svg.SERIES[stages.index(name) % len(svg.SERIES)]


@dataclass(frozen=True)
class ScoreBoard:
    """Scores by model and domain; models and domains in the order of the file, which is the pipeline's."""

    scores: Sequence[Score]

    @property
    def models(self) -> list[str]:
        return list(dict.fromkeys(score.model for score in self.scores))

    @property
    def domains(self) -> list[str]:
        return list(dict.fromkeys(score.domain for score in self.scores))

    @property
    def ks(self) -> list[int]:
        return sorted({k for score in self.scores for k in score.pass_at})

    def score(self, model: str, domain: str) -> Score | None:
        """The score of one model on one domain, None if it was not measured."""
        return next((score for score in self.scores if (score.model, score.domain) == (model, domain)), None)

    def estimate(self, model: str, domain: str, k: int = 1) -> Estimate | None:
        """Pass@k of one model on one domain, None if it was not measured."""
        score = self.score(model, domain)
        return score.pass_at.get(k) if score else None


def final_model(board: ScoreBoard, stages: Sequence[str]) -> str | None:
    """The model furthest down the pipeline that has scores."""
    order = [SFT_LAST, FUSED, *stages]
    return next((name for name in reversed(order) if name in board.models), None)


def gains_view(board: ScoreBoard, stages: Sequence[str]) -> dict[str, Any] | None:
    """Table of the way from the last SFT checkpoint over fusion to the final model; None without scores."""
    final = final_model(board, stages)
    if final is None:
        return None
    path = [name for name in dict.fromkeys((SFT_LAST, FUSED, final)) if name in board.models]
    head = ["pass@1, %", *path, *(f"{after} - {before}" for before, after in itertools.pairwise(path))]
    rows = []
    for domain in (MATH_UNION, CODE_DOMAIN):
        estimates = [board.estimate(model, domain) for model in path]
        if any(estimates):
            rows.append([domain, *map(_estimate_or_dash, estimates), *_differences(estimates)])
    return {"head": head, "rows": rows}


def _differences(estimates: Sequence[Estimate | None]) -> list[str]:
    pairs = itertools.pairwise(estimates)
    return [f"{100 * (b.mean - a.mean):+.1f}" if a and b else "-" for a, b in pairs]


def _estimate_or_dash(estimate: Estimate | None) -> str:
    return format_estimate(estimate) if estimate else "-"


def probe_view(table: ProbeTable, select_k: int) -> dict[str, Any]:
    """The heat map at the K of the selection, and plain tables at the others."""
    chosen = select_specialists(table, select_k)
    caption = (
        f"Percent of the probing problems solved by at least one of {select_k} responses, with the 95% bootstrap "
        "interval over problems. Stronger colour is higher, scaled per column. The star marks the checkpoint chosen as "
        "the domain's specialist: look whether the domains peak at different steps, and whether the intervals of "
        "neighbouring checkpoints overlap."
    )
    heat = {"k": select_k, "caption": caption, "rows": _heat_rows(table, select_k, chosen)}
    others = [_probe_table(table, k) for k in table.ks if k != select_k]
    return {"domains": table.domains, "maps": [heat], "others": others}


def _heat_rows(table: ProbeTable, k: int, chosen: Mapping[str, int]) -> list[dict[str, Any]]:
    columns = {domain: [table.cells[domain][step][k].mean for step in table.steps] for domain in table.domains}
    return [
        {
            "step": step,
            "cells": [
                {
                    "estimate": table.cells[domain][step][k],
                    "chosen": chosen[domain] == step,
                    "shade": _shade(table.cells[domain][step][k].mean, columns[domain]),
                }
                for domain in table.domains
            ],
        }
        for step in table.steps
    ]


def _shade(value: float, column: Sequence[float]) -> float:
    low, high = min(column), max(column)
    return (value - low) / (high - low) if high > low else 0.5


def _probe_table(table: ProbeTable, k: int) -> dict[str, Any]:
    rows = [
        [str(step), *(format_estimate(table.cells[domain][step][k]) for domain in table.domains)]
        for step in table.steps
    ]
    return {"head": ["SFT step", *table.domains], "rows": rows, "caption": f"Pass@{k}, percent"}


def scores_view(board: ScoreBoard, stages: Sequence[str]) -> dict[str, Any]:
    """Chart of pass@1, one table per k, and the notes a reader needs to judge the numbers."""
    colours = {name: stage_colour(stages, name) for name in stages} | {FUSED: svg.INK}
    columns = {
        domain: {model: estimate for model in board.models if (estimate := board.estimate(model, domain))}
        for domain in board.domains
    }
    css = {model: svg.variable_name(colours.get(model, svg.MUTED)) for model in board.models}
    return {
        "chart": charts.score_chart(board.models, columns, colours),
        "caption": "Dot: mean over problems; line: 95% bootstrap interval over problems. Top to bottom is the order of "
        "the pipeline. Look for a dot outside the interval of the row above it.",
        "tables": [_score_table(board, k, css) for k in board.ks],
        "notes": _score_notes(board),
    }


def _score_table(board: ScoreBoard, k: int, css: Mapping[str, str]) -> dict[str, Any]:
    first = k == board.ks[0]
    rows = [
        {
            "model": model,
            "colour": css[model],
            "estimates": [board.estimate(model, domain, k) for domain in board.domains],
            "plain": _plain_columns(board, model) if first else [],
        }
        for model in board.models
    ]
    plain_head = ["tokens", "truncated, %", "ungraded"] if first else []
    caption = f"pass@{k}, percent, with 95% bootstrap intervals over problems."
    return {"head": ["model", *board.domains, *plain_head], "rows": rows, "caption": caption}


def _plain_columns(board: ScoreBoard, model: str) -> list[str]:
    unions = [score for domain in (MATH_UNION, CODE_DOMAIN) if (score := board.score(model, domain))]
    counts = [score.num_problems * score.samples_per_problem for score in unions]
    if not sum(counts):
        return ["-", "-", "-"]
    tokens = sum(n * score.mean_tokens for n, score in zip(counts, unions, strict=True)) / sum(counts)
    truncated = sum(n * score.truncated_share for n, score in zip(counts, unions, strict=True)) / sum(counts)
    return [f"{tokens:.0f}", percent(truncated), str(sum(score.num_ungraded for score in unions))]


def _score_notes(board: ScoreBoard) -> list[str]:
    sizes = {
        score.domain: f"{score.domain} {score.num_problems} x {score.samples_per_problem}" for score in board.scores
    }
    notes = [f"Problems x responses: {', '.join(sizes.values())}. {MATH_UNION} is the union of the maths domains."]
    notes += [
        f"{score.model}, {score.domain}: pass@{k} leaves out {count} problems with fewer than {k} graded responses."
        for score in board.scores
        for k, count in score.left_out.items()
        if count
    ]
    return notes


def lineage_view(
    config: Config, done: set[str], table: ProbeTable | None, board: ScoreBoard
) -> tuple[lineage.Graph, str]:
    """The graph of the run's models and its caption. `done` holds the stages that have a manifest."""
    stages = signal_stages(config)
    sft, specialists = _spectrum_models(config, done, table, board)
    parents = tuple(model.name for model in specialists) or tuple(model.name for model in sft[-1:])
    fused = [_model(FUSED, board, parents, "ink", "fuse" in done)] if "fuse" in config.stages else []
    previous = fused[0].name if fused else (sft[-1].name if sft else "")
    header = (
        f"SFT: {len(sft)} of {len(table.steps)} steps" if table and len(sft) < len(table.steps) else "SFT checkpoints"
    )
    columns = {header: sft, "Specialists": specialists, "Fusion": fused}
    if not sft and config.run.from_run:
        previous = "earlier run"
        columns["Start"] = [lineage.Model(previous, note=config.run.from_run)]
    for name in stages:
        colour = svg.variable_name(stage_colour(stages, name))
        columns[f"Stage {name.removeprefix('mgpo.')}"] = [_model(name, board, (previous,), colour, name in done)]
        previous = name
    if "export" in config.stages:
        columns["Export"] = [
            lineage.Model(EXPORTED, ("Hugging Face",), (previous,), "exported model", "ink", "export" in done)
        ]
    return lineage.lay_out(columns), _lineage_caption(config, board, table)


def _spectrum_models(
    config: Config, done: set[str], table: ProbeTable | None, board: ScoreBoard
) -> tuple[list[lineage.Model], list[lineage.Model]]:
    if "sft" not in config.stages:
        return [], []
    last = _model(SFT_LAST, board, (), "muted", "sft" in done)
    if table is None:
        return [last], []
    k = config.probe.select_k
    chosen = select_specialists(table, k)
    shown = lineage.shown_checkpoints(table.steps, list(chosen.values()))
    last_step = table.steps[-1]
    checkpoints = [lineage.Model(f"step {step}") for step in shown if step != last_step] + [
        lineage.Model(SFT_LAST, (f"step {last_step}", *last.lines), (), last.note, "muted", last.done)
    ]
    specialists = []
    for index, (domain, step) in enumerate(chosen.items()):
        parent = SFT_LAST if step == last_step else f"step {step}"
        lines = (f"step {step}", f"Pass@{k} {percent(table.cells[domain][step][k].mean)}")
        note = f"Pass@{k} on {domain}: {format_estimate(table.cells[domain][step][k])}"
        colour = f"series-{(index + 3) % len(svg.SERIES)}"
        specialists.append(lineage.Model(domain, lines, (parent,), note, colour))
    return checkpoints, specialists


def _model(name: str, board: ScoreBoard, parents: tuple[str, ...], colour: str, done: bool) -> lineage.Model:
    estimates = {domain: board.estimate(name, domain) for domain in (MATH_UNION, CODE_DOMAIN)}
    lines = tuple(f"{domain} {percent(estimate.mean)}" for domain, estimate in estimates.items() if estimate)
    note = "; ".join(f"{domain} pass@1 {format_estimate(value)}" for domain, value in estimates.items() if value)
    return lineage.Model(name, lines if done else ("not finished",), parents, note, colour, done)


def _lineage_caption(config: Config, board: ScoreBoard, table: ProbeTable | None) -> str:
    text = "Left to right: every model of the run and what it was made from."
    if board.scores:
        text += " Numbers are pass@1 in percent; intervals are in the score table and under the pointer."
    if table is not None and "fuse" in config.stages:
        uniform = {domain: 1 / len(table.domains) for domain in table.domains}
        weights = config.fuse.weights or uniform
        text += f" Fusion weights: {', '.join(f'{domain} {weight:.3g}' for domain, weight in weights.items())}."
        if len(set(select_specialists(table, config.probe.select_k).values())) < len(table.domains):
            text += " A checkpoint chosen by two domains counts twice."
    return text + " Dashed: not finished in this run."
