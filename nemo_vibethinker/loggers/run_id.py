"""The id under which a service knows a run: made once, kept in the run folder."""

from collections.abc import Callable
from pathlib import Path

from nemo_vibethinker.atomic_files import atomic_write_text


def kept_id(file: Path, make: Callable[[], str]) -> str:
    """The id in `file`, where `make`'s is put if there is none yet."""
    if not file.is_file():
        atomic_write_text(file, make())
    return file.read_text().strip()
