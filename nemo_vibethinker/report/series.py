"""Curves over steps: which values there are, thinned to what a chart can show, and smoothed."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_vibethinker.report.vega import is_number

Lines = Sequence[Mapping[str, Any]]  # metrics lines of one stage, one per step

MAX_POINTS = 400  # of one curve; longer ones are drawn as means over equal bins


def values(lines: Lines, field: str) -> list[float]:
    """The finite values of one field, step by step."""
    return [line[field] for line in lines if is_number(line.get(field))]


def curve(lines: Lines, field: str, max_points: int = MAX_POINTS) -> tuple[list[float], list[float]]:
    """Steps and values of one field; lines without a finite value are left out, long curves binned."""
    steps = [line["step"] for line in lines if is_number(line.get(field))]
    return binned(steps, max_points), binned(values(lines, field), max_points)


def binned(points: Sequence[float], max_points: int = MAX_POINTS) -> list[float]:
    """Means over equal bins, at most `max_points` of them."""
    size = math.ceil(len(points) / max_points) or 1
    return [mean(points[start : start + size]) for start in range(0, len(points), size)]


def running_mean(points: Sequence[float]) -> list[float]:
    """Mean over a centred window of about a tenth of the curve, narrowing to three points at its ends."""
    half, last = max(2, len(points) // 20), len(points) - 1
    reach = [max(2, min(half, index, last - index)) for index in range(len(points))]
    return [mean(points[max(0, index - reach[index]) : index + reach[index] + 1]) for index in range(len(points))]


def mean(points: Sequence[float]) -> float:
    """Arithmetic mean."""
    return math.fsum(points) / len(points)
