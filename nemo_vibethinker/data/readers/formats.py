"""The known formats, each told by its columns."""

import re
from typing import Any

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.data.readers.fields import MATH_SUBJECT_DOMAINS, Fields, Format, Kind, text
from nemo_vibethinker.data.records import DOMAINS, RECORD_FIELDS, record_from_dict

_BRACED_BOX = re.compile(r"\\boxed\s*\{")
_CALCULATOR_MARK = re.compile(r"<<[^<>]*>>")
_NUMBER = re.compile(r"\d+")


def _records(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    record = record_from_dict(row)
    return [{name: getattr(record, name) for name in RECORD_FIELDS if name != "source" or record.source}]


def _gsm8k(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    solution, mark, final = text(row, "answer").rpartition("####")
    answer = final.strip().replace(",", "")
    if not mark or not answer:
        raise ValueError("no answer: no '#### N' line")
    if "<<" in solution:
        solution = _CALCULATOR_MARK.sub("", solution)
    solution = solution.strip()
    response = f"{solution}\n\\boxed{{{answer}}}" if solution else ""
    return [{"domain": "math", "prompt": text(row, "question"), "response": response, "answer": answer}]


def _math(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
    solution = text(row, "solution")
    answer = text(row, "answer") or last_boxed(solution) or ""
    if not answer:
        raise ValueError("no answer: no answer column and no \\boxed in the solution")
    if solution and not _BRACED_BOX.search(solution):  # \fbox and "\boxed 5" occur, and no grader reads them
        solution = f"{solution}\n\\boxed{{{answer}}}"
    level = _NUMBER.search(str(row.get("level", "")))
    return [
        {
            "domain": MATH_SUBJECT_DOMAINS.get(text(row, "subject") or text(row, "type"), "math"),
            "prompt": text(row, "problem"),
            "response": solution,
            "answer": answer,
            "difficulty": int(level.group()) if level else 0,
        }
    ]


def _chat(row: dict[str, Any], kind: Kind | None) -> list[Fields]:
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
    domain = text(row, "domain") or ("code" if tests else "math")
    if domain not in DOMAINS:
        raise ValueError(f"unknown domain {domain}; known: {', '.join(DOMAINS)}")
    return [
        {
            "domain": domain,
            "prompt": text(messages[0], "content"),
            "response": text(messages[1], "content") if len(messages) == 2 else "",
            "answer": text(row, "answer"),
            "tests": tuple(tests),
        }
    ]


FORMATS = (
    Format(name="chat", rule="messages", matches=lambda row: "messages" in row, read=_chat),
    Format(
        name="records",
        rule="id, domain, prompt",
        matches=lambda row: {"id", "domain", "prompt"} <= row.keys() <= RECORD_FIELDS,
        read=_records,
    ),
    Format(
        name="math",
        rule="problem, solution or answer",
        matches=lambda row: "problem" in row and bool(row.keys() & {"solution", "answer"}),
        read=_math,
    ),
    Format(
        name="gsm8k", rule="question, answer", matches=lambda row: {"question", "answer"} <= row.keys(), read=_gsm8k
    ),
)


def sniff(row: dict[str, Any]) -> Format:
    """The format of a row; ValueError lists the columns seen and the known formats."""
    for known in FORMATS:
        if known.matches(row):
            return known
    rules = "; ".join(f"{known.rule} ({known.name})" for known in FORMATS)
    raise ValueError(f"has columns {', '.join(sorted(row))}; known formats: {rules}")
