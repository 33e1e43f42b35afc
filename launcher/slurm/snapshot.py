"""A copy of the code in the run folder, which its jobs run.

A run takes days and its jobs start when the queue lets them, again after each requeue: from a shared checkout they
would run whatever is being edited there at that moment. So each submission takes the code along, once for each state.
"""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.run_folder import COMMIT_FILE, git_commit

PACKAGES = ("nemo_vibethinker", "launcher")


def code_hash(root: Path) -> str:
    """Hash of the packages' files below `root`, 12 hex digits."""
    digest = hashlib.sha256()
    for file in _files(root):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def take_snapshot(root: Path, folder: Path) -> Path:
    """Copy the packages below `root` to `folder/<hash>`, unless they are there; returns that path."""
    target = folder / code_hash(root)
    if target.is_dir():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder, prefix=".new."))
    temporary.chmod(0o755)
    for file in _files(root):
        place = temporary / file.relative_to(root)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    atomic_write_text(temporary / COMMIT_FILE, git_commit() + "\n")
    os.replace(temporary, target)
    return target


def _files(root: Path) -> list[Path]:
    found = (file for package in PACKAGES for file in (root / package).rglob("*") if file.is_file())
    return sorted(file for file in found if "__pycache__" not in file.parts)
