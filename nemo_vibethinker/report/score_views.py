"""What the page shows of the scores: the way from SFT to the final model, a chart for each domain, and the tables."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_vibethinker.config import CODE_DOMAIN, Config
from nemo_vibethinker.evaluation.scores import MATH_UNION, Score
from nemo_vibethinker.report import vega
from nemo_vibethinker.report.gather import FUSED, SFT_LAST
from nemo_vibethinker.report.numbers import format_estimate, percent
from nemo_vibethinker.report.vega import Chart, Row
from nemo_vibethinker.spectrum.pass_at_k import Estimate


def signal_stages(config: Config) -> list[str]:
    """The run's reinforcement-learning stages in order, under their full names."""
    return [stage for stage in config.stages if stage.startswith("mgpo.")]


def stage_colours(stages: Sequence[str]) -> dict[str, str]:
    """The CSS variable that stands for a reinforcement-learning stage everywhere in the page."""
    return {name: vega.SERIES[index % len(vega.SERIES)] for index, name in enumerate(stages)}


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

    @property
    def unions(self) -> list[str]:
        """The domains that stand for the whole: mathematics and code, where they were measured; else the first two."""
        known = [domain for domain in (MATH_UNION, CODE_DOMAIN) if domain in self.domains]
        return known or self.domains[:2]


def final_model(board: ScoreBoard, stages: Sequence[str]) -> str | None:
    """The model furthest down the pipeline that has scores."""
    order = [SFT_LAST, FUSED, *stages]
    return next((name for name in reversed(order) if name in board.models), next(iter(board.models[-1:]), None))


def gains_view(board: ScoreBoard, stages: Sequence[str]) -> dict[str, Any] | None:
    """Table of the way from the last SFT checkpoint over fusion to the final model; None without scores."""
    final = final_model(board, stages)
    if final is None:
        return None
    path = [name for name in dict.fromkeys((SFT_LAST, FUSED, final)) if name in board.models]
    head = ["pass@1, %", *path, *(f"{after} \N{MINUS SIGN} {before}" for before, after in itertools.pairwise(path))]
    rows = []
    for domain in board.unions:
        estimates = [board.estimate(model, domain) for model in path]
        rows.append([domain, *map(format_estimate, estimates), *_differences(estimates)])
    return {"head": head, "rows": rows}


def _differences(estimates: Sequence[Estimate | None]) -> list[str]:
    pairs = itertools.pairwise(estimates)
    return [f"{100 * (b.mean - a.mean):+.1f}" if a and b else "-" for a, b in pairs]


def model_colours(board: ScoreBoard, stages: Sequence[str]) -> dict[str, str]:
    """CSS variable of each model: that of its stage, ink for the fused one, muted for the others."""
    known = stage_colours(stages) | {FUSED: vega.INK}
    return {model: known.get(model, vega.MUTED) for model in board.models}


def score_charts(board: ScoreBoard, stages: Sequence[str]) -> list[Chart]:
    """pass@1 of every model, a chart for each domain, all on the same scale."""
    highest = max((s.pass_at[1].high for s in board.scores if 1 in s.pass_at), default=1.0)
    colours = model_colours(board, stages)
    charts = []
    for index, domain in enumerate(board.domains):
        rows = [
            {"model": model, "v": round(100 * e.mean, 2), "low": round(100 * e.low, 2), "high": round(100 * e.high, 2)}
            for model in board.models
            if (e := board.estimate(model, domain))
        ]
        if rows:
            charts.append(interval_chart(f"score-{index}", domain, rows, colours, 100 * highest))
    return charts


def interval_chart(name: str, title: str, rows: Sequence[Row], colours: Mapping[str, str], highest: float) -> Chart:
    """A dot and its interval per model: rows of `model`, `v`, `low`, `high`, in percent."""
    domain = {"domain": [min(0, *(row["low"] for row in rows)), highest]}
    x = vega.number("v", "pass@1, %", scale=domain, axis={"grid": True, "tickCount": 5})
    names = {"labelColor": vega.colour(vega.INK), "grid": False, "labelLimit": 150}
    y = vega.category("model", scale={"domain": list(colours)}) | {"axis": names}
    paint = vega.colours("model", colours)
    tips = [vega.tip("model", "model"), vega.tip("v", "pass@1, %", ".1f")]
    tips += [vega.tip("low", "from", ".1f"), vega.tip("high", "to", ".1f")]
    bar = {"type": "rule", "strokeWidth": 3, "opacity": 0.45, "strokeCap": "round"}
    dot = {"type": "point", "filled": True, "size": 55, "opacity": 1}
    spec = vega.layers(
        vega.layer(rows, bar, x=x | {"field": "low"}, x2={"field": "high"}, y=y, color=paint, tooltip=tips),
        vega.layer(rows, dot, x=x, y=y, color=paint, tooltip=tips),
        height=21 * len(colours),
    )
    text = f"pass@1 on {title}: " + ", ".join(f"{row['model']} {row['v']:.1f}" for row in rows)
    return Chart(name=name, title=title, description=text, spec=spec)


def score_tables(board: ScoreBoard, stages: Sequence[str]) -> list[dict[str, Any]]:
    """One table per k; the first also holds lengths, truncation and ungraded samples."""
    colours = model_colours(board, stages)
    return [_score_table(board, k, colours) for k in board.ks]


def _score_table(board: ScoreBoard, k: int, colours: Mapping[str, str]) -> dict[str, Any]:
    first = k == board.ks[0]
    rows = [
        {
            "model": model,
            "colour": colours[model],
            "estimates": [board.estimate(model, domain, k) for domain in board.domains],
            "plain": _plain_columns(board, model) if first else [],
        }
        for model in board.models
    ]
    plain_head = ["tokens", "truncated, %", "ungraded"] if first else []
    caption = f"pass@{k}, percent, with 95% bootstrap intervals over problems."
    return {"head": ["model", *board.domains, *plain_head], "rows": rows, "caption": caption}


def _plain_columns(board: ScoreBoard, model: str) -> list[str]:
    unions = [score for domain in board.unions if (score := board.score(model, domain))]
    counts = [score.num_problems * score.samples_per_problem for score in unions]
    if not sum(counts):
        return ["-", "-", "-"]
    tokens = sum(n * score.mean_tokens for n, score in zip(counts, unions, strict=True)) / sum(counts)
    truncated = sum(n * score.truncated_share for n, score in zip(counts, unions, strict=True)) / sum(counts)
    return [f"{tokens:,.0f}", percent(truncated), f"{sum(score.num_ungraded for score in unions):,}"]


def score_notes(board: ScoreBoard) -> list[str]:
    """What a reader needs to judge the numbers."""
    sizes = {
        score.domain: f"{score.domain} {score.num_problems:,} x {score.samples_per_problem}" for score in board.scores
    }
    union = f" {MATH_UNION} is the union of the maths domains." if MATH_UNION in board.domains else ""
    notes = [f"Problems x responses: {', '.join(sizes.values())}.{union}"]
    notes += [
        f"{score.model}, {score.domain}: pass@{k} leaves out {count} problems with fewer than {k} graded responses."
        for score in board.scores
        for k, count in score.left_out.items()
        if count
    ]
    return notes
