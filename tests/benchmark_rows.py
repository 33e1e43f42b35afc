"""Rows in the published layouts of the benchmarks, written by hand, and a small folder of LiveCodeBench releases."""

import base64
import json
import pickle
import zlib
from pathlib import Path
from typing import Any

# The columns of the hub's sets: HuggingFaceH4/aime_2024, MathArena/hmmt_feb_2025, HuggingFaceH4/MATH-500.
AIME24 = [
    {"id": 60, "problem": "Find $1+1$.", "solution": "It is 2.", "answer": "2", "url": "", "year": "2024"},
    {"id": 61, "problem": "Find $2+2$.", "solution": "It is 4.", "answer": "4", "url": "", "year": "2024"},
]
HMMT25 = [
    {"problem_idx": 1, "problem": "Compute $3 \\cdot 5$.", "answer": "15", "problem_type": ["Number Theory"]},
    {"problem_idx": 2, "problem": "Compute $\\sqrt{8}$.", "answer": "2\\sqrt{2}", "problem_type": ["Algebra"]},
]


def gpqa_row(number: int) -> dict[str, Any]:
    """A row of Idavidrein/gpqa; the right option says so."""
    wrong = {f"Incorrect Answer {place}": f"wrong {place} of {number}" for place in (1, 2, 3)}
    return {"Record ID": f"rec{number}", "Question": f"Question {number}?", "Correct Answer": f"right {number}"} | wrong


def packed(tests: list[dict[str, str]]) -> str:
    """Hidden tests as LiveCodeBench stores them."""
    return base64.b64encode(zlib.compress(pickle.dumps(json.dumps(tests)))).decode()


def code_row(identity: str, date: str, function: str = "") -> dict[str, Any]:
    """A problem of livecodebench/code_generation_lite: double a number; on standard input, or as a function's value."""
    kind = "functional" if function else "stdin"
    tests = [{"input": f"{n}", "output": f"{2 * n}", "testtype": kind} for n in (1, 2, 3)]
    signature = f"class Solution:\n    def {function}(self, x: int) -> int:\n        " if function else ""
    return {
        "question_title": identity,
        "question_content": f"Double a number ({identity}).",
        "platform": "leetcode" if function else "atcoder",
        "question_id": identity,
        "contest_id": "c",
        "contest_date": f"{date}T00:00:00",
        "starter_code": signature,
        "difficulty": "easy",
        "public_test_cases": json.dumps(tests[:1]),
        "private_test_cases": packed(tests[1:]),
        "metadata": json.dumps({"func_name": function} if function else {}),
    }


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """JSON lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_livecodebench(folder: Path) -> Path:
    """Files of releases 1, 5 and 6; release 6 has a problem of January 2025, as the published one has."""
    write_rows(folder / "test.jsonl", [code_row("old", "2023-05-07")])
    write_rows(folder / "test5.jsonl", [code_row("aug", "2024-08-03"), code_row("jan5", "2025-01-04", "double")])
    write_rows(folder / "test6.jsonl", [code_row("jan6", "2025-01-25"), code_row("feb", "2025-02-01", "double")])
    return folder


STDIN_PROGRAM = "```python\nprint(2 * int(input()))\n```"
CALL_PROGRAM = "```python\nclass Solution:\n    def double(self, x: int) -> int:\n        return 2 * x\n```"
