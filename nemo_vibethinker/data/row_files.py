"""What the commands that filter dataset files share: rows beside their original lines, outputs that appear complete or
not at all, progress, and one-line errors."""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any, NamedTuple

from nemo_vibethinker.data.readers import iterate_dataset
from nemo_vibethinker.data.readers.files import data_files, is_hub_name
from nemo_vibethinker.data.records import Record

_NOT_LINES = (".parquet", ".json", ".gz", ".zst")

# The names that the code datasets of the field give to columns of tests.
TEST_COLUMNS = frozenset(
    {
        "test",
        "tests",
        "test_list",
        "test_setup_code",
        "challenge_test_list",
        "test_cases",
        "public_tests",
        "private_tests",
        "generated_tests",
        "public_test_cases",
        "private_test_cases",
        "input_output",
        "verification_info",
        "reward_model",
        "ground_truth",
        "examples",
    }
)


class SourceRow(NamedTuple):
    """A row of a dataset file: its line (from 1) as it stands there, and its records or the reason why it has none.

    A row has several records where it holds several solutions. `source` is the line with its line feed; for
    anything but an uncompressed file of JSON lines it is the row's columns as JSON.
    """

    file: str
    line: int
    id: str
    source: bytes
    columns: dict[str, Any]
    records: tuple[Record, ...]
    reason: str

    def texts(self) -> dict[str, str]:
        """Text -> the field that holds it: the prompt as read, every other text of any column, the response as read.

        All of them, since a row's line is kept as it is and the reader may use but some of its solutions. Only tests
        are left out (`TEST_COLUMNS`): inputs such as "1 2 3 4 5 6 7 8 9 10" are shared by unrelated problems.
        """
        texts = {record.prompt: "prompt" for record in self.records}
        _add_texts(self.columns, "", texts)
        for record in self.records:
            texts.setdefault(record.response.strip(), "response")
        return texts

    @property
    def place(self) -> dict[str, Any]:
        """What a report says to name this row."""
        return {"file": self.file, "line": self.line, "id": self.id}


def _add_texts(value: dict[str, Any] | list[Any], prefix: str, texts: dict[str, str]) -> None:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        if isinstance(item, str):
            if key not in TEST_COLUMNS:
                texts.setdefault(item.strip(), f"{prefix}{key}")
        elif isinstance(item, dict | list) and key not in TEST_COLUMNS:
            _add_texts(item, f"{prefix}{key}.", texts)


def source_rows(path: Path) -> Iterator[SourceRow]:
    """Stream the rows of a dataset, file by file; ValueError as of `iterate_dataset`."""
    for file in [path] if is_hub_name(str(path)) else data_files(path):
        with open(file, "rb") if _is_lines(file) else nullcontext() as lines:
            yield from _file_rows(file, lines)


def _file_rows(path: Path, lines: IO[bytes] | None) -> Iterator[SourceRow]:
    file, current = str(path), SourceRow("", 0, "", b"", {}, (), "")
    for row in iterate_dataset(path):
        if row.line == current.line:  # another solution of the same row
            if row.record:
                current = current._replace(records=(*current.records, row.record))
            continue
        if current.line:
            yield current
        source = _line(lines, row.line - current.line) if lines else json_line(row.raw)
        records = (row.record,) if row.record else ()
        current = SourceRow(file, row.line, row.id, source, row.raw, records, row.reason)
    if current.line:
        yield current


def _is_lines(path: Path) -> bool:
    """Whether the lines of the file are its rows, as they are."""
    return path.is_file() and not path.name.endswith(_NOT_LINES)


def _line(lines: IO[bytes], ahead: int) -> bytes:
    """The line that is `ahead` lines further, with a line feed and without a byte order mark."""
    line = b""
    for _ in range(ahead):
        line = next(lines)
    line = line.removeprefix(b"\xef\xbb\xbf")
    return line if line.endswith(b"\n") else line + b"\n"


def json_line(value: Any) -> bytes:
    """A line of JSON; half a surrogate pair, which UTF-8 cannot hold, stays the escape that it was in the source."""
    return json.dumps(value, ensure_ascii=False, default=str).encode("utf-8", "backslashreplace") + b"\n"


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


def read_rows(paths: Iterable[Path], progress: Progress) -> Iterator[SourceRow]:
    """The rows of all datasets in order."""
    for path in paths:
        for row in source_rows(path):
            progress.advance(row)
            yield row


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of the lines of some datasets; 0 if that cannot be told from the files."""
    files = [_files(path) for path in paths]
    known = all(found and all(map(_is_lines, found)) for found in files)
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
