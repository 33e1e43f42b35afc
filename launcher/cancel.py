"""`cancel run.name=NAME`: stop a run, its jobs or its processes on this machine. Imports no torch."""

import os
import re
import signal

from launcher.existing_run import open_existing, split_words
from launcher.slurm.submission import stop_jobs
from launcher.status import is_held
from nemo_vibethinker.run_folder import RunFolder


def main(arguments: list[str]) -> int:
    """Stop the run and say what was stopped. Returns 0.

    Raises:
        ValueError: no such run, Slurm cannot be asked, or the run is at work on another machine.
    """
    plain, given = split_words("cancel", arguments)
    if plain:
        raise ValueError(f"cancel: '{plain[0]}': a run is stopped as a whole: cancel run.name=NAME")
    run = open_existing("cancel", given)
    jobs = stop_jobs(run)
    stopped = f"jobs {', '.join(jobs)}" if jobs else _stop_process(run)
    if stopped:
        print(f"{run.path}: cancelled {stopped}; what is saved stays, the same command goes on")
    else:
        print(f"{run.path}: nothing of it is queued or at work")
    return 0


def _stop_process(run: RunFolder) -> str:
    """Send SIGTERM to the launcher at work on this machine; returns its name, empty where there is none."""
    lock = run.path / ".lock"
    if run.config.cluster.scheduler != "none" or not is_held(lock):
        return ""
    match = re.search(r"process (\d+) on (\S+)", lock.read_text())
    assert match is not None
    try:
        os.kill(int(match[1]), signal.SIGTERM)
    except (ProcessLookupError, PermissionError):
        raise ValueError(f"cancel: {run.path} is in use by {match[0]}; stop it there") from None
    return match[0]
