"""What a run has cost: one append-only file, also for attempts that died.

Lines of `ledger.jsonl`: `start`, `beat` (still alive), `save` (what was done so far can be resumed) and `end`; and
`accounted`, what Slurm charges a job (see `accounts.py`). Jobs of several hosts may append at once: each attempt has an
`id` of its own. An attempt without an `end` was killed; it is charged up to its last line, or what Slurm charges for
its job where that is more.
"""

import contextlib
import json
import os
import platform
import time
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nemo_vibethinker.run_folder import append_json_line

BEAT_INTERVAL_S = 5.0
REFRESH_INTERVAL_S = 60.0  # between looks at what other jobs have added


@dataclass(frozen=True, kw_only=True)
class StageCost:
    """Cost of a stage over all its attempts. Process-hours are GPU-hours where `device` is gpu."""

    stage: str
    attempts: int
    seconds: float  # wall time, of all attempts together
    useful_hours: float  # process-hours that led to the result
    lost_hours: float  # process-hours of work that had to be done again, or led to nothing
    device: str  # cpu | gpu
    unseen_hours: float = 0.0  # those of the lost that only Slurm has seen: before the start, after the last line

    @property
    def process_hours(self) -> float:
        """Everything that was paid for."""
        return self.useful_hours + self.lost_hours

    @property
    def ettr(self) -> float | None:
        """Effective training time ratio: useful over paid hours; None before anything was paid."""
        return self.useful_hours / self.process_hours if self.process_hours else None


@dataclass
class Attempt:
    """One attempt of a stage, or of one part of it. Times are seconds since the epoch."""

    stage: str
    part: str
    processes: int
    device: str
    job: str  # Slurm's number of the job, one for each task of an array; empty outside Slurm
    start: float
    saved: float
    last: float
    status: str = ""  # done | failed | interrupted; empty: none said

    @property
    def hours(self) -> float:
        """Process-hours up to its last line."""
        return (self.last - self.start) * self.processes / 3600


class Book:
    """The attempts that a ledger tells of; `update` reads what was added since the last time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.attempts: dict[str, Attempt] = {}  # by id, in the order of their starts
        self.accounted: dict[str, float] = {}  # job -> GPU-hours that Slurm charges
        self._read = 0

    def update(self) -> "Book":
        """Read on, up to the last whole line. A line torn by a kill is left out."""
        if not self.path.exists():
            return self
        with open(self.path, "rb") as file:
            file.seek(self._read)
            added = file.read()
        whole = added[: added.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            with contextlib.suppress(ValueError):
                self._enter(json.loads(line))
        return self

    def _enter(self, record: dict[str, Any]) -> None:
        event, when = record["event"], record["time"]
        if event == "accounted":
            self.accounted[record["job"]] = record["gpu_hours"]
        elif event == "start":
            attempt = Attempt(
                stage=record["stage"],
                part=record.get("part", ""),
                processes=record["processes"],
                device=record["device"],
                job=record.get("job", ""),
                start=when,
                saved=when,
                last=when,
            )
            self.attempts[self._key(record, len(self.attempts))] = attempt
        elif attempt := self.attempts.get(self._key(record)):  # None: its start line was torn
            attempt.last = max(when, attempt.last)
            attempt.status = record.get("status", "")
            if event == "save" or attempt.status == "done":
                attempt.saved = record.get("as_of", when)

    def _key(self, record: dict[str, Any], number: int | None = None) -> str:
        """Lines of earlier versions have no id: they belong to the stage's latest attempt."""
        if "id" in record:
            return record["id"]
        if number is not None:
            return f"{record['stage']} {number}"
        return next((key for key, a in reversed(self.attempts.items()) if a.stage == record["stage"]), "")

    def hours(self, besides: str = "") -> float:
        """Process-hours of all attempts, at least what Slurm charges; without the attempt of id `besides`."""
        seen = sum(attempt.hours for identity, attempt in self.attempts.items() if identity != besides)
        return seen + sum(self.unseen().values())

    def unseen(self) -> dict[str, float]:
        """Id of the last attempt in a job -> GPU-hours that Slurm charges for the job above those of its attempts."""
        found: dict[str, float] = {}
        for job, charged in self.accounted.items():
            mine = {key: a for key, a in self.attempts.items() if a.job == job and a.device == "gpu"}
            excess = charged - sum(attempt.hours for attempt in mine.values())
            if mine and excess > 0:
                found[list(mine)[-1]] = excess
        return found

    def costs(self) -> list[StageCost]:
        """Cost of each stage in the order of their first start.

        The whole of a finished attempt is useful, of another one the part up to its last resume point. Once a finished
        stage, or the same part of it, is started again, what had been done before is lost.
        """
        stages: dict[str, dict[str, list[tuple[Attempt, float]]]] = {}
        unseen = self.unseen()
        for identity, attempt in self.attempts.items():
            parts = stages.setdefault(attempt.stage, {})
            parts.setdefault(attempt.part, []).append((attempt, unseen.get(identity, 0.0)))
        return [total((_cost(stage, tries) for tries in parts.values()), stage) for stage, parts in stages.items()]


