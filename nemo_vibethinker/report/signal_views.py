"""What the page shows of training: the panels of reinforcement learning, the weights, and the table of ends."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.report import curves, weights
from nemo_vibethinker.report.gather import RunData
from nemo_vibethinker.report.score_views import signal_stages, stage_colours
from nemo_vibethinker.report.series import values
from nemo_vibethinker.report.vega import Chart
from nemo_vibethinker.spectrum.selection import select_specialists

StageLines = Mapping[str, list[dict[str, Any]]]

_AVERAGED_STEPS = 5
_TABLE_FIELDS = {  # field -> header, decimals, factor
    "reward": ("reward", 3, 1),
    "response_length": ("length, tokens", 1, 1),
    "truncated_share": ("truncated, %", 1, 100),
    "entropy": ("entropy, nats", 3, 1),
    "w_me": ("w_ME", 3, 1),
    "zero_variance_share": ("zero variance, %", 1, 100),
}


def signal_lines(run: RunData) -> StageLines:
    """The metrics lines of the reinforcement-learning stages that have any."""
    return {stage: run.metrics[stage] for stage in signal_stages(run.config) if run.metrics.get(stage)}


def panel_charts(run: RunData) -> list[Chart]:
    """The small charts that have data."""
    lines, colours = signal_lines(run), stage_colours(signal_stages(run.config))
    drawn = [curves.panel_chart(panel, lines, colours) for panel in curves.PANELS]
    return [chart for chart in drawn if chart]


def weight_charts(run: RunData) -> list[Chart]:
    """A chart of w_ME against p_correct for each stage that logged its prompts' spread."""
    colours = stage_colours(signal_stages(run.config))
    found = []
    for stage, lines in signal_lines(run).items():
        settings: MgpoConfig = getattr(run.config.signal, stage.removeprefix("mgpo."))
        found.append(weights.weight_chart(stage, lines, settings.lambda_me, colours[stage]))
    return [chart for chart in found if chart]


def signal_table(lines: StageLines) -> dict[str, Any]:
    """Start and end of each stage's curves in numbers."""
    head = ["stage", "steps", *(header for header, _, _ in _TABLE_FIELDS.values())]
    rows = []
    for stage, stage_lines in lines.items():
        steps = f"{stage_lines[-1]['step']} of {stage_lines[-1]['total']}"
        rows.append([stage, steps, *(_start_to_end(stage_lines, field) for field in _TABLE_FIELDS)])
    caption = f"Mean of a stage's first {_AVERAGED_STEPS} steps, then of its last {_AVERAGED_STEPS}."
    return {"head": head, "rows": rows, "caption": caption}


def _start_to_end(lines: Sequence[Mapping[str, Any]], field: str) -> str:
    _, decimals, factor = _TABLE_FIELDS[field]
    found = values(lines, field)
    if not found:
        return "-"
    ends = [factor * math.fsum(part) / len(part) for part in (found[:_AVERAGED_STEPS], found[-_AVERAGED_STEPS:])]
    return " to ".join(f"{end:.{decimals}f}" for end in ends)


def specialist_marks(run: RunData) -> dict[int, str]:
    """SFT step -> the domains whose specialist it is."""
    if run.probe_table is None:
        return {}
    marks: dict[int, str] = {}
    for domain, step in select_specialists(run.probe_table, run.config.probe.select_k).items():
        marks[step] = f"{marks[step]}, {domain}" if step in marks else domain
    return marks
