"""What the format readers share: the shape of a reader, and columns as text."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["sft", "rl"]
Fields = dict[str, Any]  # some of the fields of a record; an `id` among them takes the place of the row's own

# MATH has no calculus: Precalculus is the nearest. GSM8K names no branch and is read as "math".
MATH_SUBJECT_DOMAINS = {
    "Algebra": "algebra",
    "Intermediate Algebra": "algebra",
    "Prealgebra": "algebra",
    "Number Theory": "algebra",
    "Geometry": "geometry",
    "Precalculus": "calculus",
    "Counting & Probability": "statistics",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A layout of columns.

    `read(row, kind)` gives the fields of the records of one row (several where a row holds several solutions);
    ValueError says why the row cannot be used. `rule` is the columns in words, for messages.
    """

    name: str
    rule: str
    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any], Kind | None], list[Fields]]


def text(row: dict[str, Any], column: str) -> str:
    """The column as stripped text, empty if absent; numbers are accepted, anything else is a ValueError."""
    value = row.get(column)
    if isinstance(value, str):
        return value.strip()
    if value is None:
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"column {column} is not text")
