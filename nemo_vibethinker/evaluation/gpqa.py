"""GPQA as multiple choice. The published files name the right option, so its place among the four is drawn here."""

import csv
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_vibethinker.data.readers.files import data_files, file_rows, hub_rows, is_hub_name
from nemo_vibethinker.data.records import Record

LETTERS = "ABCD"
_WRONG = tuple(f"Incorrect Answer {number}" for number in (1, 2, 3))


def read_gpqa(source: str, seed: int) -> Iterator[Record]:
    """Problems in the layout of the published set (`Question`, `Correct Answer`, `Incorrect Answer 1` to 3,
    `Record ID`): .csv as in the published archive, any other dataset file, a folder of these, or a hub name.

    The order of a problem's options is a function of the seed and its id. ValueError for a row of another layout.
    """
    for number, row in enumerate(_rows(source), start=1):
        missing = [name for name in ("Question", "Correct Answer", *_WRONG) if not str(row.get(name) or "").strip()]
        if missing:
            raise ValueError(f"{source}, row {number}: no {missing[0]}; expected the columns of Idavidrein/gpqa")
        yield _record(row, str(row.get("Record ID") or f"gpqa-{number}"), seed)


def _rows(source: str) -> Iterator[dict[str, Any]]:
    if source.endswith(".csv"):
        if not Path(source).is_file():
            raise ValueError(f"{source}: no such file")
        with open(source, newline="", encoding="utf-8-sig") as file:
            yield from csv.DictReader(file)
        return
    streams = [hub_rows(source)] if is_hub_name(source) else [file_rows(file) for file in data_files(Path(source))]
    for stream in streams:
        for number, row, reason, _ in stream:
            if reason:
                raise ValueError(f"{source}, row {number}: {reason}")
            yield row


def _record(row: dict[str, Any], identity: str, seed: int) -> Record:
    options = [str(row[name]).strip() for name in ("Correct Answer", *_WRONG)]
    order = list(range(len(options)))
    random.Random(f"{seed}/{identity}").shuffle(order)
    listed = "\n".join(f"{letter}. {options[place]}" for letter, place in zip(LETTERS, order, strict=True))
    question = str(row["Question"]).strip()
    return Record(id=identity, domain="math", prompt=f"{question}\n\n{listed}\n", answer=LETTERS[order.index(0)])
