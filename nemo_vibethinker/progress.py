"""Progress of long work, on standard error."""

import sys
import time

INTERVAL_S = 1.0


class Progress:
    """At most one line a second, over all of these objects, and none in the first second of each:
    `labels: 120/4,500 problems | 12.3 problems/s | 3.4 MB/s | eta 5m 56s | ...`.

    Attributes:
        done: rows, or whatever `unit` names, so far.
        bytes: bytes so far, 0 where the caller does not tell them.
    """

    _printed = -INTERVAL_S  # when the last line of any was written

    def __init__(self, name: str, total: int = 0, *, unit: str = "rows", total_bytes: int = 0) -> None:
        """`total` and `total_bytes` are expected of this run, without what an earlier one did; 0 if not known."""
        self._name, self._total, self._unit, self._total_bytes = name, total, unit, total_bytes
        self.done = self.bytes = 0
        self._began = time.monotonic()

    @property
    def rate(self) -> float:
        """MB (1e6 bytes) a second since the beginning."""
        return self.bytes / 1e6 / max(time.monotonic() - self._began, 1e-9)

    def advance(self, count: int = 1, size: int = 0, note: object = "") -> None:
        """`count` more are done, of `size` bytes; `note` goes to the end of the line."""
        self.done += count
        self.bytes += size
        now = time.monotonic()
        if now - max(Progress._printed, self._began) >= INTERVAL_S:
            Progress._printed = now
            print(self._line(now - self._began, str(note)), file=sys.stderr, flush=True)

    def _line(self, seconds: float, note: str) -> str:
        of_total = f"/{self._total:,}" if self._total else ""
        speed = self.done / seconds
        parts = [
            f"{self._name}: {self.done:,}{of_total} {self._unit}",
            f"{speed:,.1f} {self._unit}/s",
        ]
        if self.bytes:
            parts.append(f"{self.bytes / 1e6 / seconds:.1f} MB/s")
        share = self.bytes / self._total_bytes if self._total_bytes else self.done / max(1, self._total)
        if 0 < share < 1:
            parts.append(f"eta {format_duration(seconds * (1 / share - 1))}")
        return " | ".join([*parts, *([note] if note else [])])


def format_duration(seconds: float) -> str:
    """Two units at most: `12s`, `4m 10s`, `2h 05m`, `1d 4h`."""
    whole = round(seconds)
    minutes, hours, days = whole // 60, whole // 3600, whole // 86400
    if days:
        return f"{days}d {hours % 24}h"
    if hours:
        return f"{hours}h {minutes % 60:02d}m"
    return f"{minutes}m {whole % 60:02d}s" if minutes else f"{whole}s"
