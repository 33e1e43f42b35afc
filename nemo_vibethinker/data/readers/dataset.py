"""Datasets as streams of rows, each with its record or with the reason why it has none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from nemo_vibethinker.data.readers.fields import Fields, Format, Kind
from nemo_vibethinker.data.readers.files import SUFFIXES, RawRow, data_files, file_rows, hub_rows, is_hub_name
from nemo_vibethinker.data.readers.formats import sniff
from nemo_vibethinker.data.readers.source_row import SourceRow, json_line
from nemo_vibethinker.data.records import Record

_ID_COLUMNS = ("id", "unique_id", "task_id", "uuid", "problem_id")
_ID_NAMES = frozenset(_ID_COLUMNS)
_NO_PROMPT = "empty question"


class Row(NamedTuple):
    """A row of a dataset: its line (from 1), its columns, and its record, or None and the reason why it has none.

    `raw` is empty for a line that could not be decoded. `line` counts within its file, or within the split of a hub
    dataset. `id` is the record's, or what it would have been. A row with several solutions comes once for each.
    """

    line: int
    raw: dict[str, Any]
    record: Record | None
    reason: str
    id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedRow:
    """A row that is not used: its line (from 1; None for a record dropped later), its id if it has one, and why."""

    line: int | None
    id: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadResult:
    """The usable records in file order, the dropped rows, and the name of the format found."""

    records: list[Record]
    dropped: list[DroppedRow]
    format: str


class Dataset:
    """A dataset by its path or hub name: `owner/name`, `owner/name:config` or `owner/name:config:split`.

    A folder is read whole, file by file in the order of their names, so name the file or folder of one split.
    `format` is the name of the format, empty until a row has been read; `files` is empty for a dataset of the hub.
    """

    def __init__(self, path: str | Path) -> None:
        """ValueError if nothing is there; a hub name is looked up when it is read."""
        self.name = str(path)
        self.files = [] if is_hub_name(self.name) else data_files(Path(path))
        self.format = ""
        self._root = Path(path)

    def rows(self, kind: Kind | None) -> Iterator[Row]:
        """Rows in file order; ValueError for an empty dataset or one of no known format.

        The first row that is a JSON object tells the format. With a kind, a row whose id (unless made of its place)
        an earlier one has is dropped; without one it stays, as its prompt is wanted all the same.
        """
        seen: set[int] = set()  # hashes of ids, far smaller than the ids; empty where the rows have none of their own
        for known, place, (line, raw, reason, _), columns in self._rows():
            if known is None or reason:
                yield Row(line, raw, None, reason)
                continue
            named = f"{place[1]}:{line}"
            for row in _read(known, line, raw, columns, named, kind):
                if kind and row.record and row.id != named:
                    if hash(row.id) in seen:
                        row = Row(line, raw, None, "an earlier row has the same id", row.id)
                    seen.add(hash(row.id))
                yield row

    def source_rows(self) -> Iterator[SourceRow]:
        """The rows of `rows(None)` with their lines and texts in the place of records; ValueError as there."""
        for known, (file, stem), (line, raw, reason, source), columns in self._rows():
            identity = prompt = response = ""
            if known and not reason:
                identity = _own_id(columns) or f"{stem}:{line}"
                try:
                    (fields,) = known.read(columns, None)
                    prompt, response = fields["prompt"], fields.get("response", "")
                    reason = "" if prompt else _NO_PROMPT
                except ValueError as error:
                    reason = str(error)
            if not source.endswith(b"\n"):
                source = source + b"\n" if source else json_line(raw)
            yield SourceRow(file, line, identity, source, raw, prompt, response, reason)

    def _rows(self) -> Iterator[tuple[Format | None, tuple[str, str], RawRow, dict[str, Any]]]:
        """(the format, None before the first object; file and stem of ids; the row; its columns in lower case)."""
        known: Format | None = None
        capitals, raw_row = False, None
        for place, rows in self._raw_rows():
            for raw_row in rows:
                columns = raw_row[1]
                if known is None and not raw_row[2]:
                    capitals = any(column != column.lower() for column in columns)
                    known = self._sniff(_lower(columns) if capitals else columns)
                yield known, place, raw_row, _lower(columns) if capitals else columns
        if raw_row is None:
            raise ValueError(f"dataset {self.name} is empty")

    def _raw_rows(self) -> Iterator[tuple[tuple[str, str], Iterator[RawRow]]]:
        """For each file its path and what ids made of a row's place begin with, and its rows."""
        if not self.files:
            yield (self.name, self.name.partition(":")[0].rpartition("/")[2]), hub_rows(self.name)
        for file in self.files:
            stem = file.name if file == self._root else file.relative_to(self._root).as_posix()
            for suffix in SUFFIXES:
                stem = stem.removesuffix(suffix)
            yield (str(file), stem), file_rows(file)

    def _sniff(self, columns: dict[str, Any]) -> Format:
        try:
            known = sniff(columns)
        except ValueError as error:
            raise ValueError(f"dataset {self.name} {error}") from None
        self.format = known.name
        return known


