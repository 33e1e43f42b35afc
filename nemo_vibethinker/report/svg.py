"""Matplotlib figures as inline SVG whose colours are CSS variables of the page, for dark mode and print."""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Matplotlib knows no CSS variables: each gets a colour of its own, which `inline_svg` replaces.
INK, MUTED, GRID, SURFACE = "#010101", "#010102", "#010103", "#010104"
SERIES = tuple(f"#0100{index:02x}" for index in range(0x10, 0x17))
LOST = "#010020"
_VARIABLES = {
    INK: "ink",
    MUTED: "muted",
    GRID: "grid",
    SURFACE: "surface",
    LOST: "lost",
    **{colour: f"series-{index}" for index, colour in enumerate(SERIES)},
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "report",  # the same run gives the same bytes
    "text.parse_math": False,  # a `$` in a name is a dollar sign
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": MUTED,
    "axes.labelsize": 10,
    "axes.edgecolor": GRID,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "xtick.color": GRID,
    "ytick.color": GRID,
    "xtick.labelcolor": MUTED,
    "ytick.labelcolor": MUTED,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_POINTS_PER_INCH = 72


@contextmanager
def style() -> Iterator[None]:
    """The report's Matplotlib settings; figures are made, drawn and written inside it."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def new_figure(width: int, height: int) -> "Figure":
    """An empty figure of `width` by `height` CSS pixels, without pyplot's global state."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="constrained")


def new_axes(width: int, height: int) -> "tuple[Figure, Axes]":
    """A figure that has one panel, and the panel."""
    figure = new_figure(width, height)
    return figure, figure.subplots()


def variable_name(colour: str) -> str:
    """`series-0` and the like: the CSS variable of the page that stands for a colour of this module."""
    return _VARIABLES[colour]


def inline_svg(figure: "Figure", name: str, description: str) -> str:
    """The figure as an `<svg>` element for an HTML page.

    Args:
        name: unique in the page; prefixes every id.
        description: what a screen reader says (the alternative text).
    """
    buffer = io.StringIO()
    no_metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
    opening = re.search(r"<svg [^>]*>", buffer.getvalue())
    assert opening is not None
    view_box = re.search(r'viewBox="([^"]+)"', opening.group())
    assert view_box is not None
    # Matplotlib's own <style> and font families would reach the whole page.
    body = re.sub(r"<style.*?</style>|<!--.*?-->", "", buffer.getvalue()[opening.end() :], flags=re.DOTALL)
    body = re.sub(r"font-family: [^;\"]+;? ?", "", body)
    body = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\g<1>{name}-", body).replace("xlink:href", "href")
    body = re.sub(r"#0100[0-9a-f]{2}|#01010[0-9a-f]", lambda match: f"var(--{variable_name(match.group())})", body)
    width = view_box.group(1).split()[2]
    head = f'<svg class="chart" role="img" aria-label="{escape(description)}" viewBox="{view_box.group(1)}"'
    return f'{head} style="max-width: {float(width) * 1.25:.0f}px">{re.sub(chr(10) + " *", chr(10), body)}'
