"""The one record type every dataset is read into, and its JSON-lines form."""

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.data.code_tests import Test, parse_tests

MATH_DOMAINS = ("algebra", "geometry", "calculus", "statistics")
DOMAINS = (*MATH_DOMAINS, "math", "code")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One task, with a reference solution when it is meant for SFT.

    `domain` is one of `DOMAINS` ("math" when the branch of mathematics is unknown). `answer` is the gold final
    answer, empty for code; `tests` are in the forms of `data.code_tests`, empty for mathematics. `difficulty` 0 means
    unknown.
    """

    id: str
    domain: str
    prompt: str
    response: str = ""
    answer: str = ""
    tests: tuple[Test, ...] = ()
    difficulty: int = 0
    strategy: str = ""
    source: str = ""


FIELD_NAMES = tuple(field.name for field in fields(Record))
RECORD_FIELDS = frozenset(FIELD_NAMES)
_TEXTS = RECORD_FIELDS - {"tests", "difficulty"}


def split_messages(messages: Any) -> tuple[str, str]:
    """(prompt, response) of a conversation of one user turn and at most one answer; ValueError for any other."""
    if not isinstance(messages, Sequence) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages is not a list of role and content")
    roles = [message.get("role") for message in messages]
    if roles.count("user") != 1:
        raise ValueError(f"{'more than one' if 'user' in roles else 'no'} user turn")
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(f"turns are {', '.join(map(str, roles))}; expected user, or user and assistant")
    contents = [message.get("content") for message in messages]
    if not all(isinstance(content, str) for content in contents):
        raise ValueError("content of a message is not text")
    return contents[0].strip(), contents[1].strip() if len(contents) == 2 else ""


def record_from_dict(row: dict[str, Any]) -> Record:
    """Check one decoded JSON object and build its record; ValueError names the offending field.

    `messages` (see `split_messages`) may stand in the place of `prompt` and `response`.
    """
    if "messages" in row:
        row = _without_messages(row)
    if unknown := sorted(row.keys() - RECORD_FIELDS):
        raise ValueError(f"unknown field {', '.join(unknown)}; a record has {', '.join(sorted(RECORD_FIELDS))}")
    if missing := sorted({"id", "domain", "prompt"} - row.keys()):
        raise ValueError(f"missing field {', '.join(missing)}")
    for name in _TEXTS & row.keys():
        if not isinstance(row[name], str):
            raise ValueError(f"field {name} must be a string, got {row[name]!r}")
    difficulty = row.get("difficulty", 0)
    if not isinstance(difficulty, int) or isinstance(difficulty, bool):
        raise ValueError(f"field difficulty must be an integer, got {difficulty!r}")
    if row["domain"] not in DOMAINS:
        raise ValueError(f"field domain must be one of {', '.join(DOMAINS)}, got {row['domain']!r}")
    return Record(**{**row, "tests": checked_tests(row.get("tests"))})


def _without_messages(row: dict[str, Any]) -> dict[str, Any]:
    if double := sorted({"prompt", "response"} & row.keys()):
        raise ValueError(f"messages and {double[0]} both given; give one of them")
    prompt, response = split_messages(row["messages"])
    rest = {name: value for name, value in row.items() if name != "messages"}
    return rest | {"prompt": prompt, "response": response}


def checked_tests(tests: Any) -> tuple[Test, ...]:
    """A list of tests in canonical form; ValueError for what is no list, or no tests."""
    if not tests and (tests is None or isinstance(tests, list | tuple)):
        return ()
    if not isinstance(tests, list | tuple):
        raise ValueError(f"field tests must be a list, got {str(tests)[:60]!r}")
    return parse_tests(tests)


def record_to_json(record: Record) -> str:
    """The record as one JSON object without line ends."""
    return json.dumps({name: getattr(record, name) for name in FIELD_NAMES}, ensure_ascii=False)


def write_jsonl(path: str | Path, records: Iterable[Record]) -> int:
    """Write one JSON object per line, as the records come; returns their number.

    The file appears complete or not at all (`atomic_files`).
    """
    path, count = Path(path), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_files([path]) as (file,):
        for record in records:
            file.write(record_to_json(record).encode() + b"\n")
            count += 1
    return count


def iterate_jsonl(path: str | Path) -> Iterator[Record]:
    """The records of a file of `write_jsonl`, one at a time; ValueError names file:line of the first bad line.

    Blank lines are skipped.
    """
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not a JSON object")
                yield record_from_dict(row)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error


def read_jsonl(path: str | Path) -> list[Record]:
    """All records of `iterate_jsonl`."""
    return list(iterate_jsonl(path))
