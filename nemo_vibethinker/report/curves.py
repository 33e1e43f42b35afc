"""Training curves: the SFT loss, and the small charts of reinforcement learning with a band for each stage."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_vibethinker.report import vega
from nemo_vibethinker.report.series import Lines, curve, running_mean, values
from nemo_vibethinker.report.vega import Chart, Row, Spec

_SMALLEST_LABELLED_BAND = 0.14  # share of the axis


@dataclass(frozen=True)
class Panel:
    """One small chart over the reinforcement-learning steps."""

    field: str
    title: str
    unit: str
    caption: str
    dashed: str = ""  # beginning of a second field's name
    percent: bool = False
    logarithmic: bool = False
    from_zero: bool = True


PANELS = (
    Panel(
        "reward",
        "Reward and Pass@G",
        "mean over the batch",
        "Solid: mean reward. Dashed: share of prompts solved by at least one of their G responses. "
        "Look for a rise inside each band; a dashed line that stays up means the answers have not narrowed.",
        dashed="pass_at_",
    ),
    Panel(
        "response_length",
        "Response length",
        "tokens, mean",
        "Look for jumps at the stage boundaries, where the window and the problems change.",
    ),
    Panel(
        "truncated_share",
        "Truncated responses",
        "% of responses",
        "Responses cut at the length limit. A steady climb means that the window binds.",
        percent=True,
    ),
    Panel(
        "entropy",
        "Entropy",
        "nats per token",
        "Of the policy's next-token distribution. A fall to zero is collapse; a sharp rise is divergence.",
    ),
    Panel(
        "mismatch_kl",
        "Mismatch KL",
        "nats per token, log scale",
        "Between the rollout engine and the trainer on the sampled tokens. Look for a flat line.",
        logarithmic=True,
    ),
    Panel(
        "w_me",
        "Mean MGPO weight",
        "w_ME, mean over prompts",
        "1 where half of a prompt's responses are right; lowest where all or none are.",
        from_zero=False,
    ),
    Panel(
        "zero_variance_share",
        "Zero-variance groups",
        "% of prompts",
        "Prompts whose responses all got the same reward: they carry no gradient.",
        percent=True,
    ),
    Panel("grad_norm", "Gradient norm", "before clipping", "Look for single spikes and for a drift upwards."),
    Panel(
        "clip_fraction",
        "Clipped tokens",
        "% of tokens",
        "Tokens whose probability ratio left the clip range. Zero at one update per rollout.",
        percent=True,
    ),
)


def loss_chart(lines: Lines, marked_steps: Mapping[int, str]) -> Chart:
    """SFT loss over steps; `marked_steps` get a dotted line and their label."""
    steps, losses = curve(lines, "loss")
    rows = _rows(steps, losses)
    marks = _labelled(marked_steps, steps[-1])
    ends = {"domain": [0, steps[-1]], "nice": False}
    x = vega.number("x", "SFT step", scale=ends, axis={"tickCount": 12})
    y = vega.number("y", "loss, nats per token", scale={"zero": False})
    tips = [vega.tip("x", "step", ",.0f"), vega.tip("y", "loss", ".4f"), vega.tip("m", "running mean", ".4f")]
    dotted = {"type": "rule", "strokeDash": [2, 3], "color": vega.colour(vega.MUTED)}
    spec = vega.layers(
        vega.layer(marks, dotted, x=x),
        *_mark_labels(marks, x),
        vega.layer(rows, _thin(vega.SERIES[0]), x=x, y=y) | {"params": [vega.pan_and_zoom()]},
        vega.layer(rows, {"type": "line", "clip": True, "color": vega.colour(vega.SERIES[0])}, x=x, y=y | _SMOOTH),
        vega.hover_rule(rows, x, tips),
        height=240,
    )
    text = f"SFT loss from {losses[0]:.3f} to {losses[-1]:.3f} over {steps[-1]:.0f} steps"
    caption = (
        "Thin line: the steps; thick line: mean over the neighbouring steps. Dotted: the checkpoints chosen as "
        "specialists. Look for a smooth fall that flattens without a jump."
    )
    return Chart(name="loss", title="Loss", caption=caption, description=text, spec=spec)


_TEXT: Spec = {"field": "text", "type": "nominal"}
_SMOOTH: Spec = {"field": "m"}
_BAND: Spec = {"type": "rect", "opacity": 0.09, "clip": True}


def _thin(colour: str | None = None) -> Spec:
    return {"type": "line", "clip": True, "strokeWidth": 1, "opacity": 0.35} | (
        {"color": vega.colour(colour)} if colour else {}
    )


def _labelled(marked_steps: Mapping[int, str], last: float) -> list[Row]:
    """Steps with their labels; one close to the one before goes a line higher (`level`), one near an end inwards."""
    rows: list[Row] = []
    apart = 0.2 * last
    previous, level = -apart, 0
    for step, label in sorted(marked_steps.items()):
        level = level + 1 if step - previous < apart else 0
        previous = step
        align = "right" if step > 0.85 * last else "left" if step < 0.1 * last else "center"
        rows.append({"x": step, "text": label, "level": level, "align": align})
    return rows


def _mark_labels(marks: Sequence[Row], x: Spec) -> list[Spec]:
    """The labels above the chart, one layer for each line of them."""
    places = sorted({(row["level"], row["align"]) for row in marks})
    return [
        vega.layer(
            [row for row in marks if (row["level"], row["align"]) == (level, align)],
            {"type": "text", "baseline": "bottom", "dy": -4 - 13 * level, "align": align, "clip": False},
            x=x,
            y={"value": 0},
            text=_TEXT,
        )
        for level, align in places
    ]


def _rows(steps: Sequence[float], points: Sequence[float], **more: object) -> list[Row]:
    smooth = running_mean(points)
    return [
        {"x": round(x, 1), "y": vega.rounded(y), "m": vega.rounded(m)} | more
        for x, y, m in zip(steps, points, smooth, strict=True)
    ]


def panel_chart(panel: Panel, stages: Mapping[str, Lines], colours: Mapping[str, str]) -> Chart | None:
    """One panel over all stages; steps run on from stage to stage. None if no line has the panel's field.

    Args:
        stages: stage -> its metrics lines.
        colours: stage -> CSS variable.
    """
    if not any(values(lines, panel.field) for lines in stages.values()):
        return None
    rows: list[Row] = []
    dashed: list[Row] = []
    for name, lines in stages.items():
        start = _start(stages, name)
        rows += _stage_rows(panel, lines, panel.field, name, start)
        second = next((key for key in lines[-1] if panel.dashed and key.startswith(panel.dashed)), None)
        dashed += _stage_rows(panel, lines, second, name, start) if second else []
    total = sum(lines[-1]["step"] for lines in stages.values())
    spec = _panel_spec(panel, rows, dashed, _bands(stages, total), {_short(name): colours[name] for name in stages})
    text = f"{panel.title} over {total} steps of {', '.join(map(_short, stages))}"
    return Chart(name=panel.field, title=panel.title, caption=panel.caption, description=text, spec=spec)


def _start(stages: Mapping[str, Lines], name: str) -> int:
    """Steps of the stages before `name`."""
    names = list(stages)
    return sum(stages[before][-1]["step"] for before in names[: names.index(name)])


def _short(stage: str) -> str:
    return stage.removeprefix("mgpo.")


def _stage_rows(panel: Panel, lines: Lines, field: str, stage: str, start: int) -> list[Row]:
    steps, points = curve(lines, field)
    scaled = [100 * point if panel.percent else point for point in points]
    rows = _rows(steps, scaled, s=_short(stage)) if points else []
    return [row | {"n": row["x"], "x": row["x"] + start} for row in rows]


def _bands(stages: Mapping[str, Lines], total: int) -> list[Row]:
    bands = []
    for name, lines in stages.items():
        start, length = _start(stages, name), lines[-1]["step"]
        label = _short(name) if length / total > _SMALLEST_LABELLED_BAND else ""
        bands.append(
            {"a": start + 0.5, "b": start + length + 0.5, "mid": start + (length + 1) / 2, "s": _short(name)}
            | {"text": label}
        )
    return bands


def _panel_spec(panel: Panel, rows: list[Row], dashed: list[Row], bands: list[Row], colours: Mapping[str, str]) -> Spec:
    seen = [row["y"] for row in rows]
    scale = {"type": "log"} if panel.logarithmic and min(seen) > 0 else {"zero": panel.from_zero}
    scale |= {} if any(seen) else {"domain": [0, 1]}
    x = vega.number("x", "RL step, all stages", scale={"domain": [0.5, bands[-1]["b"]], "nice": False})
    y = vega.number("y", panel.unit, scale=scale, axis={"tickCount": 5})
    colour = vega.colours("s", colours)
    label = {"type": "text", "baseline": "bottom", "dy": -4, "clip": False}
    tips = [
        vega.tip("s", "stage"),
        vega.tip("n", "step", ",.0f"),
        vega.tip("y", panel.title, ".4~g"),
        vega.tip("m", "running mean", ".4~g"),
    ]
    parts = [
        vega.layer(bands, _BAND, x=x | {"field": "a"}, x2={"field": "b"}, color=colour),
        vega.layer(bands, label, x=x | {"field": "mid"}, y={"value": 0}, text=_TEXT, color=colour),
        vega.layer(rows, _thin(), x=x, y=y, color=colour) | {"params": [vega.pan_and_zoom()]},
        vega.layer(rows, {"type": "line", "clip": True, "point": len(rows) == 1}, x=x, y=y | _SMOOTH, color=colour),
    ]
    if dashed:
        line = {"type": "line", "clip": True, "strokeDash": [4, 3], "strokeWidth": 1.5}
        parts.append(vega.layer(dashed, line, x=x, y=y | _SMOOTH, color=colour))
    return vega.layers(*parts, vega.hover_rule(rows, x, tips), height=190)
