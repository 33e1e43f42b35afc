"""What the format readers share: the shape of a reader, and columns as text."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

Kind = Literal["sft", "rl"]
Fields = dict[str, Any]  # some of the fields of a record; an `id` among them takes the place of the row's own

# MATH has no calculus: Precalculus is the nearest. A subject that is not listed is read as "math".
MATH_SUBJECT_DOMAINS = {
    "Algebra": "algebra",
    "Intermediate Algebra": "algebra",
    "Prealgebra": "algebra",
    "Number Theory": "algebra",
    "Inequalities": "algebra",
    "Geometry": "geometry",
    "Precalculus": "calculus",
    "Calculus": "calculus",
    "Counting & Probability": "statistics",
    "Combinatorics": "statistics",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A layout of columns, which are compared in lower case.

    `read(row, kind)` gives the fields of the records of one row (several where a row holds several solutions);
    ValueError says why the row cannot be used. `rule` is the columns in words, for messages.
    """

    name: str
    rule: str
    matches: Callable[[dict[str, Any]], bool]
    read: Callable[[dict[str, Any], Kind | None], list[Fields]]


def text(row: dict[str, Any], *columns: str) -> str:
    """The first of the columns that is not empty, as stripped text; "" if all are.

    Numbers are accepted, anything else is a ValueError.
    """
    for column in columns:
        value = row.get(column)
        if isinstance(value, str):
            if stripped := value.strip():
                return stripped
        elif isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        elif value is not None:
            raise ValueError(f"column {column} is not text")
    return ""


def content_id(prefix: str, prompt: str) -> str:
    """An id that equal prompts share: where a dataset repeats its problems, all but the first are dropped for it."""
    return f"{prefix}:{hashlib.blake2b(prompt.encode(), digest_size=8).hexdigest()}"
