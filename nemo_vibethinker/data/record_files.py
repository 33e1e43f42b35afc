"""Records in a JSON-lines file, by number: nine bytes of memory a record, however long they are."""

import json
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

from nemo_vibethinker.data.records import DOMAINS, Record, record_to_json


class RecordFile:
    """A file of records that is written once, and then read in any order."""

    def __init__(self, path: Path, records: Iterable[Record]) -> None:
        """Write the records as they come."""
        self._starts = array("q")
        self._domains = bytearray()
        position = 0
        with open(path, "wb") as file:
            for record in records:
                self._starts.append(position)
                self._domains.append(DOMAINS.index(record.domain))
                position += file.write(record_to_json(record).encode() + b"\n")
        self.size = position  # bytes
        self._file = open(path, "rb")  # noqa: SIM115 (read until the object is gone)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, number: int) -> Record:
        """The record of a number from 0."""
        self._file.seek(self._starts[number])
        row = json.loads(self._file.readline())
        return Record(**{**row, "tests": tuple(row["tests"])})  # its own writing needs no check

    def domain(self, number: int) -> str:
        """The domain of a record, without reading it."""
        return DOMAINS[self._domains[number]]


class Selection(Sequence[Record]):
    """Some of the records of a file, in an order of their own, each read when asked for; four bytes of memory a record.

    Iterating reads one record at a time.
    """

    def __init__(self, file: RecordFile, numbers: Iterable[int] | None = None) -> None:
        """`numbers` of the records in `file`; None for all of them."""
        self.file = file
        self._numbers = array("i", range(len(file)) if numbers is None else numbers)

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> list[Record]: ...
    def __getitem__(self, index: int | slice) -> Record | list[Record]:
        """The record at a position of this selection."""
        if isinstance(index, slice):
            return [self.file[number] for number in self._numbers[index]]
        return self.file[self._numbers[index]]

    def keep(self, positions: Iterable[int]) -> "Selection":
        """The records at these positions of this selection."""
        return Selection(self.file, (self._numbers[position] for position in positions))

    def domains(self) -> Counter[str]:
        """How many records each domain has."""
        return Counter(self.file.domain(number) for number in self._numbers)

    @property
    def size(self) -> int:
        """Bytes of these records in the file, as their share of its records."""
        return self.file.size * len(self) // max(1, len(self.file))
