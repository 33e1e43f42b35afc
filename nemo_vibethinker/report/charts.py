"""The report's charts: plain numbers in, inline SVG out. Matplotlib is imported only when a chart is drawn."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nemo_vibethinker.report.svg import GRID, INK, LOST, MUTED, SERIES, inline_svg, new_axes, new_figure, style
from nemo_vibethinker.spectrum.pass_at_k import Estimate

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Lines = Sequence[Mapping[str, Any]]  # metrics lines of one stage, one per step

_MAX_POINTS = 600  # of one curve; longer ones are drawn as means over equal bins
_PAGE_WIDTH = 940
_PANEL_WIDTH = 460


@dataclass(frozen=True)
class Panel:
    """One small chart over the reinforcement-learning steps."""

    name: str
    title: str
    unit: str
    field: str
    caption: str
    dashed: str = ""  # beginning of a second field's name
    percent: bool = False
    logarithmic: bool = False


PANELS = (
    Panel(
        "reward",
        "Reward and Pass@G",
        "mean over the batch, 0 to 1",
        "reward",
        "Solid: mean reward. Dashed: share of prompts solved by at least one of their G responses. "
        "Look for a rise inside each band; a dashed line that stays up means the answers have not narrowed.",
        dashed="pass_at_",
    ),
    Panel(
        "length",
        "Response length",
        "tokens, mean",
        "response_length",
        "Look for jumps at the stage boundaries, where the window and the problems change.",
    ),
    Panel(
        "truncated",
        "Truncated responses",
        "% of responses",
        "truncated_share",
        "Responses cut at the length limit. A steady climb means that the window binds.",
        percent=True,
    ),
    Panel(
        "entropy",
        "Entropy",
        "nats per token",
        "entropy",
        "Of the policy's next-token distribution. A fall to zero is collapse; a sharp rise is divergence.",
    ),
    Panel(
        "weight",
        "Mean MGPO weight",
        "w_ME, mean over prompts",
        "w_me",
        "1 where half of a prompt's responses are right; lowest where all or none are.",
    ),
    Panel(
        "mismatch",
        "Mismatch KL",
        "nats per token, log scale",
        "mismatch_kl",
        "Between the rollout engine and the trainer on the sampled tokens. Look for a flat line.",
        logarithmic=True,
    ),
    Panel(
        "zero-variance",
        "Zero-variance groups",
        "% of prompts",
        "zero_variance_share",
        "Prompts whose responses all got the same reward: they carry no gradient.",
        percent=True,
    ),
    Panel(
        "gradient",
        "Gradient norm",
        "before clipping",
        "grad_norm",
        "Look for single spikes and for a drift upwards.",
    ),
)


def values(lines: Lines, field: str) -> list[float]:
    """The finite values of one field, step by step."""
    return [line[field] for line in lines if _is_number(line.get(field))]


def curve(lines: Lines, field: str) -> tuple[list[float], list[float]]:
    """Steps and values of one field; lines without a finite value are left out, long curves binned."""
    steps = [line["step"] for line in lines if _is_number(line.get(field))]
    return _binned(steps), _binned(values(lines, field))


def _binned(points: Sequence[float]) -> list[float]:
    size = math.ceil(len(points) / _MAX_POINTS) or 1
    return [_mean(points[start : start + size]) for start in range(0, len(points), size)]


def running_mean(points: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the curve, narrowing to three points at its ends."""
    half, last = max(2, len(points) // 20), len(points) - 1
    reach = [max(2, min(half, index, last - index)) for index in range(len(points))]
    return [_mean(points[max(0, index - reach[index]) : index + reach[index] + 1]) for index in range(len(points))]


def loss_chart(lines: Lines, marked_steps: Mapping[int, str]) -> str:
    """SFT loss over steps; `marked_steps` get a dotted line and their label."""
    with style():
        figure, axes = new_axes(_PAGE_WIDTH, 260)
        steps, losses = curve(lines, "loss")
        axes.plot(steps, losses, color=SERIES[0], alpha=0.35, linewidth=1)
        axes.plot(steps, running_mean(losses), color=SERIES[0])
        _mark_steps(axes, marked_steps, apart=0.12 * steps[-1])
        axes.set_xlabel("SFT step")
        axes.set_ylabel("loss, nats per token")
        axes.margins(x=0.01)
        return inline_svg(
            figure, "loss", f"SFT loss from {losses[0]:.3f} to {losses[-1]:.3f} over {steps[-1]:.0f} steps"
        )


def _mark_steps(axes: "Axes", marked_steps: Mapping[int, str], apart: float) -> None:
    """Dotted lines with labels; a label closer than `apart` steps to the one before goes a line higher."""
    previous, level = -apart, 0
    for step, label in sorted(marked_steps.items()):
        level = level + 1 if step - previous < apart else 0
        previous = step
        axes.axvline(step, color=MUTED, linewidth=1, linestyle=":")
        place = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "ha": "center", "va": "bottom"}
        axes.annotate(label, (step, 1), (0, 2 + 12 * level), color=MUTED, **place)


def signal_chart(panel: Panel, stages: Mapping[str, Lines], order: Sequence[str]) -> str:
    """One panel over all stages; steps run on from stage to stage. Empty text if no line has the panel's field.

    `order` lists the run's stages: a stage's colour is its place in it.
    """
    if not any(values(lines, panel.field) for lines in stages.values()):
        return ""
    with style():
        figure, axes = new_axes(_PANEL_WIDTH, 230)
        total = sum(lines[-1]["step"] for lines in stages.values())
        start = 0
        for name, lines in stages.items():
            colour = SERIES[order.index(name) % len(SERIES)]
            _draw_stage(axes, panel, lines, start, colour)
            _draw_band(axes, name, start, start + lines[-1]["step"], total, colour)
            start += lines[-1]["step"]
        axes.set_xlim(0.5, max(total, 1) + 0.5)
        axes.set_xlabel("RL step, all stages")
        axes.set_ylabel(panel.unit)
        _set_scale(axes, panel, stages)
        return inline_svg(figure, panel.name, f"{panel.title} over {total} steps of {', '.join(stages)}")


