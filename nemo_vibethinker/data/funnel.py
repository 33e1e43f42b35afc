"""What became of the rows of each set: read, dropped and why, removed as overlapping, kept, and how long they are."""

import json
import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_vibethinker.data.decontaminate import Overlap
from nemo_vibethinker.data.lengths import QUANTILES, Lengths
from nemo_vibethinker.data.reasons import Reasons

_NAMED = 10_000  # rows that `to_dict` names in full for each set; `dropped.jsonl` names all
DROPPED_FILE = "dropped.jsonl"


class _Set:
    def __init__(self) -> None:
        self.reasons = Reasons()
        self.dropped: list[dict[str, Any]] = []
        self.overlaps: list[dict[str, Any]] = []
        self.overlap_count = self.kept = 0
        self.domains: Mapping[str, int] = {}
        self.prompts, self.responses = Lengths(), Lengths()
        self.window = self.over_window = 0


class Funnel:
    """Collects what became of the rows; every row that is lost is a line of `dropped.jsonl`, written as it is lost."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / DROPPED_FILE
        self._file = open(folder / f".{DROPPED_FILE}", "w", encoding="utf-8")  # noqa: SIM115 (until `close`)
        self._sets: dict[str, _Set] = {}
        self.formats: dict[str, str] = {}

    def _set(self, name: str) -> _Set:
        return self._sets.setdefault(name, _Set())

    def drop(self, name: str, line: int | None, identity: str, reason: str) -> None:
        """A row of set `name` is not used; `line` is None for a record that was lost after reading."""
        counts, row = self._set(name), {"line": line, "id": identity, "reason": reason}
        counts.reasons.add(line, identity, reason)
        if len(counts.dropped) < _NAMED:
            counts.dropped.append(row)
        self._write({"set": name} | row)

    def remove(self, name: str, overlap: Overlap) -> None:
        """A record of set `name` overlaps a held-out one."""
        counts = self._set(name)
        row = {"train_id": overlap.train_id, "held_out_id": overlap.held_out_id, "shared_text": overlap.shared_text}
        counts.overlap_count += 1
        if len(counts.overlaps) < _NAMED:
            counts.overlaps.append(row)
        reason = f"shares a 10-gram with {overlap.held_out_id}: {overlap.shared_text}"
        self._write({"set": name, "line": None, "id": overlap.train_id, "reason": reason})

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def measure(self, name: str, *, prompt: int, response: int, counted: int, window: int) -> None:
        """Lengths of a record in tokens, and how much of it (`counted`) must fit into `window`; 0: no response."""
        counts = self._set(name)
        counts.prompts.add([prompt])
        counts.responses.add([response] if response else [])
        counts.window = window
        counts.over_window += counted > window

    def keep(self, name: str, count: int, domains: Mapping[str, int]) -> None:
        """What is left of set `name`."""
        self._set(name).kept, self._set(name).domains = count, domains

    def first_reason(self, name: str) -> str:
        """Why the first row of the set was dropped."""
        dropped, overlaps = self._set(name).dropped, self._set(name).overlaps
        if dropped:
            return dropped[0]["reason"]
        return f"all overlap with held-out rows, first {overlaps[0]['held_out_id']}" if overlaps else "none was given"

    @property
    def lost(self) -> tuple[int, int]:
        """Rows dropped, and records removed as overlapping, over all sets."""
        return (
            sum(counts.reasons.total for counts in self._sets.values()),
            sum(counts.overlap_count for counts in self._sets.values()),
        )

    def to_dict(self) -> dict[str, Any]:
        """The funnel as JSON data. `dropped` and `overlaps_removed` name the first 10,000 rows of each set."""
        return {
            "sets": {name: _set_dict(counts) for name, counts in self._sets.items()},
            "formats": self.formats,
            "overlaps_removed": [row for counts in self._sets.values() for row in counts.overlaps],
            "overlaps_removed_count": self.lost[1],
        }

    def lines(self) -> list[str]:
        """For the console: a line of lengths for each set, and a line for each reason to drop rows."""
        lines = []
        for name, counts in self._sets.items():
            domains = ", ".join(f"{domain} {count:,}" for domain, count in sorted(counts.domains.items()))
            lines.append(f"{name:<10} {counts.kept:,} records ({domains or 'none'}){_length_text(counts)}")
        for name, counts in self._sets.items():
            lines += [f"{name:<10} dropped {line}" for line in counts.reasons.lines()]
        return lines

    def close(self) -> None:
        """Finish `dropped.jsonl`."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        os.replace(self._file.name, self._path)


def _set_dict(counts: _Set) -> dict[str, Any]:
    dropped, kept = counts.reasons.total, counts.kept
    return {
        "read": kept + dropped + counts.overlap_count,
        "kept": kept,
        "domains": dict(Counter(counts.domains)),
        "dropped": counts.dropped,
        "dropped_count": dropped,
        "dropped_by_reason": counts.reasons.by_reason(),
        "tokens": {
            "prompt": counts.prompts.summary(),
            "response": counts.responses.summary(),
            "window": counts.window,
            "over_window": counts.over_window,
        },
    }


def _length_text(counts: _Set) -> str:
    parts = []
    for name, lengths in (("prompt", counts.prompts), ("response", counts.responses)):
        if summary := lengths.summary():
            keys = (*(f"p{q}" for q in QUANTILES), "max")
            parts.append(f"{name} tokens {' '.join(f'{key} {summary[key]:,}' for key in keys)}")
    if measured := len(counts.prompts):
        parts.append(f"{counts.over_window / measured:.1%} over {counts.window:,}")
    return "".join(f"; {part}" for part in parts)
