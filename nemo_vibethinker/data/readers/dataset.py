"""Datasets as streams of rows, each with its record or with the reason why it has none."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_vibethinker.data.readers.fields import Fields, Format, Kind
from nemo_vibethinker.data.readers.files import RawRow, json_lines
from nemo_vibethinker.data.readers.formats import sniff
from nemo_vibethinker.data.records import Record

_ID_COLUMNS = ("id", "unique_id")


@dataclass(frozen=True, slots=True)
class Row:
    """A row of a dataset: its line (from 1), its columns, and its record, or None and the reason why it has none.

    `raw` is empty for a line that could not be decoded. `id` is the record's, or what it would have been. A row with
    several solutions comes once for each.
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
    """A dataset by its path. `format` is the name of its format, empty until a row has been read."""

    def __init__(self, path: str | Path) -> None:
        """ValueError if nothing is there."""
        self.path = Path(path)
        if not self.path.is_file():
            raise ValueError(f"dataset {path} does not exist or is not a file")
        self.format = ""

    def rows(self, kind: Kind | None) -> Iterator[Row]:
        """Rows in file order; ValueError for an empty dataset or one of no known format."""
        known: Format | None = None
        seen: set[int] = set()  # hashes of ids, far smaller than the ids; empty where the rows have none of their own
        empty = True
        for line, raw, reason in json_lines(self.path):
            empty = False
            if reason:
                yield Row(line, raw, None, reason)
                continue
            known = known or self._sniff(raw)
            yield from self._read(known, (line, raw, ""), kind, seen)
        if empty:
            raise ValueError(f"dataset {self.path} is empty")

    def _sniff(self, raw: dict[str, Any]) -> Format:
        try:
            known = sniff(raw)
        except ValueError as error:
            raise ValueError(f"dataset {self.path} {error}") from None
        self.format = known.name
        return known

    def _read(self, known: Format, row: RawRow, kind: Kind | None, seen: set[int]) -> Iterator[Row]:
        line, raw, _ = row
        own = _own_id(raw)
        identity = own or f"{self.path.stem}:{line}"
        try:
            records = [_record(fields, raw, identity, known.name, kind) for fields in known.read(raw, kind)]
        except ValueError as error:
            yield Row(line, raw, None, str(error), identity)
            return
        for record in records:
            if own and hash(record.id) in seen:
                yield Row(line, raw, None, "an earlier row has the same id", record.id)
                continue
            if own or seen:
                seen.add(hash(record.id))
            yield Row(line, raw, record, "", record.id)


def _own_id(raw: dict[str, Any]) -> str:
    for column in _ID_COLUMNS:
        value = raw.get(column)
        if isinstance(value, str | int) and str(value):
            return str(value)
    return ""


def _record(fields: Fields, raw: dict[str, Any], identity: str, name: str, kind: Kind | None) -> Record:
    source = raw.get("source")
    fields.setdefault("id", identity)
    fields.setdefault("source", source.strip() if isinstance(source, str) and source.strip() else name)
    record = Record(**fields)
    if not record.prompt:
        raise ValueError("empty question")
    if kind == "sft" and not record.response:
        raise ValueError("no solution")
    if kind == "rl" and record.domain == "code" and not record.tests:
        raise ValueError("no tests")
    if kind == "rl" and record.domain != "code" and not record.answer:
        raise ValueError("no answer")
    return record


def iterate_dataset(path: str | Path, *, kind: Kind | None = None) -> Iterator[Row]:
    """Stream a dataset in file order, for SFT (a reference solution is needed), RL (an answer, or tests) or, without
    a kind, for its prompts alone.

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
