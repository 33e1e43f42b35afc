"""What the page shows of time and money: hours against the plan, attempts and losses, how a step's time divides."""

import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vibethinker.costs.comparison import CostRow
from nemo_vibethinker.ledger import Attempt
from nemo_vibethinker.progress import format_duration
from nemo_vibethinker.report import vega
from nemo_vibethinker.report.series import mean, values
from nemo_vibethinker.report.vega import Chart, Row

_TIME_PARTS = ("generate", "grade", "update", "sync", "idle")  # each logged as PART_share
_MAX_ATTEMPTS = 200


def unit(device: str) -> str:
    """What a device's hours are called."""
    return "GPU-hours" if device == "gpu" else "CPU process-hours"


def hours(value: float) -> str:
    """Hours with three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3f}"


def share(part: float | None) -> str:
    """A share in percent, without the sign."""
    return "-" if part is None else f"{100 * part:.1f}"


def hours_chart(rows: Sequence[CostRow]) -> Chart:
    """Hours of each stage: useful, then lost; a tick where the plan put it."""
    stages = [row for row in rows if row.stage != "total"]
    bars: list[Row] = []
    for row in stages:
        common = {"stage": row.stage, "attempts": row.attempts, "plan": row.planned_hours}
        ends = {"useful": (0.0, row.useful_hours), "lost": (row.useful_hours, row.paid_hours)}
        bars += [
            common | {"kind": kind, "a": vega.rounded(low), "b": vega.rounded(high), "h": vega.rounded(high - low)}
            for kind, (low, high) in ends.items()
        ]
    plans = [{"stage": row.stage, "plan": vega.rounded(row.planned_hours)} for row in stages if row.planned_hours]
    y = vega.category("stage", scale={"domain": [row.stage for row in stages]}) | {"axis": _NAMES}
    x = vega.number("a", unit(rows[-1].device), axis={"grid": True, "tickCount": 6})
    paint = vega.colours("kind", {"useful": vega.SERIES[0], "lost": vega.LOST})
    tips = [vega.tip("stage", "stage"), vega.tip("kind", "kind"), vega.tip("h", "hours", ".4~g")]
    tips += [vega.tip("attempts", "attempts", "d"), vega.tip("plan", "planned", ".4~g")]
    totals = [
        {"stage": row.stage, "b": vega.rounded(row.paid_hours), "text": f"{row.paid_hours:.3g}"} for row in stages
    ]
    tick = {"type": "tick", "thickness": 2, "size": 20, "color": vega.colour(vega.INK)}
    text = {"type": "text", "align": "left", "dx": 5}
    bar = {"type": "bar", "height": 15}
    spec = vega.layers(
        vega.layer(bars, bar, x=x, x2={"field": "b"}, y=y, color=paint, tooltip=tips),
        *([vega.layer(plans, tick, x=x | {"field": "plan"}, y=y, tooltip=tips[-1:])] if plans else []),
        vega.layer(totals, text, x=x | {"field": "b"}, y=y, text={"field": "text"}),
        height=26 * len(stages),
    )
    legend = [("useful: led to a result or can be resumed from", vega.SERIES[0]), ("lost: done again", vega.LOST)]
    legend += [("planned", vega.INK)] if plans else []
    whole = rows[-1]
    planned = "" if plans else " The run has no plan on record (plan.json)."
    return Chart(
        name="hours",
        title=f"{unit(whole.device)} per stage",
        caption=f"{share(whole.ettr)}% of the hours paid for led to the result (ETTR, useful over paid).{planned}",
        description=f"{unit(whole.device)} per stage, {whole.useful_hours:.3g} useful, {whole.lost_hours:.3g} lost",
        spec=spec,
        legend=legend,
    )


_NAMES = {"labelColor": vega.colour(vega.INK), "grid": False, "labelLimit": 160}


def hours_table(rows: Sequence[CostRow], seconds: Mapping[str, float]) -> dict[str, Any]:
    """The ledger by stage against the plan; `seconds` is each stage's wall time."""
    head = ["stage", "attempts", "wall time", "useful, h", "lost, h", "paid, h", "planned, h", "paid / planned"]
    head += ["ETTR, %", "of the run, %"]
    whole = rows[-1].paid_hours
    return {
        "head": head,
        "rows": [
            [
                row.stage,
                str(row.attempts),
                format_duration(seconds.get(row.stage, 0.0)) if row.attempts else "-",
                f"{row.useful_hours:.4f}",
                f"{row.lost_hours:.4f}",
                f"{row.paid_hours:.4f}",
                "-" if row.planned_hours is None else f"{row.planned_hours:.4f}",
                "-" if row.ratio is None else f"{row.ratio:.2f}",
                share(row.ettr),
                share(row.paid_hours / whole) if whole else "-",
            ]
            for row in rows
        ],
        "caption": f"{unit(rows[-1].device)}: hours times processes, over all attempts.",
    }


