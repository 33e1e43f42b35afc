"""The graph of a run's models: which was made from which, laid out in columns, drawn as a Vega-Lite chart."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from nemo_vibethinker.report import vega
from nemo_vibethinker.report.vega import Chart, Row, Spec

_BOX_WIDTH, _LINE_HEIGHT, _PADDING = 112, 15, 8
_GAP_X, _GAP_Y, _TOP = 24, 11, 30
_MAX_CHECKPOINTS = 10  # more than these: only the first, the chosen and the last are drawn
_ARROW = 7
_DASH: dict[bool, Spec] = {True: {}, False: {"strokeDash": [4, 3]}}  # by whether it is finished


@dataclass(frozen=True)
class Model:
    """A model of the run: one box of the graph."""

    name: str
    lines: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    note: str = ""  # tool tip
    colour: str = vega.MUTED  # CSS variable
    done: bool = True


@dataclass(frozen=True)
class Box:
    """A model with its place: `x`, `y` is the upper left corner, in pixels."""

    model: Model
    x: float
    y: float

    @property
    def height(self) -> float:
        return 2 * _PADDING + _LINE_HEIGHT * (1 + len(self.model.lines)) - 2


@dataclass
class Graph:
    """Boxes, the pairs of them that are joined, and the columns' headers."""

    boxes: list[Box] = field(default_factory=list)
    edges: list[tuple[Box, Box]] = field(default_factory=list)
    headers: list[tuple[float, str]] = field(default_factory=list)  # centre x, text
    width: float = 0
    height: float = 0


def shown_checkpoints(steps: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """The checkpoints worth a box of their own."""
    keep = {steps[0], steps[-1], *chosen}
    return [step for step in steps if len(steps) <= _MAX_CHECKPOINTS or step in keep]


def lay_out(columns: Mapping[str, Sequence[Model]]) -> Graph:
    """Columns (header -> models, top to bottom) from left to right, each centred; edges run from parent to child."""
    filled = {header: models for header, models in columns.items() if models}
    heights = {header: _column_height(models) for header, models in filled.items()}
    tallest = max(heights.values(), default=0)
    graph = Graph(height=_TOP + tallest + 4, width=len(filled) * (_BOX_WIDTH + _GAP_X) - _GAP_X + 4)
    for index, (header, models) in enumerate(filled.items()):
        x, y = 2 + index * (_BOX_WIDTH + _GAP_X), _TOP + (tallest - heights[header]) / 2
        graph.headers.append((x + _BOX_WIDTH / 2, header))
        for model in models:
            graph.boxes.append(Box(model, x, y))
            y += graph.boxes[-1].height + _GAP_Y
    placed = {box.model.name: box for box in graph.boxes}
    graph.edges = [(placed[name], box) for box in graph.boxes for name in box.model.parents if name in placed]
    return graph


def _column_height(models: Sequence[Model]) -> float:
    return sum(Box(model, 0, 0).height for model in models) + _GAP_Y * (len(models) - 1)


def graph_chart(graph: Graph, caption: str) -> Chart:
    """The graph as a chart of a fixed size."""
    boxes = [_box_row(box) for box in graph.boxes]
    texts = [row for box in graph.boxes for row in _text_rows(box)]
    edges = [row for index, edge in enumerate(graph.edges) for row in _edge_rows(index, *edge)]
    heads = [row | {"x": row["x"] + 3} for row in edges if row["i"] == 3]
    colours = dict.fromkeys(sorted({row["c"] for row in (*boxes, *edges)}))
    paint = vega.colours("c", {name: name for name in colours})
    x, y = _pixels("x", graph.width), _pixels("y", graph.height)
    line = {"type": "line", "interpolate": "monotone", "opacity": 0.75, "strokeWidth": 1.4}
    arrow = {"type": "point", "shape": "triangle-right", "filled": True, "size": 34, "opacity": 0.9}
    box = {"type": "rect", "fill": vega.colour(vega.RAISED), "strokeWidth": 1.3, "cornerRadius": 5}
    ends = {"x2": {"field": "x2"}, "y2": {"field": "y2"}}
    order = {"field": "i", "type": "quantitative"}
    header = {"type": "text", "color": vega.colour(vega.MUTED), "limit": _BOX_WIDTH + _GAP_X - 4}
    text: Spec = {"type": "text", "align": "left", "limit": _BOX_WIDTH - 14}
    written = {"field": "text", "type": "nominal"}
    tips = [vega.tip("name", "model"), vega.tip("note", "scores")]
    titles = [{"x": place, "y": 9, "text": name} for place, name in graph.headers]
    spec = vega.layers(
        vega.layer(titles, header, x=x, y=y, text=written),
        *(
            vega.layer(
                [e for e in edges if e["done"] == done],
                line | dash,
                x=x,
                y=y,
                detail={"field": "e"},
                order=order,
                color=paint,
            )
            for done, dash in _DASH.items()
        ),
        vega.layer(heads, arrow, x=x, y=y, color=paint),
        *(
            vega.layer(
                [b for b in boxes if b["done"] == done], box | dash, x=x, y=y, **ends, stroke=paint, tooltip=tips
            )
            for done, dash in _DASH.items()
        ),
        vega.layer([t for t in texts if t["first"]], text | {"fontWeight": 600}, x=x, y=y, text=written),
        vega.layer(
            [t for t in texts if not t["first"]], text | {"color": vega.colour(vega.MUTED)}, x=x, y=y, text=written
        ),
        width=round(graph.width),
        height=round(graph.height),
    )
    names = "Lineage: " + ", ".join(box.model.name for box in graph.boxes)
    return Chart(name="lineage-graph", caption=caption, description=names, spec=spec)


def _pixels(name: str, size: float) -> Spec:
    """A channel in pixels, y downwards."""
    ends = [round(size), 0] if name == "y" else [0, round(size)]
    return {
        "field": name,
        "type": "quantitative",
        "axis": None,
        "scale": {"domain": ends, "nice": False, "zero": False},
    }


def _box_row(box: Box) -> Row:
    model = box.model
    row = {"name": model.name, "note": model.note or "none", "c": model.colour, "done": model.done}
    return row | {"x": box.x, "y": box.y, "x2": box.x + _BOX_WIDTH, "y2": box.y + box.height}


def _text_rows(box: Box) -> list[Row]:
    lines = (box.model.name.removeprefix("mgpo."), *box.model.lines)
    top = box.y + _PADDING + 6
    return [
        {"x": box.x + 8, "y": top + _LINE_HEIGHT * index, "text": text, "first": index == 0}
        for index, text in enumerate(lines)
    ]


def _edge_rows(index: int, parent: Box, child: Box) -> list[Row]:
    """Four points that a monotone curve makes an S of."""
    x0, y0 = parent.x + _BOX_WIDTH, parent.y + parent.height / 2
    x1, y1 = child.x - _ARROW, child.y + child.height / 2
    lean = (x1 - x0) / 5
    colour = child.model.colour if len(child.model.parents) == 1 else parent.model.colour
    points = ((x0, y0), (x0 + lean, y0), (x1 - lean, y1), (x1, y1))
    common = {"e": index, "c": colour, "done": child.model.done}
    return [common | {"x": round(x, 1), "y": round(y, 1), "i": i} for i, (x, y) in enumerate(points)]
