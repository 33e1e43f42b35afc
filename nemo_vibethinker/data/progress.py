"""Progress of long work, on stderr."""

import sys
import time

_INTERVAL_S = 5.0


class Progress:
    """Says every five seconds how many rows are done, how fast, and when the rest will be."""

    def __init__(self, what: str, total: int = 0) -> None:
        """`total` rows are expected; 0 if that is not known."""
        self._what = what
        self._total = total
        self._began = self._said = time.monotonic()

    def show(self, rows: int) -> None:
        """`rows` are done by now."""
        now = time.monotonic()
        if now - self._said < _INTERVAL_S:
            return
        self._said = now
        speed = rows / (now - self._began)
        rest = f" of {self._total:,}, eta {max(0, self._total - rows) / speed:.0f} s" if self._total and speed else ""
        print(f"{self._what}: {rows:,} rows{rest}, {speed:,.0f} rows/s", file=sys.stderr, flush=True)
