"""Results kept on disk as they arrive, so that nothing is asked, or paid for, twice."""

import fcntl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from nemo_vibethinker.run_folder import read_json_lines, write_json_line


class ResumeFile:
    """JSON lines that grow; a context manager that holds the file for this process alone.

    A kill loses no line that `append` has returned from, and at most tears the last one, which is then left out.

    Attributes:
        rows: what earlier attempts have left.

    Raises ValueError if another process holds the file, or its folder does not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.parent.is_dir():
            raise ValueError(f"folder {path.parent} does not exist; create it or choose another --out")
        self._file = open(path, "ab+", buffering=0)  # noqa: SIM115 (held, and locked, as long as this object)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._file.close()
            raise ValueError(f"{path} is in use by another process; wait for it or choose another --out") from error
        self.rows: list[dict[str, Any]] = read_json_lines(path)

    def append(self, row: Mapping[str, Any]) -> None:
        write_json_line(self._file, row)  # `append_json_line` would wait for our own lock for ever

    def remove(self) -> None:
        """Delete the file: the result is complete elsewhere."""
        self.path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.path.exists() and not self.path.stat().st_size:
            self.remove()
        self._file.close()
