"""MGPO's weight against p_correct: where a stage's prompts lie, what weight they get, and how that moves."""

import math
from collections.abc import Mapping, Sequence

from nemo_vibethinker.report import vega
from nemo_vibethinker.report.series import Lines
from nemo_vibethinker.report.vega import Chart, Row

FIELD = "p_correct_counts"
_MAX_COLUMNS = 120  # of the map; more steps are added up in equal bins
_CURVE_POINTS = 50


def mgpo_weight(p_correct: float, lambda_me: float) -> float:
    """exp(-lambda_me * KL(p || 1/2)) as `signal.mgpo.mgpo_weights` has it, for a page that is written without torch."""
    divergence = sum(p * math.log(2 * p) for p in (p_correct, 1 - p_correct) if p > 0)
    return math.exp(-lambda_me * divergence)


def weight_chart(stage: str, lines: Lines, lambda_me: float, colour: str) -> Chart | None:
    """Bars: share of a stage's prompts at each p_correct. Line: the weight w_ME(p). None without the histograms."""
    counts = total_counts(lines)
    if not sum(counts):
        return None
    rows = _bar_rows(counts, lambda_me)
    places = [index / _CURVE_POINTS for index in range(_CURVE_POINTS + 1)]
    curve = [{"p": p, "w": vega.rounded(mgpo_weight(p, lambda_me))} for p in places]
    half = 0.42 / max(1, len(counts) - 1)
    bars = [row | {"a": row["p"] - half, "b": row["p"] + half} for row in rows]
    x = vega.number("p", "p_correct: share of right responses", scale={"domain": [-0.09, 1.09], "nice": False})
    tips = [
        vega.tip("p", "p_correct", ".3f"),
        vega.tip("share", "share of prompts", ".1%"),
        vega.tip("w", "w_ME", ".3f"),
        vega.tip("part", "share of the weight", ".1%"),
    ]
    y = vega.number("share", "share of prompts", axis={"format": "%", "tickCount": 4})
    weight = vega.number("w", "w_ME", scale={"domain": [0, 1]}, axis={"orient": "right", "grid": False, "tickCount": 3})
    bar = {"type": "rect", "color": vega.colour(colour), "opacity": 0.5}
    zero = {"datum": 0, "type": "quantitative"}
    spec = vega.layers(
        vega.layer(bars, bar, x=x | {"field": "a"}, x2={"field": "b"}, y=y, y2=zero, tooltip=tips),
        vega.layer(curve, {"type": "line", "color": vega.colour(vega.INK), "strokeWidth": 1.5}, x=x, y=weight),
        height=170,
        resolve={"scale": {"y": "independent"}},
    )
    name = stage.removeprefix("mgpo.")
    informative = 1 - (counts[0] + counts[-1]) / sum(counts)
    caption = (
        f"lambda = {lambda_me:g}. {100 * informative:.0f}% of the prompts carry a gradient (0 < p < 1). Bars far from "
        "the middle under a low line are prompts that MGPO turns down."
    )
    text = f"Share of prompts of {name} and MGPO weight by p_correct"
    return Chart(name=f"weight-{name}", title=name, caption=caption, description=text, spec=spec)


def total_counts(lines: Lines) -> list[int]:
    """Prompts by p_correct over all steps: entry i of G + 1 counts those at i/G."""
    logged = [line[FIELD] for line in lines if isinstance(line.get(FIELD), list)]
    return [sum(column) for column in zip(*logged, strict=True)]


def _bar_rows(counts: Sequence[int], lambda_me: float) -> list[Row]:
    places = [index / (len(counts) - 1) for index in range(len(counts))]
    weights = [mgpo_weight(p, lambda_me) for p in places]
    weighed = sum(count * weight for count, weight in zip(counts, weights, strict=True))
    return [
        {
            "p": vega.rounded(p),
            "share": vega.rounded(count / sum(counts)),
            "w": vega.rounded(weight),
            "part": vega.rounded(count * weight / weighed),
        }
        for p, count, weight in zip(places, counts, weights, strict=True)
    ]


def spread_chart(stages: Mapping[str, Lines]) -> Chart | None:
    """Map: share of a step's prompts at each p_correct, over all stages. None without the histograms."""
    rows: list[Row] = []
    start, total = 0, sum(lines[-1]["step"] for lines in stages.values())
    size = -(-total // _MAX_COLUMNS)
    for stage, lines in stages.items():
        rows += _map_rows(stage, lines, start, size)
        start += lines[-1]["step"]
    if not rows:
        return None
    ends = {"domain": [0.5, total + 0.5], "nice": False}
    x = vega.number("a", "RL step, all stages", scale=ends, axis={"tickCount": 12})
    ends = {"domain": [-0.09, 1.09], "nice": False}
    y = vega.number("low", "p_correct", scale=ends, axis={"tickCount": 3, "grid": False})
    shade = {"field": "share", "type": "quantitative", "legend": None, "scale": {"range": [0.03, 1]}}
    tips = [
        vega.tip("s", "stage"),
        vega.tip("n", "from step", ",.0f"),
        vega.tip("p", "p_correct", ".3f"),
        vega.tip("share", "share of prompts", ".1%"),
    ]
    cell = {"type": "rect", "color": vega.colour(vega.HEAT), "strokeWidth": 0}
    edges = [{"x": sum(lines[-1]["step"] for lines in list(stages.values())[:i]) + 0.5} for i in range(1, len(stages))]
    rule = {"type": "rule", "color": vega.colour(vega.INK), "strokeDash": [2, 3]}
    spec = vega.layers(
        vega.layer(rows, cell, x=x, x2={"field": "b"}, y=y, y2={"field": "high"}, opacity=shade, tooltip=tips),
        vega.layer(edges, rule, x=x | {"field": "x"}),
        height=190,
    )
    caption = (
        "Stronger colour: more of a step's prompts have this share of right responses. Dotted: a new stage. Look for "
        "the mass leaving the bottom row (never solved) without all of it ending in the top one (always solved)."
    )
    text = f"Share of prompts by p_correct over {total} steps"
    return Chart(name="spread", title="p_correct of the prompts", caption=caption, description=text, spec=spec)


def _map_rows(stage: str, lines: Lines, start: int, size: int) -> list[Row]:
    rows: list[Row] = []
    with_counts = [line for line in lines if isinstance(line.get(FIELD), list) and sum(line[FIELD])]
    for first in range(0, len(with_counts), size):
        part = with_counts[first : first + size]
        counts = total_counts(part)
        half = 0.5 / (len(counts) - 1)
        where = {"a": start + part[0]["step"] - 0.5, "b": start + part[-1]["step"] + 0.5}
        for index, count in enumerate(counts):
            p = index / (len(counts) - 1)
            ends = {"p": round(p, 4), "low": round(p - half, 4), "high": round(p + half, 4)}
            row = where | ends | {"share": vega.rounded(count / sum(counts), 3)}
            rows += [row | {"s": stage.removeprefix("mgpo."), "n": part[0]["step"]}] if count else []
    return rows
