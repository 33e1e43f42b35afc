"""Files of cases for the verifiers' command lines."""

import argparse
import json
from collections.abc import Callable, Iterable
from typing import Any

from nemo_vibethinker.reward.verdict import Verdict

Case = dict[str, Any]


def read_cases(path: str, check: Callable[[Case], str]) -> list[Case]:
    """The objects of a JSON-lines file. Raises ValueError that names file and line for an unreadable or bad one;
    `check` says what is wrong with a case, or nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: can't be read: {error}") from None
    return [_case(f"{path}:{number}", line, check) for number, line in lines]


def _case(where: str, line: str, check: Callable[[Case], str]) -> Case:
    try:
        case = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where}: not JSON: {error}") from None
    if not isinstance(case, dict):
        raise ValueError(f"{where}: not a JSON object")
    problem = "" if "id" in case else "no 'id'"
    problem = problem or check(case)
    if problem:
        raise ValueError(f"{where}: {problem}")
    return case


def write_verdicts(path: str, cases: Iterable[Case], verdicts: Iterable[Verdict]) -> None:
    """One JSON object a case: id, verdict, reason. Raises ValueError if `path` can't be written."""
    try:
        with open(path, "w", encoding="utf-8") as file:
            for case, verdict in zip(cases, verdicts, strict=True):
                row = {"id": case["id"], "verdict": verdict.kind, "reason": verdict.reason}
                file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise ValueError(f"{path}: can't be written: {error}") from None


def grade_file(description: str, grade: Callable[[list[Case]], list[Verdict]], check: Callable[[Case], str]) -> int:
    """The command line `--cases FILE --out FILE`; returns the exit code, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--cases", required=True, metavar="FILE.jsonl")
    parser.add_argument("--out", required=True, metavar="VERDICTS.jsonl")
    options = parser.parse_args()
    try:
        cases = read_cases(options.cases, check)
        verdicts = grade(cases)
        write_verdicts(options.out, cases, verdicts)
    except (ValueError, RuntimeError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    counts = {kind: sum(verdict.kind == kind for verdict in verdicts) for kind in ("right", "wrong", "ungraded")}
    print(" ".join(f"{kind} {count}" for kind, count in counts.items()))
    return 0
