"""Files of cases for the verifiers' command lines."""

import argparse
import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from nemo_vibethinker.atomic_files import atomic_files
from nemo_vibethinker.command import run_command
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
    """One JSON object a case: id, verdict, reason; complete or not there. Raises ValueError if it can't be written."""
    try:
        with atomic_files([Path(path)]) as (file,):
            for case, verdict in zip(cases, verdicts, strict=True):
                row = {"id": case["id"], "verdict": verdict.kind, "reason": verdict.reason}
                file.write(json.dumps(row).encode() + b"\n")
    except OSError as error:
        raise ValueError(f"{path}: can't be written: {error}") from None


def _graded(path: str, cases: list[Case], grade: Callable[[list[Case]], list[Verdict]]) -> list[Verdict]:
    try:
        return grade(cases)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def grade_file(description: str, grade: Callable[[list[Case]], list[Verdict]], check: Callable[[Case], str]) -> int:
    """The command line `--cases FILE --out FILE`; returns the exit code, 2 for a user's mistake.

    A ValueError of `grade` is one about the file of cases, and is reported with its name.
    """
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", required=True, metavar="FILE.jsonl", help="one case a line; other columns are ignored"
    )
    parser.add_argument(
        "--out", required=True, metavar="VERDICTS.jsonl", help="one {id, verdict, reason} a line, in order"
    )
    options = parser.parse_args()

    def work() -> None:
        cases = read_cases(options.cases, check)
        verdicts = _graded(options.cases, cases, grade)
        write_verdicts(options.out, cases, verdicts)
        print(verdict_counts(verdicts))

    return run_command(parser.prog, work)


def verdict_counts(verdicts: Sequence[Verdict]) -> str:
    """`right 3 wrong 1 ungraded 0`."""
    counts = Counter(verdict.kind for verdict in verdicts)
    return " ".join(f"{kind} {counts[kind]}" for kind in ("right", "wrong", "ungraded"))
