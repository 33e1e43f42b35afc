"""The published tables as data (`paper_tables.yaml`), each with its source."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_FILE = Path(__file__).with_suffix(".yaml")
COST = "cost"


@dataclass(frozen=True)
class PaperRow:
    """One model of a table; a score is in percent, None where the paper reports none."""

    model: str
    parameters: str | None  # as printed, such as "1.5B"; None: not in our source
    scores: Mapping[str, float | None]  # benchmark -> pass@1 in percent


@dataclass(frozen=True)
class PaperTable:
    """A published table of scores; benchmarks are named as in `evaluation.benchmarks`."""

    name: str
    title: str
    source: str
    notes: str
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True)
class PaperCost:
    """What training a model cost, as published."""

    model: str
    parameters: str
    gpu: str
    gpu_hours: float
    dollars: float
    source: str


@functools.cache
def paper_tables() -> dict[str, PaperTable]:
    """Name -> table of scores."""
    return {name: _table(name, raw) for name, raw in _content().items() if name != COST}


@functools.cache
def paper_costs() -> tuple[PaperCost, ...]:
    """The published costs of training."""
    raw = _content()[COST]
    return tuple(PaperCost(*row, source=raw["source"]) for row in raw["rows"])


def paper_row(model: str) -> tuple[PaperRow, PaperTable]:
    """The first row of a model, in the order of the tables.

    Raises:
        ValueError: no table has it.
    """
    for table in paper_tables().values():
        for row in table.rows:
            if row.model == model:
                return row, table
    known = sorted({row.model for table in paper_tables().values() for row in table.rows})
    raise ValueError(f"no published table has '{model}'; they have: {', '.join(known)}")


def _content() -> dict[str, Any]:
    return yaml.safe_load(_FILE.read_text())


def _table(name: str, raw: Mapping[str, Any]) -> PaperTable:
    columns = raw["columns"]
    rows = tuple(PaperRow(row[0], row[1], dict(zip(columns, row[2:], strict=True))) for row in raw["rows"])
    return PaperTable(name, raw["title"], raw["source"], raw.get("notes", ""), rows)
