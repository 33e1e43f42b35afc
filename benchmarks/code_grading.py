"""Programs graded per second, by kind of sandbox: references of HumanEval and MBPP, and short programs on stdin.

`NVT_DATA_DIR=... python benchmarks/code_grading.py [--repeat 3] [--workers 2]`; the best of several repeats counts,
since other work on the machine only ever slows one down.
"""

import argparse
import json
import os
import sys
import time
import warnings
from collections import Counter
from pathlib import Path

from nemo_vibethinker.data.code_tests import Test, parse_tests
from nemo_vibethinker.reward.code import CodeVerifier
from nemo_vibethinker.reward.sandbox import Limits, SandboxChoice, SandboxError, find_sandbox

_Case = tuple[tuple[Test, ...], str]
_KINDS: tuple[SandboxChoice, ...] = ("bubblewrap", "landlock", "none")


def _rows(name: str) -> list[dict]:
    path = Path(os.environ.get("NVT_DATA_DIR", "data")) / "code" / f"{name}.jsonl"
    if not path.exists():
        sys.exit(f"no {path}; set NVT_DATA_DIR to a folder with code/humaneval.jsonl and code/mbpp.jsonl")
    return [json.loads(line) for line in path.read_text().splitlines()]


def _humaneval() -> list[_Case]:
    return [
        (parse_tests(row["test"], entry_point=row["entry_point"]), row["prompt"] + row["canonical_solution"])
        for row in _rows("humaneval")
    ]


def _mbpp() -> list[_Case]:
    return [(tuple(filter(None, (row["test_setup_code"], *row["test_list"]))), row["code"]) for row in _rows("mbpp")]


def _stdin(count: int = 400) -> list[_Case]:
    """Distinct programs that read two numbers and print a line, with two inputs each."""
    return [
        (
            tuple({"stdin": f"{a} {a + 1}\n", "stdout": f"{a * (a + 1) + n}\n"} for a in (n, n + 7)),
            f"a, b = map(int, input().split())\nprint(a * b + {n})\n",
        )
        for n in range(count)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=3, help="runs, of which the best counts (default: 3)")
    parser.add_argument("--workers", type=int, default=2, help="sandboxes at a time (default: 2)")
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS, help="kinds of sandbox (default: all)")
    options = parser.parse_args()
    warnings.simplefilter("ignore", RuntimeWarning)  # `none` is among the kinds on purpose
    sets = {"humaneval": _humaneval(), "mbpp": _mbpp(), "stdin": _stdin()}
    for kind in options.kinds:
        try:
            verifier = CodeVerifier(find_sandbox(kind), Limits(), options.workers)
        except SandboxError as error:
            print(f"{kind}: {error}")
            continue
        for name, cases in sets.items():
            best, kinds = 0.0, Counter()
            for _ in range(options.repeat):
                start = time.perf_counter()
                kinds = Counter(verdict.kind for verdict in verifier.grade_programs(cases))
                best = max(best, len(cases) / (time.perf_counter() - start))
            print(f"{kind:10} {name:9} {best:6.1f} programs/s  {dict(kinds)} of {len(cases)}", flush=True)


if __name__ == "__main__":
    main()
