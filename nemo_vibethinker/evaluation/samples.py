"""Responses to a benchmark, kept one by one as they come, so that nothing is generated twice.

An evaluation folder holds for each model and benchmark `benchmarks/<model>/<benchmark>/` with

- `samples.jsonl`: a response a line, as of `SampleRow`;
- `problems.jsonl`: the problems (prompt and answer; tests stay in the benchmark's own file);
- `provenance.json`: the conditions, as of `Provenance`.
"""

import contextlib
import json
from collections.abc import Container, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.data.records import Record, read_jsonl, write_jsonl
from nemo_vibethinker.evaluation.provenance import Provenance
from nemo_vibethinker.reward.verdict import Kind
from nemo_vibethinker.run_folder import append_json_line

SAMPLES, PROBLEMS, PROVENANCE = "samples.jsonl", "problems.jsonl", "provenance.json"
_FREE = {"code_version", "verifier_version", "shard", "benchmark_source"}  # may differ between parts of one score


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRow:
    """Response number `sample` (from 0) to problem `id`, of `tokens` tokens; `finish_reason` is stop or length."""

    id: str
    sample: int
    response: str
    tokens: int
    finish_reason: str
    verdict: Kind
    reason: str


_FIELDS = frozenset(field.name for field in fields(SampleRow))
Unit = tuple[Record, int]  # a problem and the number of a response to it


def unit_record(unit: Unit) -> Record:
    """The problem under an id of this response's own: what a sampler draws depends on the id, not on the batch."""
    record, sample = unit
    return replace(record, id=f"{record.id}#{sample}")


def missing_units(records: Sequence[Record], samples: int, there: Container[tuple[str, int]]) -> list[Unit]:
    """The responses that are not there (by problem's id and number) yet, problem by problem."""
    return [(record, sample) for record in records for sample in range(samples) if (record.id, sample) not in there]


def batches(units: Sequence[Unit], size: int) -> Iterator[Sequence[Unit]]:
    """Consecutive units, `size` at a time."""
    return (units[start : start + size] for start in range(0, len(units), size))


class SampleFolder:
    """The responses of one model to one benchmark."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def begin(self, records: Sequence[Record], provenance: Provenance) -> None:
        """Prepare the folder, or go on in it.

        Raises:
            ValueError: what is there was made under other conditions.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.exists():
            refuse_other_conditions(self.folder, self.provenance(), provenance, also={"shard"})
        write_jsonl(self.folder / PROBLEMS, [replace(record, tests=()) for record in records])
        atomic_write_text(self.folder / PROVENANCE, json.dumps(asdict(provenance), indent=1) + "\n")

    def exists(self) -> bool:
        """Whether `begin` has been here."""
        return (self.folder / PROVENANCE).is_file()

    def provenance(self) -> Provenance:
        """The conditions."""
        return Provenance(**json.loads((self.folder / PROVENANCE).read_text()))

    def problems(self) -> list[Record]:
        """The problems, without tests."""
        return read_jsonl(self.folder / PROBLEMS)

    def rows(self) -> Iterator[SampleRow]:
        """The responses in the order in which they came; a line that a kill has torn is left out."""
        file = self.folder / SAMPLES
        if file.exists():
            with open(file, "rb") as lines:
                for line in lines:
                    with contextlib.suppress(json.JSONDecodeError):
                        yield row_from_dict(json.loads(line))

    def append(self, rows: Iterable[SampleRow]) -> None:
        """Keep some more."""
        for row in rows:
            append_json_line(self.folder / SAMPLES, asdict(row))

    def replace_rows(self, rows: Iterable[SampleRow]) -> None:
        """Put these in the place of all."""
        text = "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        atomic_write_text(self.folder / SAMPLES, text)


def row_from_dict(row: dict[str, Any]) -> SampleRow:
    """ValueError for other fields than a row's."""
    if row.keys() != _FIELDS:
        raise ValueError(f"a sample has {', '.join(sorted(_FIELDS))}; this one {', '.join(sorted(row))}")
    return SampleRow(**row)


def sample_folders(evaluation: Path) -> list[SampleFolder]:
    """Those of an evaluation folder, by model and benchmark in order of their names.

    Raises:
        ValueError: there are none.
    """
    found = sorted(path.parent for path in evaluation.glob(f"benchmarks/*/*/{PROVENANCE}"))
    if not found:
        raise ValueError(f"{evaluation} is no evaluation of benchmarks: it has no benchmarks/MODEL/BENCHMARK folders")
    return [SampleFolder(path) for path in found]


def refuse_other_conditions(where: Path, one: Provenance, other: Provenance, also: set[str] | None = None) -> None:
    """ValueError that names what differs, where the two do not belong to one score. `also` must agree too."""
    free = _FREE - (also or set())
    before, after = asdict(one), asdict(other)
    changed = [name for name in before if name not in free and before[name] != after[name]]
    if changed:
        lines = "; ".join(f"{name}: {before[name]!r} and {after[name]!r}" for name in changed)
        raise ValueError(f"{where} was made under other conditions ({lines}); choose another folder")
