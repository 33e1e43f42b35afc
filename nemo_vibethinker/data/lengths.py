"""Lengths of many texts, four bytes each, and what is told of them."""

from array import array
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

QUANTILES = (50, 90, 99)


class Lengths:
    """Lengths in the order they were added."""

    def __init__(self) -> None:
        self._values = array("i")

    def __len__(self) -> int:
        return len(self._values)

    def add(self, values: Iterable[int]) -> None:
        """Append lengths."""
        self._values.extend(values)

    def array(self) -> np.ndarray:
        """All lengths, [N] int32."""
        return np.array(self._values, dtype=np.int32)

    def summary(self) -> dict[str, Any]:
        """`p50`, `p90`, `p99` and `max`, and a histogram by powers of two.

        `histogram` lists [n, count]: count lengths are at most n and more than n/2. Empty for no lengths.
        """
        if not self._values:
            return {}
        values = self.array()
        quantiles = np.percentile(values, QUANTILES, method="higher")
        summary: dict[str, Any] = {f"p{q}": int(value) for q, value in zip(QUANTILES, quantiles, strict=True)}
        return summary | {"max": int(values.max()), "histogram": _histogram(values)}


def _histogram(values: np.ndarray) -> list[list[int]]:
    exponents = np.ceil(np.log2(np.maximum(values, 1))).astype(int)
    counts = np.bincount(exponents)
    return [[2**exponent, int(count)] for exponent, count in enumerate(counts) if count]


def bars(histogram: Sequence[Sequence[int]], width: int = 40) -> list[str]:
    """A line of text for each bin of `Lengths.summary`'s histogram."""
    most = max(count for _, count in histogram)
    return [f"{limit:>9,} {'#' * -(-count * width // most):<{width}} {count:,}" for limit, count in histogram]
