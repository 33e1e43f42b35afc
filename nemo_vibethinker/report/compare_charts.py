"""Curves of several runs over each other."""

from collections.abc import Mapping, Sequence

from nemo_vibethinker.report import vega
from nemo_vibethinker.report.curves import Panel
from nemo_vibethinker.report.series import Lines, curve, running_mean, values
from nemo_vibethinker.report.vega import Chart, Row

MAX_POINTS = 200  # of one curve of one run


def overlay_chart(
    panel: Panel, runs: Mapping[str, Sequence[Lines]], colours: Mapping[str, str], x_title: str
) -> Chart | None:
    """One field of several runs, each smoothed; None where none has it.

    Args:
        runs: run -> the metrics lines of its stages, in order; steps run on from stage to stage.
        colours: run -> CSS variable.
    """
    rows = [row for name, stages in runs.items() for row in _run_rows(panel, name, stages)]
    if not rows:
        return None
    seen = [row["m"] for row in rows]
    scale = {"type": "log"} if panel.logarithmic and min(seen) > 0 else {"zero": panel.from_zero}
    x = vega.number("x", x_title, scale={"nice": False})
    y = vega.number("m", panel.unit, scale=scale, axis={"tickCount": 5})
    paint = vega.colours("run", colours)
    tips = [vega.tip("run", "run"), vega.tip("x", "step", ",.0f"), vega.tip("m", panel.title, ".4~g")]
    select = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout"}
    shown = {"condition": {"param": "hover", "empty": False, "value": 1}, "value": 0}
    dot = {"type": "point", "filled": True, "size": 60}
    spec = vega.layers(
        vega.layer(rows, {"type": "line", "clip": True}, x=x, y=y, color=paint, detail={"field": "run"})
        | {"params": [vega.pan_and_zoom()]},
        vega.layer(rows, dot, x=x, y=y, color=paint, opacity=shown, tooltip=tips)
        | {"params": [{"name": "hover", "select": select}]},
        height=190,
    )
    text = f"{panel.title} of {', '.join(runs)}"
    return Chart(name=f"over-{panel.field}", title=panel.title, caption="", description=text, spec=spec)


def _run_rows(panel: Panel, name: str, stages: Sequence[Lines]) -> list[Row]:
    rows: list[Row] = []
    start = 0
    for lines in stages:
        steps, points = curve(lines, panel.field, MAX_POINTS)
        smooth = running_mean(points) if values(lines, panel.field) else []
        factor = 100 if panel.percent else 1
        rows += [
            {"run": name, "x": round(start + x, 1), "m": vega.rounded(factor * m)}
            for x, m in zip(steps, smooth, strict=True)
        ]
        start += lines[-1]["step"]
    return rows


def difference_chart(rows: Sequence[Row], colours: Mapping[str, str], baseline: str) -> Chart:
    """Paired differences with their intervals: rows of `label`, `run`, `v`, `low`, `high`, in points."""
    ends = [row[key] for row in rows for key in ("low", "high")]
    reach = 1.05 * max(1.0, *map(abs, ends))
    x = vega.number("v", f"pass@1 minus that of {baseline}, points", scale={"domain": [-reach, reach]})
    names = {"labelColor": vega.colour(vega.INK), "grid": False, "labelLimit": 240}
    y = vega.category("label") | {"axis": names}
    paint = vega.colours("run", colours)
    tips = [vega.tip("label", "scores"), vega.tip("v", "difference", "+.1f"), vega.tip("low", "from", "+.1f")]
    tips += [vega.tip("high", "to", "+.1f"), vega.tip("n", "common problems", "d")]
    bar = {"type": "rule", "strokeWidth": 3, "opacity": 0.45, "strokeCap": "round"}
    zero = [{"v": 0}]
    spec = vega.layers(
        vega.layer(zero, {"type": "rule", "color": vega.colour(vega.INK), "strokeWidth": 1}, x=x),
        vega.layer(rows, bar, x=x | {"field": "low"}, x2={"field": "high"}, y=y, color=paint, tooltip=tips),
        vega.layer(rows, {"type": "point", "filled": True, "size": 55}, x=x, y=y, color=paint, tooltip=tips),
        height=24 * len({row["label"] for row in rows}),
    )
    text = "; ".join(f"{row['label']} {row['v']:+.1f}" for row in rows)
    return Chart(name="differences", title="Paired differences", description=text, spec=spec)
