"""Whether all nodes write and see the same folder."""

import fcntl
import os
import secrets
import shutil
import time
from pathlib import Path

from nemo_vibethinker.preflight.meeting import Meeting

VISIBLE_S = 10.0  # attribute caches of network file systems


def check_shared_folder(meeting: Meeting, run_dir: Path) -> str:
    """Rank 0 writes a file that all read, all write files that rank 0 reads; each appears by a rename.

    Raises:
        PreflightError: who cannot write, or does not see what others wrote.
    """
    silence = "hangs on the run's folder: its file system does not answer there"
    mine = run_dir.absolute() / f".preflight-{secrets.token_hex(4)}"
    fault = _create(mine) if meeting.is_first else ""
    name = meeting.round("folder", fault, lambda faults: _refuse(faults) or mine.name, VISIBLE_S, silence)
    folder = run_dir.absolute() / name
    fault = _read_and_write(folder, meeting)
    try:
        meeting.round(
            "files", fault, lambda faults: _refuse(faults) or _read_all(folder, meeting), 2 * VISIBLE_S, silence
        )
    finally:
        if meeting.is_first:
            shutil.rmtree(folder, ignore_errors=True)
    return f"{run_dir.absolute()}: written by each, seen by all"


def _refuse(faults: list[str]) -> None:
    if found := [fault for fault in faults if fault]:
        raise ValueError("; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else ""))


def _create(folder: Path) -> str:
    try:
        folder.mkdir()
        _write(folder, "rank-0")
        with open(folder / "rank-0") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return f"cannot write or lock files in {folder.parent}: {error.strerror}; set run.root to a folder that can"
    return ""


def _write(folder: Path, name: str) -> None:
    temporary = folder / f"{name}.tmp"
    with open(temporary, "w") as file:
        file.write(name)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, folder / name)


def _sees(folder: Path, name: str) -> bool:
    deadline = time.monotonic() + VISIBLE_S
    while time.monotonic() < deadline:
        if (folder / name).is_file() and (folder / name).read_text() == name:
            return True
        time.sleep(0.1)
    return False


def _read_and_write(folder: Path, meeting: Meeting) -> str:
    who = f"rank {meeting.place.rank} on {meeting.host}"
    if not _sees(folder, "rank-0"):
        return f"{who} does not see {folder.parent} as rank 0 does: put run.root on a file system that all nodes share"
    if meeting.is_first:
        return ""
    try:
        _write(folder, f"rank-{meeting.place.rank}")
    except OSError as error:
        return f"{who} cannot write in {folder.parent}: {error.strerror}; look at its mount and its owner there"
    return ""


def _read_all(folder: Path, meeting: Meeting) -> None:
    unseen = [rank for rank in range(meeting.place.size) if not _sees(folder, f"rank-{rank}")]
    if unseen:
        raise ValueError(f"rank 0 on {meeting.host} does not see what {meeting.name_ranks(unseen)} wrote in {folder}")
