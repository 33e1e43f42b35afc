"""Charts as Vega-Lite specifications, drawn in the page by Vega, which the page carries inside.

Why Vega-Lite, through the one package `vl-convert-python` (BSD-3, of the Vega project, no dependencies of its own):
its bundle of Vega, Vega-Lite and Vega-Embed is 0.9 MB and needs no network; plotly's script alone is 4.6 MB, past the
page's limit; Bokeh and uPlot draw on a canvas, which prints as a picture. Vega draws SVG: sharp on paper, and its
colours are CSS variables of the page, so that dark mode and print need no second drawing. A specification is data
(JSON), which tests compile without a browser. Hover shows values, dragging pans, shift and wheel zoom.
"""

import functools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Spec = dict[str, Any]
Size = int | str | Mapping[str, int]  # pixels, "container", or {"step": pixels of a category}

# Names of CSS variables of the page: Okabe-Ito hues, told apart with any colour vision, made to contrast with the page.
SERIES = tuple(f"series-{index}" for index in range(7))
INK, MUTED, GRID, LOST, HEAT, RAISED = "ink", "muted", "grid", "lost", "heat", "raised"

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A chart of the page.

    Attributes:
        name: unique in the page.
        title: its heading, empty for none.
        caption: what is drawn and what to look for.
        description: what a screen reader says.
        spec: the Vega-Lite specification.
        legend: (entry, CSS variable) pairs.
    """

    name: str
    title: str = ""
    caption: str = ""
    description: str = ""
    spec: Spec
    legend: Sequence[tuple[str, str]] = ()


def colour(name: str) -> str:
    """A CSS variable of the page as a colour."""
    return f"var(--{name})"


def layers(*parts: Spec, width: Size = "container", height: Size = 220, **more: Any) -> Spec:
    """A layered specification with the page's looks."""
    fit = {"autosize": {"type": "fit-x", "contains": "padding"}} if width == "container" else {}
    shared = list({id(part["data"]["values"]): part["data"]["values"] for part in parts}.values())
    names = {id(rows): f"rows{index}" for index, rows in enumerate(shared)}  # layers of the same rows hold them once
    named = [part | {"data": {"name": names[id(part["data"]["values"])]}} for part in parts]
    datasets = {names[id(rows)]: rows for rows in shared}
    return {"width": width, "height": height, "config": _CONFIG, "datasets": datasets, "layer": named} | fit | more


def layer(rows: Sequence[Row], mark: str | Spec, **encoding: Any) -> Spec:
    """One layer: its data, its mark, its encoding."""
    return {"data": {"values": rows}, "mark": mark, "encoding": encoding}


def number(name: str, title: str = "", **more: Any) -> Spec:
    """A quantitative channel."""
    return {"field": name, "type": "quantitative", "title": title or None} | more


def category(name: str, title: str = "", **more: Any) -> Spec:
    """A nominal channel in the order of its data."""
    return {"field": name, "type": "nominal", "title": title or None, "sort": None} | more


def colours(field: str, of: Mapping[str, str]) -> Spec:
    """A colour channel: category -> CSS variable; the legend is the page's."""
    scale = {"domain": list(of), "range": [colour(name) for name in of.values()]}
    return {"field": field, "type": "nominal", "scale": scale, "legend": None}


def tip(name: str, title: str, form: str = "") -> Spec:
    """A line of a tool tip; `form` is a d3 number format, of text if empty."""
    kind = {"type": "quantitative", "format": form} if form else {"type": "nominal"}
    return {"field": name, "title": title} | kind


def pan_and_zoom() -> Spec:
    """A parameter of one layer: drag pans, shift and wheel zoom, a double click goes back."""
    select = {"type": "interval", "encodings": ["x"], "zoom": "wheel![event.shiftKey]"}
    return {"name": "zoom", "select": select, "bind": "scales"}


def hover_rule(rows: Sequence[Row], x: Spec, tips: Sequence[Spec]) -> Spec:
    """A vertical line at the step nearest to the pointer, with its values in a tool tip."""
    select = {"type": "point", "on": "pointermove", "nearest": True, "clear": "pointerout", "encodings": ["x"]}
    shown = {"condition": {"param": "hover", "empty": False, "value": 0.6}, "value": 0}
    rule = {"type": "rule", "color": colour(MUTED)}
    found = layer(rows, rule, x=x, opacity=shown, tooltip=list(tips))
    return found | {"params": [{"name": "hover", "select": select}]}


def rounded(value: float, digits: int = 4) -> float:
    """`value` with so many significant digits: what a chart can show, in few bytes."""
    return float(f"{value:.{digits}g}")


def is_number(value: Any) -> bool:
    """Whether a field of a metrics line can be drawn."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def as_json(value: Any) -> str:
    """JSON that can stand inside a `<script>` element: no text in it can end the element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def specs_json(charts: Iterable[Chart]) -> str:
    """The charts of a page: name -> specification."""
    found = {chart.name: chart.spec | {"description": chart.description} for chart in charts}
    return as_json(found)


@functools.cache
def library() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script of 0.9 MB, which puts `vegaEmbed` on the window."""
    import vl_convert

    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    assert "</script" not in script
    return script


_CONFIG: Spec = {
    "background": None,
    "font": _FONT,
    "view": {"stroke": None},
    "padding": {"left": 2, "right": 8, "top": 4, "bottom": 2},
    "axis": {
        "domain": False,
        "ticks": False,
        "gridColor": colour(GRID),
        "gridWidth": 0.8,
        "labelColor": colour(MUTED),
        "labelFontSize": 11,
        "labelPadding": 6,
        "titleColor": colour(MUTED),
        "titleFontSize": 11,
        "titleFontWeight": "normal",
        "titlePadding": 8,
        "labelOverlap": True,
    },
    "axisX": {"grid": False, "domain": True, "domainColor": colour(GRID)},
    "text": {"color": colour(INK), "fontSize": 11},
    "line": {"strokeCap": "round", "strokeJoin": "round", "strokeWidth": 1.8},
}
