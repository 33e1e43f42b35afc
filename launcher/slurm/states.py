"""What has become of a run's jobs: from the queue, and from what the jobs noted in the run folder."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher.slurm import commands
from launcher.slurm.chain import PREFLIGHT
from launcher.slurm.commands import QueuedJob, SlurmError
from launcher.slurm.submission import read_record
from nemo_vibethinker.run_folder import RunFolder, read_json_lines

TORCH_LOG = re.compile(r"[EWI]\d{4} \d\d:\d\d")  # torchrun's lines, which say that a worker ended and not why
STATES = ("failed", "running", "pending", "waiting", "cancelled", "done")  # of several jobs of a stage, the first holds


@dataclass(frozen=True)
class JobState:
    """A job as a user wants to see it.

    Attributes:
        state: one of STATES.
        note: its number, and why it waits or what went wrong.
        attempts: that have begun.
    """

    name: str
    stage: str
    state: str
    note: str
    attempts: int


def job_states(run: RunFolder) -> list[JobState]:
    """The jobs of the latest submission in their order; none for a run that was not submitted.

    Without an answer of the controller the notes of the jobs have to do.
    """
    numbers = read_record(run.path)
    try:
        queued = commands.queue(numbers.values())
        unseen = ""
    except SlurmError as error:
        queued, unseen = [], str(error)
    return [_state(run, name, number, queued, unseen) for name, number in numbers.items()]


def _state(run: RunFolder, name: str, number: str, queued: Sequence[QueuedJob], unseen: str) -> JobState:
    notes = job_notes(run.path, number)
    mine = [job for job in queued if job.base == number]
    state, note = _judge(run.path, name, number, notes, mine, unseen)
    stage = name.removesuffix(".parts")
    return JobState(name, stage, state, note, sum(line["event"] == "start" for line in notes))


def job_notes(run_dir: Path, number: str) -> list[dict[str, Any]]:
    """What a job, or the tasks of an array, have noted, each task's lines in their order."""
    folder = run_dir / "slurm" / "jobs"
    files = [folder / f"{number}.jsonl", *sorted(folder.glob(f"{number}_*.jsonl"))]
    return [line for file in files for line in read_json_lines(file)]


def _judge(
    run_dir: Path, name: str, number: str, notes: list[dict[str, Any]], queued: Sequence[QueuedJob], unseen: str
) -> tuple[str, str]:
    last = {line["id"]: line for line in notes}  # of each task
    broken = [line for line in last.values() if line["event"] == "stalled" or (line["event"] == "end" and line["code"])]
    if broken:
        return "failed", f"job {broken[0]['id']}, exit {broken[0]['code']}: {last_words(run_dir, broken[0])}"
    at_work = [job for job in queued if not job.ended and job.state != "PENDING"]
    if at_work:
        return "running", _running(name, at_work, last)
    if pending := [job for job in queued if job.state == "PENDING"]:
        if pending[0].reason == "Dependency":
            return "waiting", f"job {number}"
        expected = "" if pending[0].start == "N/A" else f", expected {pending[0].start}"
        again = "back in the queue, " if last else ""
        return "pending", f"job {number}, {again}{pending[0].reason}{expected}"
    if last and all(line["event"] == "end" for line in last.values()):
        return "done", f"job {number}"
    if unseen:
        return "pending", f"job {number}; {unseen}"
    ended = {job.state for job in queued} - {"COMPLETED"}
    how = f"ended as {', '.join(sorted(ended))}" if ended else "was cancelled, or killed before it could say why"
    return "cancelled", f"job {number} {how}, log {log_file(run_dir, last)}" if last else f"job {number} never started"


def _running(name: str, at_work: Sequence[QueuedJob], last: dict[str, dict[str, Any]]) -> str:
    done = sum(line["event"] == "end" for line in last.values())
    parts = f", {len(at_work)} parts at work, {done} done" if name.endswith(".parts") else ""
    return f"job {at_work[0].base} for {at_work[0].elapsed} on {at_work[0].nodes}{parts}"


def log_file(run_dir: Path, last: dict[str, dict[str, Any]]) -> Path:
    """The log of the latest attempt."""
    line = max(last.values(), key=lambda line: line["time"])
    return run_dir / "slurm" / "logs" / f"{line['job']}.{line['id']}.{line['attempt']}.log"


def last_words(run_dir: Path, note: dict[str, Any]) -> str:
    """The line of an attempt's log that says what went wrong, else its last one."""
    if note["event"] == "stalled":
        return "attempts in a row saved nothing (cluster.stalled_requeues); their logs are in slurm/logs"
    file = log_file(run_dir, {note["id"]: note})
    text = file.read_text(errors="replace") if file.exists() else ""
    lines = [line for line in text.splitlines() if line.strip() and not TORCH_LOG.match(line)]
    telling = [
        line for line in lines if line.startswith(("error:", "preflight:")) or line.split(":")[0].endswith("Error")
    ]
    return (telling or lines or ["its log is empty"])[-1].removeprefix("error: ")


def stage_states(run: RunFolder) -> dict[str, JobState]:
    """Stage (or "preflight") -> the state of its job; of the array and the job after it, of the one that tells more."""
    found: dict[str, JobState] = {}
    for job in job_states(run):
        earlier = found.get(job.stage)
        if earlier is None or earlier.state == "done" or STATES.index(job.state) < STATES.index(earlier.state):
            attempts = job.attempts + (earlier.attempts if earlier else 0)
            found[job.stage] = JobState(job.name, job.stage, job.state, job.note, attempts)
    return found


def preflight_state(states: Mapping[str, JobState]) -> JobState | None:
    """The preflight's state while it matters: until it is done."""
    found = states.get(PREFLIGHT)
    return None if found is None or found.state == "done" else found
