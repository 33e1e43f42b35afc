"""Layout of the checkpoint lineage: which model came from which, as boxes and curves in SVG user units (CSS pixels)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

_BOX_WIDTH, _LINE_HEIGHT, _PADDING = 118, 15, 9
_GAP_X, _GAP_Y, _TOP = 26, 12, 34
_MAX_LETTERS = 17  # of a line in a box
_MAX_CHECKPOINTS = 12  # more than these: only the first, the chosen and the last are drawn


@dataclass(frozen=True)
class Model:
    """A model of the run: one box of the graph."""

    name: str
    lines: tuple[str, ...] = ()
    parents: tuple[str, ...] = ()
    note: str = ""  # tool tip
    colour: str = "muted"  # name of a CSS variable of the page
    done: bool = True


@dataclass(frozen=True)
class Box:
    """A model with its place: `x`, `y` is the upper left corner."""

    model: Model
    x: float
    y: float
    width: float = _BOX_WIDTH

    @property
    def height(self) -> float:
        return 2 * _PADDING + _LINE_HEIGHT * (1 + len(self.model.lines)) - 3

    @property
    def line_positions(self) -> list[tuple[float, str]]:
        """Base line and text of the title and of every line, cut to the box."""
        whole = (self.model.name, *self.model.lines)
        texts = [text if len(text) <= _MAX_LETTERS else text[: _MAX_LETTERS - 2] + ".." for text in whole]
        return [(self.y + _PADDING + 10 + _LINE_HEIGHT * index, text) for index, text in enumerate(texts)]


@dataclass(frozen=True)
class Edge:
    path: str
    colour: str
    done: bool


@dataclass
class Graph:
    """What the page draws."""

    boxes: list[Box] = field(default_factory=list)
    edges: list[Edge] = field(default_factory=list)
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
    graph = Graph(height=_TOP + tallest + 6, width=len(filled) * (_BOX_WIDTH + _GAP_X) - _GAP_X + 4)
    for index, (header, models) in enumerate(filled.items()):
        x, y = 2 + index * (_BOX_WIDTH + _GAP_X), _TOP + (tallest - heights[header]) / 2
        graph.headers.append((x + _BOX_WIDTH / 2, header))
        for model in models:
            graph.boxes.append(Box(model, x, y))
            y += graph.boxes[-1].height + _GAP_Y
    placed = {box.model.name: box for box in graph.boxes}
    graph.edges = [
        _edge(placed[parent], box) for box in graph.boxes for parent in box.model.parents if parent in placed
    ]
    return graph


def _column_height(models: Sequence[Model]) -> float:
    return sum(Box(model, 0, 0).height for model in models) + _GAP_Y * (len(models) - 1)


def _edge(parent: Box, child: Box) -> Edge:
    x0, y0 = parent.x + parent.width, parent.y + parent.height / 2
    x1, y1 = child.x - 5, child.y + child.height / 2
    bend = (x1 - x0) / 2
    path = f"M{x0:.1f} {y0:.1f}C{x0 + bend:.1f} {y0:.1f} {x1 - bend:.1f} {y1:.1f} {x1:.1f} {y1:.1f}"
    colour = child.model.colour if len(child.model.parents) == 1 else parent.model.colour
    return Edge(path, colour, child.model.done)
