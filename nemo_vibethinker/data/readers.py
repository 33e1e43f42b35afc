"""Read users' datasets: GSM8K, MATH, chat messages, and the project's own records, all as JSON lines.

The format is told by the columns of the first row that is a JSON object. Rows that cannot be used are listed, never
silently lost.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.data.records import DOMAINS, RECORD_FIELDS, Record, record_from_dict

Kind = Literal["sft", "rl"]

# MATH has no calculus: Precalculus is the nearest. GSM8K names no branch and is read as "math".
MATH_SUBJECT_DOMAINS = {
    "Algebra": "algebra",
    "Intermediate Algebra": "algebra",
    "Prealgebra": "algebra",
    "Number Theory": "algebra",
    "Geometry": "geometry",
    "Precalculus": "calculus",
    "Counting & Probability": "statistics",
}
_BRACED_BOX = re.compile(r"\\boxed\s*\{")
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")


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


def read_dataset(path: str | Path, *, kind: Kind) -> ReadResult:
    """Read a dataset for SFT (a reference solution is needed) or RL (an answer, or tests, are needed).

    ValueError for a missing or empty file, columns of no known format, or a file without one usable row.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"dataset {path} does not exist or is not a file")
    lines = [(number, line) for number, line in enumerate(path.read_bytes().splitlines(), start=1) if line.strip()]
    if not lines:
        raise ValueError(f"dataset {path} is empty")
    rows, dropped = _decode(lines)
    name, records = "", {}
    for number, row in rows:
        name = name or _sniff(path, row)
        given = [str(row[column]) for column in ("id", "unique_id") if row.get(column) is not None]
        identity = given[0] if given else f"{path.stem}:{number}"
        try:
            record = _checked(replace(_READERS[name](row), id=identity, source=_text(row, "source") or name), kind)
            if identity in records:
                raise ValueError("an earlier row has the same id")
            records[identity] = record
        except ValueError as error:
            dropped.append(DroppedRow(line=number, id=identity, reason=str(error)))
    dropped.sort(key=lambda row: row.line or 0)
    if not records:
        raise ValueError(f"dataset {path} has no usable row for {kind}; line {dropped[0].line}: {dropped[0].reason}")
    return ReadResult(records=list(records.values()), dropped=dropped, format=name)


def _decode(lines: list[tuple[int, bytes]]) -> tuple[list[tuple[int, dict[str, Any]]], list[DroppedRow]]:
    rows, dropped = [], []
    for number, line in lines:
        try:
            row = json.loads(line.decode("utf-8-sig"))
        except ValueError as error:
            dropped.append(DroppedRow(line=number, id="", reason=f"bad JSON: {error}"))
            continue
        if isinstance(row, dict):
            rows.append((number, row))
        else:
            dropped.append(DroppedRow(line=number, id="", reason="bad JSON: not an object"))
    return rows, dropped


def _sniff(path: Path, row: dict[str, Any]) -> str:
    columns = row.keys()
    if "messages" in columns:
        return "chat"
    if {"id", "domain", "prompt"} <= columns <= RECORD_FIELDS:
        return "records"
    if "problem" in columns and columns & {"solution", "answer"}:
        return "math"
    if {"question", "answer"} <= columns:
        return "gsm8k"
    known = (
        "messages (chat); id, domain, prompt (records); problem, solution or answer (MATH); question, answer (GSM8K)"
    )
    raise ValueError(f"dataset {path} has columns {', '.join(sorted(columns))}; known formats: {known}")


def _text(row: dict[str, Any], column: str) -> str:
    """The column as stripped text, empty if absent; numbers are accepted, anything else is a ValueError."""
    value = row.get(column)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if value is not None and not isinstance(value, str):
        raise ValueError(f"column {column} is not text")
    return (value or "").strip()


def _checked(record: Record, kind: Kind) -> Record:
    if not record.prompt:
        raise ValueError("empty question")
    if kind == "sft" and not record.response:
        raise ValueError("no solution")
    if kind == "rl" and record.domain == "code" and not record.tests:
        raise ValueError("no tests")
    if kind == "rl" and record.domain != "code" and not record.answer:
        raise ValueError("no answer")
    return record


def _gsm8k(row: dict[str, Any]) -> Record:
    solution, mark, final = _text(row, "answer").rpartition("####")
    answer = final.strip().replace(",", "")
    if not mark or not answer:
        raise ValueError("no answer: no '#### N' line")
    solution = _CALCULATOR_MARK.sub("", solution).strip()
    response = f"{solution}\n\\boxed{{{answer}}}" if solution else ""
    return Record(id="", domain="math", prompt=_text(row, "question"), response=response, answer=answer)


def _math(row: dict[str, Any]) -> Record:
    solution = _text(row, "solution")
    answer = _text(row, "answer") or last_boxed(solution) or ""
    if not answer:
        raise ValueError("no answer: no answer column and no \\boxed in the solution")
    if solution and not _BRACED_BOX.search(solution):  # \fbox and "\boxed 5" occur, and no grader reads them
        solution = f"{solution}\n\\boxed{{{answer}}}"
    level = re.search(r"\d+", str(row.get("level", "")))
    return Record(
        id="",
        domain=MATH_SUBJECT_DOMAINS.get(_text(row, "subject") or _text(row, "type"), "math"),
        prompt=_text(row, "problem"),
        response=solution,
        answer=answer,
        difficulty=int(level.group()) if level else 0,
    )


def _chat(row: dict[str, Any]) -> Record:
    messages = row.get("messages")
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError("messages is not a list of role and content")
    roles = [message.get("role") for message in messages]
    if roles.count("user") != 1:
        raise ValueError(f"{'more than one' if 'user' in roles else 'no'} user turn")
    if roles not in (["user"], ["user", "assistant"]):
        raise ValueError(f"turns are {', '.join(map(str, roles))}; expected user, or user and assistant")
    tests = row.get("tests") or []
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        raise ValueError("tests is not a list of strings")
    domain = _text(row, "domain") or ("code" if tests else "math")
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain}; known: {', '.join(DOMAINS)}")
    return Record(
        id="",
        domain=domain,
        prompt=_text(messages[0], "content"),
        response=_text(messages[1], "content") if len(messages) == 2 else "",
        answer=_text(row, "answer"),
        tests=tuple(tests),
    )


_READERS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "gsm8k": _gsm8k,
    "math": _math,
    "chat": _chat,
    "records": record_from_dict,
}
