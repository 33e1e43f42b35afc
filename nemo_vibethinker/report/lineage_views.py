"""The models of a run as the lineage graph shows them: base, checkpoints, specialists, fusion, stages, export."""

from collections.abc import Sequence
from pathlib import Path

from nemo_vibethinker.config import Config
from nemo_vibethinker.report import vega
from nemo_vibethinker.report.gather import FUSED, SFT_LAST
from nemo_vibethinker.report.lineage import Model, graph_chart, lay_out, shown_checkpoints
from nemo_vibethinker.report.numbers import format_estimate, percent
from nemo_vibethinker.report.score_views import ScoreBoard, signal_stages, stage_colours
from nemo_vibethinker.report.vega import Chart
from nemo_vibethinker.spectrum.selection import ProbeTable, select_specialists

_EARLIER, _EXPORTED = "earlier run", "hf"


def lineage_chart(config: Config, done: set[str], table: ProbeTable | None, board: ScoreBoard) -> Chart | None:
    """The graph of the run's models; None if it makes none. `done` holds the stages that have a manifest."""
    stages = signal_stages(config)
    base = _base(config)
    sft, specialists = _spectrum_models(config, done, table, board)
    parents = tuple(model.name for model in specialists) or tuple(model.name for model in sft[-1:])
    fused = [_model(FUSED, board, parents, vega.INK, "fuse" in done)] if "fuse" in config.stages else []
    previous = fused[0].name if fused else (sft[-1].name if sft else base.name)
    some = table is not None and len(sft) < len(table.steps)
    header = f"{len(sft)} of {len(table.steps)} checkpoints" if table and some else "SFT checkpoints"
    columns = {"Start": [base], header: sft, "Specialists": specialists, "Merge": fused}
    for name, colour in stage_colours(stages).items():
        columns[f"RL: {name.removeprefix('mgpo.')}"] = [_model(name, board, (previous,), colour, name in done)]
        previous = name
    if "export" in config.stages:
        note = "the last model, proven equal under transformers"
        columns["Export"] = [Model(_EXPORTED, ("Hugging Face",), (previous,), note, vega.INK, "export" in done)]
    graph = lay_out(columns)
    return graph_chart(graph, _caption(config, board, table)) if len(graph.boxes) > 1 else None


def _base(config: Config) -> Model:
    if config.run.from_run:
        return Model(_EARLIER, (Path(config.run.from_run).name,), note=config.run.from_run)
    path = config.scale.model.path
    if path:
        return Model(Path(path).name, ("base model",), note=path)
    return Model("from scratch", (f"seed {config.seed}",), note="randomly initialised")


def _spectrum_models(
    config: Config, done: set[str], table: ProbeTable | None, board: ScoreBoard
) -> tuple[list[Model], list[Model]]:
    if "sft" not in config.stages:
        return [], []
    base = (_base(config).name,)
    last = _model(SFT_LAST, board, base, vega.MUTED, "sft" in done)
    if table is None:
        return [last], []
    k = config.probe.select_k
    chosen = select_specialists(table, k)
    shown = shown_checkpoints(table.steps, list(chosen.values()))
    last_step = table.steps[-1]
    checkpoints = [Model(f"step {step}", (), base) for step in shown if step != last_step]
    checkpoints.append(Model(SFT_LAST, (f"step {last_step}", *last.lines), base, last.note, vega.MUTED, last.done))
    specialists = []
    for index, (domain, step) in enumerate(chosen.items()):
        parent = SFT_LAST if step == last_step else f"step {step}"
        estimate = table.cells[domain][step][k]
        lines = (f"step {step}", f"Pass@{k} {percent(estimate.mean)}")
        note = f"Pass@{k} on {domain} {format_estimate(estimate)}"
        own = _scores(f"specialist.{domain}", board)
        note += f"; {own}" if own else ""
        specialists.append(Model(domain, lines, (parent,), note, vega.SERIES[(index + 3) % len(vega.SERIES)]))
    return checkpoints, specialists


def _model(name: str, board: ScoreBoard, parents: Sequence[str], colour: str, done: bool) -> Model:
    estimates = {domain: board.estimate(name, domain) for domain in board.unions}
    lines = tuple(f"{domain} {percent(estimate.mean)}" for domain, estimate in estimates.items() if estimate)
    return Model(name, lines if done else ("not finished",), tuple(parents), _scores(name, board), colour, done)


def _scores(name: str, board: ScoreBoard) -> str:
    estimates = {domain: board.estimate(name, domain) for domain in board.unions}
    return "; ".join(f"{domain} pass@1 {format_estimate(value)}" for domain, value in estimates.items() if value)


def _caption(config: Config, board: ScoreBoard, table: ProbeTable | None) -> str:
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
