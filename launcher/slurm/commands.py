"""Slurm's own commands, with their complaints as one line."""

import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

TIMEOUT_S = 60.0
ENDED = [
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
]
FIELDS = "%i|%T|%r|%S|%M|%N|%j|%F"  # id, state, reason, start, elapsed, nodes, name, id of the array


class SlurmError(ValueError):
    """One of Slurm's commands refused, or did not answer."""


@dataclass(frozen=True)
class QueuedJob:
    """A line of squeue: a job, or a task of an array."""

    id: str  # "12", "12_3"; "12_[4-9]" for tasks that wait
    state: str  # PENDING, RUNNING, COMPLETING, ...
    reason: str
    start: str  # expected or real; "N/A"
    elapsed: str
    nodes: str
    name: str
    base: str  # the number that sbatch gave

    @property
    def ended(self) -> bool:
        """Whether it will do nothing more; Slurm shows such a job for some minutes."""
        return self.state in ENDED


def require_slurm() -> None:
    """Refuse where there is no Slurm.

    Raises:
        SlurmError: sbatch is not on PATH.
    """
    if shutil.which("sbatch") is None:
        raise SlurmError("there is no sbatch on PATH: start it on a login node of the cluster, or set cluster=local")


def submit(script: Path, *, after: Sequence[str] = (), hold: bool = False) -> str:
    """Submit a script; returns the job's number.

    Args:
        script: its path.
        after: numbers of the jobs that must succeed first; where one does not, this one is cancelled.
        hold: keep it from starting until `release`.

    Raises:
        SlurmError: sbatch's own message.
    """
    command = ["sbatch", "--parsable", *(["--hold"] if hold else [])]
    if after:
        command += [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"]
    return _run([*command, str(script)]).split(";")[0]  # ";cluster" follows on federated clusters


def release(job: str) -> None:
    """Let a held job start."""
    _run(["scontrol", "release", job])


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended are none of its business."""
    listed = list(jobs)
    if listed:
        _run(["scancel", *listed])


def queue(jobs: Iterable[str]) -> list[QueuedJob]:
    """Those of the jobs that Slurm knows: all that have not ended, and some that have.

    Raises:
        SlurmError: the controller does not answer.
    """
    wanted = set(jobs)
    if not wanted:
        return []
    text = _run(["squeue", "--me", "--noheader", "--array", "--states=all", f"--format={FIELDS}"])
    return [job for job in (QueuedJob(*line.split("|")) for line in text.splitlines()) if job.base in wanted]


def _run(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except FileNotFoundError:
        raise SlurmError(f"there is no {command[0]} on PATH") from None
    except subprocess.TimeoutExpired:
        raise SlurmError(f"{command[0]} did not answer within {TIMEOUT_S:.0f} s") from None
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise SlurmError(f"{command[0]}: {' '.join(said).removeprefix(f'{command[0]}: ')}")
    return done.stdout.strip()