class Ledger:
    """Writes the ledger of one run. `path` None (ranks other than the main one) writes nothing."""

    def __init__(self, path: Path | None, processes: int, device: str) -> None:
        assert device in ("cpu", "gpu")
        self.path = path
        self.processes = processes
        self.device = device
        self.attempt_number = 0  # of the stage at work, from 1
        self._stage = self._id = ""
        self._started = 0.0
        self._written = 0.0
        self._book = Book(path) if path else None
        self._refreshed = 0.0
        self._other_hours = 0.0

    @contextlib.contextmanager
    def attempt(self, stage: str, part: str = "") -> Iterator[None]:
        """Charge what happens inside to `stage`; ends as done, failed (exception) or interrupted (exit, signal).

        Args:
            stage: name of the stage.
            part: what of it, where several jobs share a stage.
        """
        earlier = self._book.update().attempts.values() if self._book else ()
        self.attempt_number = 1 + sum((attempt.stage, attempt.part) == (stage, part) for attempt in earlier)
        self._stage, self._id, self._started = stage, uuid.uuid4().hex[:12], time.time()
        self._refresh()
        job = {"job": os.environ.get("SLURM_JOB_ID", ""), "host": platform.node()}
        self._append("start", part=part, processes=self.processes, device=self.device, **job)
        status = "interrupted"
        try:
            yield
            status = "done"
        except Exception:
            status = "failed"
            raise
        finally:
            self._append("end", status=status)
            self._id = ""
            self._refresh()

    def beat(self) -> None:
        """Note that the attempt is alive; cheap enough for every step, written every few seconds."""
        if time.time() - self._written >= BEAT_INTERVAL_S:
            self._append("beat")

    def saved(self, as_of: float | None = None) -> None:
        """Note that a resume point is there: the work up to then (`time.time()`, default now) is not lost by a kill."""
        self._append("save", as_of=as_of or time.time())

    def process_hours(self) -> float:
        """Hours times processes that the run has cost so far, all stages and attempts, other jobs' too."""
        if time.time() - self._refreshed >= REFRESH_INTERVAL_S:
            self._refresh()
        own = (time.time() - self._started) * self.processes / 3600 if self._id else 0.0
        return self._other_hours + own

    def _refresh(self) -> None:
        self._refreshed = time.time()
        self._other_hours = self._book.update().hours(besides=self._id) if self._book else 0.0

    def _append(self, event: str, **fields: Any) -> None:
        if self.path is None:
            return
        self._written = time.time()
        record = {"event": event, "stage": self._stage, "attempt": self.attempt_number, "id": self._id}
        append_json_line(self.path, record | {"time": self._written} | fields)


def summarise(path: Path) -> list[StageCost]:
    """`Book.costs` of the ledger at `path`; no file, no cost."""
    return Book(path).update().costs()


def _cost(stage: str, tries: list[tuple[Attempt, float]]) -> StageCost:
    useful = lost = 0.0
    for index, (attempt, unseen) in enumerate(tries):
        if index and tries[index - 1][0].status == "done":
            useful, lost = 0.0, lost + useful
        useful += (attempt.saved - attempt.start) * attempt.processes / 3600
        lost += (attempt.last - attempt.saved) * attempt.processes / 3600 + unseen
    return StageCost(
        stage=stage,
        attempts=len(tries),
        seconds=sum(attempt.last - attempt.start for attempt, _ in tries),
        useful_hours=useful,
        lost_hours=lost,
        device=tries[-1][0].device,
        unseen_hours=sum(unseen for _, unseen in tries),
    )


def total(costs: Iterable[StageCost], name: str = "total") -> StageCost:
    """The sum of all costs, as a stage of that name."""
    result = StageCost(stage=name, attempts=0, seconds=0.0, useful_hours=0.0, lost_hours=0.0, device="cpu")
    for cost in costs:
        result = replace(
            result,
            attempts=result.attempts + cost.attempts,
            seconds=result.seconds + cost.seconds,
            useful_hours=result.useful_hours + cost.useful_hours,
            lost_hours=result.lost_hours + cost.lost_hours,
            device=cost.device,
            unseen_hours=result.unseen_hours + cost.unseen_hours,
        )
    return result
