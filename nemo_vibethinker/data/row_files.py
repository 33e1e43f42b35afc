"""What the commands that filter dataset files share: rows beside their original lines, outputs that appear complete or
not at all, progress, and one-line errors."""

import argparse
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO

from nemo_vibethinker.data.readers import Dataset, SourceRow
from nemo_vibethinker.data.readers.files import data_files, is_hub_name

_NOT_LINES = (".parquet", ".json", ".gz", ".zst")  # whose size says nothing of the rows read


@contextmanager
def outputs(paths: Sequence[Path]) -> Iterator[list[IO[bytes]]]:
    """Files to write; they appear at `paths`, complete, if the block ends well, and not at all otherwise."""
    with ExitStack() as stack:
        files = []
        for path in map(Path.resolve, paths):
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            stack.callback(Path(temporary).unlink, missing_ok=True)
            files.append((Path(temporary), stack.enter_context(os.fdopen(handle, "wb"))))
        yield [file for _, file in files]
        for _, file in files:
            file.flush()
            os.fsync(file.fileno())
        for path, (temporary, _) in zip(map(Path.resolve, paths), files, strict=True):
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)


def check_paths(inputs: dict[str, Sequence[Path]], results: dict[str, Path | None]) -> None:
    """Refuse, before any work, results that would destroy an input or each other, or that cannot be written.

    Keys are the options' names. ValueError names the option; also for an input that does not exist.
    """
    taken: dict[tuple[int, int] | Path, str] = {}
    for option, paths in inputs.items():
        for path in paths:
            taken |= {_identity(file): option for file in _files(path)}
    for option, path in results.items():
        if path is None:
            continue
        if not path.parent.is_dir():
            raise ValueError(f"{option} {path}: the folder {path.parent} does not exist")
        if path.exists() and not path.is_file():
            raise ValueError(f"{option} {path} is not a regular file")
        if other := taken.get(_identity(path)):
            raise ValueError(f"{option} {path} is the same file as one of {other}; name another")
        taken[_identity(path)] = option


def _files(path: Path) -> list[Path]:
    return [] if is_hub_name(str(path)) else data_files(path)


def _identity(path: Path) -> tuple[int, int] | Path:
    """Equal for all names of a file, links included."""
    return (path.stat().st_dev, path.stat().st_ino) if path.exists() else path.resolve()


class Progress:
    """Rows, MB/s and time left on standard error, at most once a second; quiet in the first second."""

    def __init__(self, total_bytes: int) -> None:
        """`total_bytes` is what `advance` will add up to, 0 if that is not known."""
        self.rows = self.bytes = 0
        self._total, self._began = total_bytes, time.monotonic()
        self._last = self._began

    @property
    def rate(self) -> float:
        """MB (1e6 bytes) a second since the beginning."""
        return self.bytes / 1e6 / max(time.monotonic() - self._began, 1e-9)

    def advance(self, row: SourceRow) -> None:
        """Count one row."""
        self.rows += 1
        self.bytes += len(row.source)
        if not self.rows % 256 and time.monotonic() - self._last >= 1:
            self._last = time.monotonic()
            left = f", {max(0, self._total - self.bytes) / 1e6 / self.rate:.0f} s left" if self._total else ""
            print(f"{self.rows:,} rows, {self.rate:.1f} MB/s{left}", file=sys.stderr, flush=True)


def source_rows(path: Path) -> Iterator[SourceRow]:
    """Stream the rows of a dataset, file by file, each in a format of its own; ValueError as of `Dataset.rows`."""
    for file in _files(path) or [path]:
        yield from Dataset(file).source_rows()


def read_rows(paths: Iterable[Path], progress: Progress) -> Iterator[SourceRow]:
    """The rows of all datasets in order."""
    for path in paths:
        for row in source_rows(path):
            progress.advance(row)
            yield row


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of the lines of some datasets; 0 if that cannot be told from the files."""
    files = [_files(path) for path in paths]
    known = all(found and not any(file.name.endswith(_NOT_LINES) for file in found) for found in files)
    return sum(file.stat().st_size for found in files for file in found) if known else 0


def run_command(command: Callable[[argparse.Namespace], int], parser: argparse.ArgumentParser) -> None:
    """Parse, run and exit: with the command's code, 2 and one line for an error, 130 or 143 when stopped."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that temporary files are removed
    arguments = parser.parse_args()
    try:
        code = command(arguments)
    except (ValueError, OSError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: stopped; nothing was written\n")
    sys.exit(code)
