"""What a run has cost: one append-only file, also for attempts that died.

Lines of `ledger.jsonl`: `start`, `beat` (still alive), `save` (what was done so far can be resumed) and `end`.
An attempt without an `end` was killed; it is charged up to its last line.
"""

import contextlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_vibethinker.run_folder import append_json_line, read_json_lines

BEAT_INTERVAL_S = 5.0


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of a stage over all its attempts. Process-hours are GPU-hours where `device` is gpu."""

    stage: str
    attempts: int
    seconds: float  # wall time
    useful_hours: float  # process-hours that led to the result
    lost_hours: float  # process-hours of work that had to be done again, or led to nothing
    device: str  # cpu | gpu

    @property
    def process_hours(self) -> float:
        """Everything that was paid for."""
        return self.useful_hours + self.lost_hours


class Ledger:
    """Writes the ledger of one run. `path` None (ranks other than the main one) writes nothing."""

    def __init__(self, path: Path | None, processes: int, device: str) -> None:
        assert device in ("cpu", "gpu")
        self.path = path
        self.processes = processes
        self.device = device
        self.attempt_number = 0  # of the stage at work, from 1
        self._stage = ""
        self._started = 0.0
        self._written = 0.0
        self._earlier_hours = 0.0

    @contextlib.contextmanager
    def attempt(self, stage: str) -> Iterator[None]:
        """Charge what happens inside to `stage`; ends as done, failed (exception) or interrupted (exit, signal)."""
        costs = summarise(self.path) if self.path else []
        self._earlier_hours = sum(cost.process_hours for cost in costs)
        self.attempt_number = 1 + sum(cost.attempts for cost in costs if cost.stage == stage)
        self._stage, self._started = stage, time.time()
        self._append("start", processes=self.processes, device=self.device)
        status = "interrupted"
        try:
            yield
            status = "done"
        except Exception:
            status = "failed"
            raise
        finally:
            self._append("end", status=status)

    def beat(self) -> None:
        """Note that the attempt is alive; cheap enough for every step, written every few seconds."""
        if time.time() - self._written >= BEAT_INTERVAL_S:
            self._append("beat")

    def saved(self) -> None:
        """Note that a resume point was written: the work up to here is not lost by a kill."""
        self._append("save")

    def process_hours(self) -> float:
        """Hours times processes that the run has cost so far, all stages and attempts."""
        return self._earlier_hours + (time.time() - self._started) * self.processes / 3600

    def _append(self, event: str, **fields: Any) -> None:
        if self.path is None:
            return
        self._written = time.time()
        record = {"event": event, "stage": self._stage, "attempt": self.attempt_number, "time": self._written}
        append_json_line(self.path, record | fields)


@dataclass
class _Attempt:
    processes: int
    device: str
    start: float
    saved: float
    last: float
    done: bool = False


def summarise(path: Path) -> list[StageCost]:
    """Cost of each stage in the order of their first start.

    The whole of a finished attempt is useful, of another one the part up to its last resume point. Once a finished
    stage is started again, what it had done before is lost.
    """
    attempts: dict[str, list[_Attempt]] = {}
    for record in read_json_lines(path):
        stage, when = record["stage"], record["time"]
        if record["event"] == "start":
            attempts.setdefault(stage, []).append(_Attempt(record["processes"], record["device"], when, when, when))
            continue
        if stage not in attempts:  # its start line was torn
            continue
        attempt = attempts[stage][-1]
        attempt.last = when
        attempt.done = record.get("status") == "done"
        if record["event"] == "save" or attempt.done:
            attempt.saved = when
    return [_cost(stage, tries) for stage, tries in attempts.items()]


def _cost(stage: str, tries: list[_Attempt]) -> StageCost:
    useful = lost = 0.0
    for index, attempt in enumerate(tries):
        if index and tries[index - 1].done:
            useful, lost = 0.0, lost + useful
        useful += (attempt.saved - attempt.start) * attempt.processes / 3600
        lost += (attempt.last - attempt.saved) * attempt.processes / 3600
    seconds = sum(attempt.last - attempt.start for attempt in tries)
    return StageCost(
        stage=stage, attempts=len(tries), seconds=seconds, useful_hours=useful, lost_hours=lost, device=tries[-1].device
    )


def total(costs: Iterable[StageCost]) -> StageCost:
    """The sum of all stages, as a stage named "total"."""
    result = StageCost(stage="total", attempts=0, seconds=0.0, useful_hours=0.0, lost_hours=0.0, device="cpu")
    for cost in costs:
        result = replace(
            result,
            attempts=result.attempts + cost.attempts,
            seconds=result.seconds + cost.seconds,
            useful_hours=result.useful_hours + cost.useful_hours,
            lost_hours=result.lost_hours + cost.lost_hours,
            device=cost.device,
        )
    return result
