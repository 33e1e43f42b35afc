"""The one record type every dataset is read into, and its JSON-lines form."""

import json
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
DOMAINS = (*MATH_DOMAINS, "math", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One task, with a reference solution when it is meant for SFT.

    `domain` is one of `DOMAINS` ("math" when the branch of mathematics is unknown). `answer` is the gold final
    answer, empty for code; `tests` are assert statements, empty for mathematics. `difficulty` 0 means unknown.
    """

    id: str
    domain: str
    prompt: str
    response: str = ""
    answer: str = ""
    tests: tuple[str, ...] = ()
    difficulty: int = 0
    strategy: str = ""
    source: str = ""


RECORD_FIELDS = frozenset(field.name for field in fields(Record))


def record_from_dict(row: dict[str, Any]) -> Record:
    """Check one decoded JSON object and build its record; ValueError names the offending field."""
    if unknown := sorted(row.keys() - RECORD_FIELDS):
        raise ValueError(f"unknown field {', '.join(unknown)}; a record has {', '.join(sorted(RECORD_FIELDS))}")
    if missing := sorted({"id", "domain", "prompt"} - row.keys()):
        raise ValueError(f"missing field {', '.join(missing)}")
    tests, difficulty = row.get("tests", ()), row.get("difficulty", 0)
    for name in RECORD_FIELDS - {"tests", "difficulty"} & row.keys():
        if not isinstance(row.get(name, ""), str):
            raise ValueError(f"field {name} must be a string, got {row[name]!r}")
    if not isinstance(difficulty, int) or isinstance(difficulty, bool):
        raise ValueError(f"field difficulty must be an integer, got {difficulty!r}")
    if not isinstance(tests, list | tuple) or not all(isinstance(test, str) for test in tests):
        raise ValueError(f"field tests must be a list of strings, got {tests!r}")
    if row["domain"] not in DOMAINS:
        raise ValueError(f"field domain must be one of {', '.join(DOMAINS)}, got {row['domain']!r}")
    values: dict[str, Any] = {**row, "tests": tuple(tests)}
    return Record(**values)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> None:
    """Write one JSON object per line; the file appears complete or not at all (temporary file, fsync, rename)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(record), ensure_ascii=False) + "\n" for record in records)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def read_jsonl(path: str | Path) -> list[Record]:
    """Read a file of `write_jsonl`; ValueError names file:line of the first bad line. Blank lines are skipped."""
    records = []
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                records.append(record_from_dict(row))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    return records