def _lower(raw: dict[str, Any]) -> dict[str, Any]:
    return {column.lower(): value for column, value in raw.items()}


def _own_id(columns: dict[str, Any]) -> str:
    if _ID_NAMES.isdisjoint(columns):
        return ""
    for column in _ID_COLUMNS:
        value = columns.get(column)
        if isinstance(value, str | int) and (text := str(value).strip()):
            return text
    return ""


def _read(
    known: Format, line: int, raw: dict[str, Any], columns: dict[str, Any], named: str, kind: Kind | None
) -> Iterator[Row]:
    identity = _own_id(columns) or named
    try:
        records = [_record(fields, columns, identity, known.name, kind) for fields in known.read(columns, kind)]
    except ValueError as error:
        yield Row(line, raw, None, str(error), identity)
        return
    for record in records:
        yield Row(line, raw, record, "", record.id)


def _record(fields: Fields, columns: dict[str, Any], identity: str, name: str, kind: Kind | None) -> Record:
    source = columns.get("source")
    fields.setdefault("id", identity)
    fields.setdefault("source", source.strip() if isinstance(source, str) and source.strip() else name)
    record = Record(**fields)
    if not record.prompt:
        raise ValueError(_NO_PROMPT)
    if kind == "sft" and not record.response:
        raise ValueError("no solution")
    if kind == "rl" and record.domain == "code" and not record.tests:
        raise ValueError("no tests")
    if kind == "rl" and record.domain != "code" and not record.answer:
        raise ValueError("no answer")
    return record


def iterate_dataset(path: str | Path, *, kind: Kind | None = None) -> Iterator[Row]:
    """Stream a dataset in file order, for SFT (a reference solution is needed), RL (an answer, or tests) or, without
    a kind, for its prompts alone. `path` as of `Dataset`.

    ValueError for a missing dataset at once, for an empty one or one of no known format when that is found out.
    """
    return Dataset(path).rows(kind)


def read_dataset(path: str | Path, *, kind: Kind) -> ReadResult:
    """All rows of a dataset for SFT (a reference solution is needed) or RL (an answer, or tests, are needed).

    ValueError as of `iterate_dataset`, and for a dataset without one usable row.
    """
    dataset = Dataset(path)
    records: list[Record] = []
    dropped: list[DroppedRow] = []
    for row in dataset.rows(kind):
        if row.record:
            records.append(row.record)
        else:
            dropped.append(DroppedRow(line=row.line, id=row.id, reason=row.reason))
    if not records:
        raise ValueError(f"dataset {path} has no usable row for {kind}; line {dropped[0].line}: {dropped[0].reason}")
    return ReadResult(records=records, dropped=dropped, format=dataset.format)