def attempts_table(attempts: Sequence[Attempt]) -> dict[str, Any]:
    """Every attempt with its end and its losses: first those that lost something, then the others, up to a limit."""
    order = sorted(attempts, key=lambda attempt: (_lost(attempt) == 0, attempt.start))[:_MAX_ATTEMPTS]
    rows = []
    for attempt in sorted(order, key=lambda attempt: attempt.start):
        begun = datetime.datetime.fromtimestamp(attempt.start, datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        name = f"{attempt.stage} {attempt.part}".strip()
        lasted = format_duration(attempt.last - attempt.start)
        end = attempt.status or "no end on record: killed, or at work"
        figures = [str(attempt.processes), f"{attempt.hours:.4f}", f"{_lost(attempt):.4f}"]
        rows.append([name, begun, lasted, *figures, end])
    more = f"; {len(rows)} of them shown, those with losses first" if len(attempts) > len(rows) else ""
    return {
        "head": ["stage", "start, UTC", "lasted", "processes", "paid, h", "after its last save, h", "end"],
        "rows": rows,
        "summary": f"Attempts: {len(attempts)}{more}",
    }


def _lost(attempt: Attempt) -> float:
    return (attempt.last - attempt.saved) * attempt.processes / 3600


def shares_chart(lines: Mapping[str, Sequence[Mapping[str, Any]]]) -> Chart | None:
    """How a reinforcement-learning step's time divides; None if no stage logged it."""
    logged = {field for stage_lines in lines.values() for line in stage_lines for field in line}
    parts = [part for part in _TIME_PARTS if f"{part}_share" in logged]
    if not parts:
        return None
    names = [*parts, "other"]
    rows: list[Row] = []
    for stage, stage_lines in lines.items():
        left = 0.0
        for part, value in zip(names, _time_shares(stage_lines, parts), strict=True):
            row = {"stage": stage.removeprefix("mgpo."), "part": part, "a": vega.rounded(left), "share": value}
            rows.append(row | {"b": vega.rounded(left + value), "mid": left + value / 2})
            left += value
    colours = {part: vega.SERIES[index] for index, part in enumerate(parts)} | {"other": vega.GRID}
    y = vega.category("stage") | {"axis": _NAMES}
    x = vega.number("a", "share of a step's wall time", scale={"domain": [0, 1]}, axis={"format": "%"})
    tips = [vega.tip("stage", "stage"), vega.tip("part", "part"), vega.tip("share", "share", ".1%")]
    bar = {"type": "bar", "height": 18, "opacity": 0.55}
    large = [row for row in rows if row["share"] >= 0.05]
    label = {"field": "share", "type": "quantitative", "format": ".0%"}
    spec = vega.layers(
        vega.layer(rows, bar, x=x, x2={"field": "b"}, y=y, color=vega.colours("part", colours), tooltip=tips),
        vega.layer(large, {"type": "text"}, x=x | {"field": "mid"}, y=y, text=label),
        height=30 * len(lines),
    )
    caption = "Mean over the stage's steps. The longest part is the one whose speed decides the stage's cost."
    return Chart(
        name="shares",
        title="Division of a step's time",
        caption=caption,
        description=f"Division of step time for {', '.join(lines)}",
        spec=spec,
        legend=list(colours.items()),
    )


def _time_shares(lines: Sequence[Mapping[str, Any]], parts: Sequence[str]) -> list[float]:
    """The mean share of each part, then what is missing to 1."""
    logged = [values(lines, f"{part}_share") for part in parts]
    known = [mean(points) if points else 0.0 for points in logged]
    return [vega.rounded(part) for part in [*known, max(0.0, 1 - sum(known))]]
