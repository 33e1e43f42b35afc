"""What the commands that filter dataset files share: the rows of several datasets, and checks of their paths."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from nemo_vibethinker.data.readers import Dataset, SourceRow
from nemo_vibethinker.data.readers.files import data_files, is_hub_name
from nemo_vibethinker.progress import Progress

_NOT_LINES = (".parquet", ".json", ".gz", ".zst")  # whose size says nothing of the rows read


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


def source_rows(path: Path) -> Iterator[SourceRow]:
    """Stream the rows of a dataset, file by file, each in a format of its own; ValueError as of `Dataset.rows`."""
    for file in _files(path) or [path]:
        yield from Dataset(file).source_rows()


def read_rows(paths: Iterable[Path], progress: Progress) -> Iterator[SourceRow]:
    """The rows of all datasets in order."""
    for path in paths:
        for row in source_rows(path):
            progress.advance(1, len(row.source))
            yield row


def size_of(paths: Iterable[Path]) -> int:
    """Bytes of the lines of some datasets; 0 if that cannot be told from the files."""
    files = [_files(path) for path in paths]
    known = all(found and not any(file.name.endswith(_NOT_LINES) for file in found) for found in files)
    return sum(file.stat().st_size for found in files for file in found) if known else 0