def _draw_stage(axes: "Axes", panel: Panel, lines: Lines, start: int, colour: str) -> None:
    steps, points = _on_axis(panel, lines, panel.field, start)
    axes.plot(steps, points, color=colour, alpha=0.35, linewidth=1)
    marker = "o" if len(points) == 1 else None
    axes.plot(steps, running_mean(points), color=colour, marker=marker, markersize=3)
    dashed = [name for name in lines[-1] if panel.dashed and name.startswith(panel.dashed)]
    for name in dashed[:1]:
        steps, points = _on_axis(panel, lines, name, start)
        axes.plot(steps, running_mean(points), color=colour, linestyle=(0, (3, 2)))


def _on_axis(panel: Panel, lines: Lines, field: str, start: int) -> tuple[list[float], list[float]]:
    steps, points = curve(lines, field)
    return [start + step for step in steps], [100 * point if panel.percent else point for point in points]


def _draw_band(axes: "Axes", name: str, start: int, end: int, total: int, colour: str) -> None:
    axes.axvspan(start + 0.5, end + 0.5, facecolor=colour, alpha=0.09, linewidth=0)
    if (end - start) / total > 0.14:
        label = name.removeprefix("mgpo.")
        centre = ((start + end + 1) / 2, 1.01)
        axes.annotate(label, centre, xycoords=("data", "axes fraction"), ha="center", va="bottom", color=colour)


def _set_scale(axes: "Axes", panel: Panel, stages: Mapping[str, Lines]) -> None:
    seen = [value for lines in stages.values() for value in values(lines, panel.field)]
    if panel.logarithmic and min(seen) > 0:
        from matplotlib.ticker import FormatStrFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    elif panel.name != "weight":
        axes.set_ylim(bottom=0, top=None if max(seen) > 0 else 1)


def score_chart(
    models: Sequence[str], columns: Mapping[str, Mapping[str, Estimate]], colours: Mapping[str, str]
) -> str:
    """A dot and its interval per model, one panel per domain. `columns[domain][model]` are shares in [0, 1]."""
    with style():
        width = max(_PAGE_WIDTH, 130 + 115 * len(columns))
        panels = new_figure(width, 62 + 25 * len(models)).subplots(
            1, len(columns), sharex=True, sharey=True, squeeze=False
        )[0]
        for axes, (domain, estimates) in zip(panels, columns.items(), strict=True):
            for model, estimate in estimates.items():
                y, colour = models.index(model), colours.get(model, MUTED)
                axes.plot([100 * estimate.low, 100 * estimate.high], [y, y], color=colour, alpha=0.55, linewidth=2.4)
                axes.plot(100 * estimate.mean, y, "o", color=colour, markersize=5.5)
            axes.set_title(domain, fontsize=10, color=INK)
            axes.spines["left"].set_visible(False)
        panels[0].set_yticks(range(len(models)), models, color=INK)
        panels[0].set_ylim(len(models) - 0.5, -0.5)
        panels[0].set_xlim(left=0)
        panels[0].figure.supxlabel("pass@1, %", fontsize=10, color=MUTED)
        return inline_svg(panels[0].figure, "scores", f"pass@1 of {len(models)} models on {', '.join(columns)}")


def hours_chart(useful: Mapping[str, float], lost: Mapping[str, float], unit: str) -> str:
    """Process-hours per stage: first the useful ones, then the lost ones."""
    with style():
        figure, axes = new_axes(_PAGE_WIDTH, 62 + 24 * len(useful))
        names = list(useful)
        gone = [lost.get(name, 0.0) for name in names]
        axes.barh(names, list(useful.values()), color=SERIES[0], height=0.62)
        axes.barh(names, gone, left=list(useful.values()), color=LOST, height=0.62)
        for index, name in enumerate(names):
            axes.annotate(
                f"{useful[name] + gone[index]:.3g}",
                (useful[name] + gone[index], index),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                color=INK,
            )
        _finish_bars(axes, names, unit)
        return inline_svg(figure, "hours", f"{unit} per stage, {sum(useful.values()):.3g} useful, {sum(gone):.3g} lost")


def share_chart(shares: Mapping[str, Mapping[str, float]]) -> str:
    """How a step's time divides, per stage. `shares[stage][part]` in [0, 1]; what is missing to 1 is "other"."""
    with style():
        figure, axes = new_axes(_PAGE_WIDTH, 62 + 28 * len(shares))
        names = list(shares)
        left = [0.0] * len(names)
        for index, part in enumerate(next(iter(shares.values()))):
            widths = [100 * shares[name][part] for name in names]
            axes.barh(names, widths, left=left, color=part_colour(index, part), height=0.62, alpha=0.5)
            for y, width in enumerate(widths):
                if width >= 5:
                    axes.annotate(f"{width:.0f}", (left[y] + width / 2, y), ha="center", va="center", color=INK)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_xlim(0, 100)
        _finish_bars(axes, names, "% of step time")
        return inline_svg(figure, "shares", f"division of step time for {', '.join(names)}")


def part_colour(index: int, part: str) -> str:
    """Colour of the index-th part of a step's time."""
    return GRID if part == "other" else SERIES[index % len(SERIES)]


def _finish_bars(axes: "Axes", names: Sequence[str], unit: str) -> None:
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", labelcolor=INK)
    axes.set_xlabel(unit)


def _mean(points: Sequence[float]) -> float:
    return math.fsum(points) / len(points)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
