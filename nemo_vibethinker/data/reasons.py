"""Counts of why rows were dropped, with the first of each reason by name."""

import re
from dataclasses import dataclass

_NUMBER = re.compile(r"\d+")
_MOST = 50  # different reasons; further ones are counted together


@dataclass(slots=True)
class _Count:
    rows: int
    line: int | None
    id: str
    reason: str


class Reasons:
    """Dropped rows by reason: what stands before the first colon, numbers aside."""

    def __init__(self) -> None:
        self.total = 0
        self._counts: dict[str, _Count] = {}

    def add(self, line: int | None, identity: str, reason: str) -> None:
        """Count one dropped row."""
        self.total += 1
        key = _NUMBER.sub("N", reason.partition(":")[0])
        if key not in self._counts and len(self._counts) >= _MOST:
            key = "other reasons"
        count = self._counts.setdefault(key, _Count(0, line, identity, reason))
        count.rows += 1

    def by_reason(self) -> dict[str, int]:
        """Rows of each reason, the most frequent first."""
        counts = sorted(self._counts.items(), key=lambda item: -item[1].rows)
        return {key: count.rows for key, count in counts}

    def lines(self) -> list[str]:
        """For each reason its rows and the first of them."""
        lines = []
        for key, rows in self.by_reason().items():
            first = self._counts[key]
            where = ", ".join(filter(None, (f"line {first.line}" if first.line is not None else "", first.id)))
            detail = f": {first.reason[:200]}" if first.reason != key else ""
            lines.append(f"{rows:,} {key} (first: {where}{detail})")
        return lines
