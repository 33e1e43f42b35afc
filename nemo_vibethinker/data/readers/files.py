"""Raw rows of a dataset, one at a time: files, folders of files, and datasets of the Hugging Face hub."""

import gzip
import io
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

# line from 1, the decoded row, why it could not be decoded, and its line where the rows of the file are lines, else b""
RawRow = tuple[int, dict[str, Any], str, bytes]

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".parquet")
_HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(:[\w.-]*){0,2}")
_DECODER = json.JSONDecoder()
_BOM = b"\xef\xbb\xbf"
_PARQUET_ROWS = 256  # decoded at a time; rows of reasoning data can be 100 KB each


def data_files(path: Path) -> list[Path]:
    """The file itself, or the data files of a folder by name, those of hidden folders left out.

    ValueError for a path that does not exist and for a folder without data files.
    """
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise ValueError(f"dataset {path} does not exist: name a file, a folder, or a dataset of the hub (owner/name)")
    files = sorted(file for file in path.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
    files = [file for file in files if not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not files:
        raise ValueError(f"dataset {path} has no file of {', '.join(SUFFIXES)}")
    return files


def is_hub_name(name: str) -> bool:
    """Whether `name` is `owner/name`, `owner/name:config` or `owner/name:config:split`, and no path that exists."""
    return bool(_HUB_NAME.fullmatch(name)) and not Path(name).exists() and not name.endswith(SUFFIXES)


def file_rows(path: Path) -> Iterator[RawRow]:
    """The rows of one file; ValueError for a file that cannot be read to its end."""
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        elif path.name.endswith(".json"):
            yield from _json_rows(path)
        else:
            with _opened(path) as file:
                yield from _json_lines(file)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"dataset {path} cannot be read: {_first_line(error)}") from error


def _opened(path: Path) -> IO[bytes] | gzip.GzipFile:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rb")
    if path.name.endswith(".zst"):
        import pyarrow

        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return open(path, "rb")


def _json_lines(lines: Iterable[bytes]) -> Iterator[RawRow]:
    for number, line in enumerate(lines, start=1):
        if number == 1 and line.startswith(_BOM):
            line = line[len(_BOM) :]
        if line and not line.isspace():
            row, reason = _decode(line)
            yield number, row, reason, line


def _decode(line: bytes) -> tuple[dict[str, Any], str]:
    try:
        return _checked(_loads(line.decode()), line)
    except (ValueError, RecursionError) as error:
        return {}, f"bad JSON: {error}"


def _loads(text: str) -> Any:
    """`json.loads`, in less time for a line that is a JSON value and a line end."""
    try:
        value, end = _DECODER.raw_decode(text)
    except ValueError:
        return json.loads(text)  # white space before the value, or the same error
    return value if text[end:] in ("", "\n", "\r\n") else json.loads(text)


def _checked(row: Any, content: bytes) -> tuple[dict[str, Any], str]:
    """The row if it is an object that text can hold; `content` is the JSON it was read from."""
    if not isinstance(row, dict):
        return {}, "bad JSON: not an object"
    if b"\\u" in content and (
        b"\\ud" in content or b"\\uD" in content
    ):  # half a surrogate pair is valid JSON, and no Unicode text
        try:
            json.dumps(row, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            return {}, f"bad JSON: {error}"
    return row, ""


def _json_rows(path: Path) -> Iterator[RawRow]:
    """A list of objects, one object, or JSON lines under the wrong name. Lists are read whole."""
    content = path.read_bytes().removeprefix(_BOM)
    try:
        whole = json.loads(content)
    except (ValueError, RecursionError):
        yield from _json_lines(content.splitlines())
        return
    for number, row in enumerate(whole if isinstance(whole, list) else [whole], start=1):
        yield number, *_checked(row, content), b""


def _parquet_rows(path: Path) -> Iterator[RawRow]:
    """Row groups are read as they are needed."""
    import pyarrow
    import pyarrow.parquet

    try:
        number = 0
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield number, row, "", b""
    except pyarrow.ArrowException as error:
        raise ValueError(f"dataset {path} cannot be read: {_first_line(error)}") from error


def hub_rows(name: str) -> Iterator[RawRow]:
    """The rows of `owner/name[:config[:split]]` (split train unless named), streamed by the `datasets` library.

    ValueError if the library cannot load it, the network included. A local folder's path is loaded as well.
    """
    import datasets

    owner_and_name, config, split, *_ = [*name.split(":"), "", ""]
    try:
        loaded = datasets.load_dataset(owner_and_name, config or None, split=split or "train", streaming=True)
        for number, row in enumerate(loaded, start=1):
            yield number, dict(row), "", b""
    except Exception as error:  # the library raises whatever its many back ends do; none of it is ours to handle
        where = "check the name, the configuration, the split and the network, or download it and name the folder"
        raise ValueError(f"dataset {name} cannot be loaded from the hub ({_first_line(error)}); {where}") from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return f"{type(error).__name__}: {text.splitlines()[0][:200]}" if text else type(error).__name__
