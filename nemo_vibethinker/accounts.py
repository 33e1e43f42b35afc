"""What Slurm charges for a run's jobs, brought into the run's ledger.

    python -m nemo_vibethinker.accounts --run-dir runs/NAME [--sacct FILE]

A ledger cannot see the time before its first line, when a container starts, nor after its last one, when a node died.
Slurm's accounting can. `account` notes in the ledger what it says; the larger of both figures is what a job has cost.
"""

import argparse
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

from nemo_vibethinker.ledger import Book
from nemo_vibethinker.run_folder import append_json_line
from nemo_vibethinker.slurm_accounting import SACCT_FIELDS, charged_hours, parse_sacct

TIMEOUT_S = 20.0


def sacct_command(jobs: Iterable[str]) -> list[str]:
    """The question to Slurm's accounting about these jobs; the header makes the answer's fields known."""
    fields = f"--format={','.join(SACCT_FIELDS)}"
    return ["sacct", "--parsable2", "--duplicates", fields, f"--jobs={','.join(jobs)}"]


def ask_sacct(jobs: Iterable[str]) -> tuple[str, str]:
    """sacct's answer and, where there is none, its complaint: many clusters keep no accounts."""
    if shutil.which("sacct") is None:
        return "", "there is no sacct"
    try:
        asked = subprocess.run(sacct_command(jobs), capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return "", f"sacct did not answer within {TIMEOUT_S:.0f} s"
    if asked.returncode:
        return "", asked.stderr.strip().splitlines()[-1] if asked.stderr.strip() else f"sacct: exit {asked.returncode}"
    return asked.stdout, ""


def account(ledger: Path, answer: str | None = None) -> str:
    """Note in the ledger what Slurm charges for its jobs on GPUs. Returns one line that says what came of it.

    Args:
        ledger: the run's `ledger.jsonl`.
        answer: sacct's output, where it was recorded; None: ask sacct.

    Raises:
        ValueError: the answer is no output of `sacct_command`.
    """
    book = Book(ledger).update()
    jobs = dict.fromkeys(attempt.job for attempt in book.attempts.values() if attempt.job and attempt.device == "gpu")
    if not jobs:
        return "no job on GPUs in the ledger"
    complaint = ""
    if answer is None:
        answer, complaint = ask_sacct(jobs)
    charged = {job: hours for job, hours in charged_hours(parse_sacct(answer)).items() if job in jobs}
    for job, hours in charged.items():
        if book.accounted.get(job) != hours:
            append_json_line(ledger, {"event": "accounted", "time": time.time(), "job": job, "gpu_hours": hours})
    return _summary(book.update(), len(jobs), charged, complaint)


def _summary(book: Book, jobs: int, charged: dict[str, float], complaint: str) -> str:
    if not charged:
        return f"our own records alone: {complaint or 'sacct counts no GPUs'}"
    own = sum(a.hours for a in book.attempts.values() if a.job in charged and a.device == "gpu")
    return (
        f"{len(charged)} of {jobs} jobs: sacct {sum(charged.values()):.2f} GPU-hours, own records {own:.2f}; the "
        f"larger for each job is charged, {sum(book.unseen().values()):.2f} more than our records"
    )


def main(argv: list[str] | None = None) -> int:
    """The command line. Returns the exit code: 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m nemo_vibethinker.accounts", description="Bring what Slurm charges into a run's ledger."
    )
    parser.add_argument("--run-dir", type=Path, required=True, help="folder of the run")
    parser.add_argument("--sacct", type=Path, help=f"recorded output of: {' '.join(sacct_command(['JOBS']))}")
    arguments = parser.parse_args(argv)
    try:
        answer = arguments.sacct.read_text() if arguments.sacct else None
        print(account(arguments.run_dir / "ledger.jsonl", answer))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
