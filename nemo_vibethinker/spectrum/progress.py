"""Progress of long work on standard error."""

import sys
import time

from nemo_vibethinker.metrics_log import format_duration

INTERVAL_S = 1.0


class Progress:
    """At most one line a second, over all of these objects: `labels 120/4,500 | 12.3 problems/s | eta 5m 56s | ...`.

    Args:
        total: problems to do in this run; what an earlier attempt did is not among them.
    """

    _printed = -INTERVAL_S  # when the last line of any was written

    def __init__(self, name: str, total: int) -> None:
        self._name, self._total, self._done = name, total, 0
        self._began = time.monotonic()

    def advance(self, note: object = "") -> None:
        """One more is done; `note` goes to the end of the line."""
        self._done += 1
        now = time.monotonic()
        if now - Progress._printed < INTERVAL_S:
            return
        Progress._printed = now
        rate = self._done / max(now - self._began, 1e-9)
        parts = [f"{self._name} {self._done:,}/{self._total:,}", f"{rate:.1f} problems/s"]
        if self._done < self._total:
            parts.append(f"eta {format_duration((self._total - self._done) / rate)}")
        print(" | ".join([*parts, *([str(note)] if str(note) else [])]), file=sys.stderr, flush=True)
