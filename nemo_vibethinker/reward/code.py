"""Grading programs by their tests, inside a sandbox.

The tests (see `data.code_tests`) are evaluated in a trusted process of the sandbox; the program runs in children of it
that only answer calls with values, or read standard input and print (see `_harness`; `_compare` says when a value or an
output is the expected one). Guarded: ending the process early, printed text, `__eq__` that is always true, replaced
builtins or standard modules, raising at the end, reading the tests or expected values, writing to the channel of the
verdict, signals to the trusted processes. Not guarded: a program that returns right values for the tested arguments by
other means than computing them (a table of memorised answers), and comparisons that a test itself leaves to the
program, such as two objects of a class that the program defines. Where x86-64's seccomp filter is missing, a program
could also trace its parent.

A program is wrong if it fails a test, raises, exits with another code than 0, or needs more than a limit allows; what
the sandbox or a test itself does wrong leaves it ungraded.

Command line: `python -m nemo_vibethinker.reward.code --cases FILE.jsonl --out VERDICTS.jsonl`.
"""

import argparse
import codecs
import math
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import get_args

from nemo_vibethinker.command import run_command
from nemo_vibethinker.data.code_tests import Test, parse_tests
from nemo_vibethinker.progress import Progress
from nemo_vibethinker.reward._cases import Case, read_cases, verdict_counts, write_verdicts
from nemo_vibethinker.reward._payload import Task, chunk, settings
from nemo_vibethinker.reward.sandbox import Execution, Limits, Sandbox, SandboxChoice, SandboxError, find_sandbox
from nemo_vibethinker.reward.verdict import Verdict

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_BATCH = 32  # programs in one start of the sandbox
_SLICE = 256  # programs between two lines of progress
_START_S = 10.0  # seconds for the sandbox to start on a busy machine
_TRUSTED_PROCESSES = 3  # warden, harness, examiner
_TRUSTED_MB = 32  # their memory, which the limit of all processes together also counts
_PYTHON = {"python", "python3", "py"}
_HARNESS = ("_wire", "_compare", "_examiner", "_candidate", "_runs", "_harness")


def extract_program(completion: str) -> str | None:
    """The last fenced block marked as Python, else the last fenced block, else None."""
    blocks = _BLOCK.findall(completion)
    marked = [text for language, text in blocks if language.lower() in _PYTHON]
    return marked[-1] if marked else blocks[-1][1] if blocks else None


class CodeVerifier:
    """Grades programs by tests in the canonical forms of `data.code_tests`; thread-safe.

    `workers` programs run at a time, each under `limits`, of which `wall_s` is for one run: with all its calls and
    assertions, or with one standard input. A sandbox serves up to thirty-two programs one after the other.
    """

    def __init__(self, sandbox: Sandbox | None = None, limits: Limits | None = None, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self._sandbox = sandbox or find_sandbox()
        self._limits = limits or Limits()
        self._workers = workers

    def grade(self, tests: Sequence[Test], completion: str) -> Verdict:
        """The verdict on the program in the fenced block of `completion`; no block is wrong."""
        return self.grade_program(tests, extract_program(completion))

    def grade_program(self, tests: Sequence[Test], program: str | None) -> Verdict:
        """The verdict on `program`: right if it passes every test; assertions run in order and in one namespace."""
        return self.grade_programs([(tests, program)])[0]

    def grade_many(self, items: Sequence[tuple[Sequence[Test], str]]) -> list[Verdict]:
        """Verdicts on (tests, completion) pairs in their order; equal programs under equal tests run once."""
        return self.grade_programs([(tests, extract_program(completion)) for tests, completion in items])

    def grade_programs(self, items: Sequence[tuple[Sequence[Test], str | None]]) -> list[Verdict]:
        """Verdicts on (tests, program) pairs in their order; None for a program is wrong."""
        keys = [(repr(tuple(tests)), program) for tests, program in items]
        pending: dict[tuple[str, str | None], Task] = {}
        verdicts: dict[tuple[str, str | None], Verdict] = {}
        for key, (tests, program) in dict(zip(keys, items, strict=True)).items():
            try:
                if program is None:
                    verdicts[key] = Verdict("wrong", "no code block")
                else:
                    pending[key] = Task.of(tests, program)
            except ValueError as error:
                verdicts[key] = Verdict("ungraded", str(error))
        verdicts |= dict(zip(pending, self._grade_tasks(list(pending.values())), strict=True))
        return [verdicts[key] for key in keys]

    def _grade_tasks(self, tasks: list[Task]) -> list[Verdict]:
        size = max(1, min(_BATCH, math.ceil(len(tasks) / self._workers)))
        batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
        with ThreadPoolExecutor(self._workers) as pool:
            return [verdict for graded in pool.map(self._grade_batch, batches) for verdict in graded]

    def _grade_batch(self, batch: list[Task]) -> list[Verdict]:
        """Grade in one sandbox; the first left without verdict is graded apart, what follows it in another batch."""
        verdicts: list[Verdict] = []
        while len(verdicts) < len(batch):
            rest = batch[len(verdicts) :]
            verdicts += self._grade_together(rest)
            if len(verdicts) < len(batch):
                verdicts += self._grade_together(batch[len(verdicts) : len(verdicts) + 1])
        return verdicts

    def _grade_together(self, batch: list[Task]) -> list[Verdict]:
        """Verdicts on the first ones of `batch`; on the only one, always."""
        try:
            run = self._sandbox.run_trusted(_HARNESS, stdin=self._payload(batch), limits=self._for(batch))
        except SandboxError as error:
            return [Verdict("ungraded", str(error))] * len(batch)
        verdicts = _verdicts(run.stdout)
        return verdicts or ([_without_verdict(run)] if len(batch) == 1 else [])

    def _payload(self, batch: list[Task]) -> bytes:
        head = settings(
            deadlines_s=[self._limits.wall_s * task.runs for task in batch],
            wall_s=self._limits.wall_s,
            output_bytes=self._limits.output_kb << 10,
            program_filter=self._sandbox.program_filter,
            own_namespace=self._sandbox.kind == "bubblewrap",
        )
        return head + b"".join(chunk(task.encoded()) for task in batch)

    def _for(self, batch: list[Task]) -> Limits:
        """The limits with room for the trusted processes, which enforce the time of each program."""
        return replace(
            self._limits,
            wall_s=self._limits.wall_s * sum(task.runs for task in batch) + _START_S,
            processes=self._limits.processes + _TRUSTED_PROCESSES,
            memory_mb=self._limits.memory_mb + _TRUSTED_MB,
            output_kb=max(64, self._limits.output_kb),
        )


def _verdicts(stdout: str) -> list[Verdict]:
    """Verdicts of the harness's lines, as far as they are complete and in order; the first line on a program counts."""
    verdicts: list[Verdict] = []
    for line in stdout.split("\n")[:-1]:
        number, kind, reason = line.split("\t")
        assert kind in ("right", "wrong", "ungraded")
        if int(number) == len(verdicts):
            verdicts.append(Verdict(kind, codecs.decode(reason, "unicode_escape")))
    return verdicts


def _without_verdict(run: Execution) -> Verdict:
    """Only the program can have stopped the trusted process by a signal or by exhausting the limits."""
    if run.timed_out or run.returncode > 128:
        return Verdict("wrong", run.reason)
    return Verdict("ungraded", f"the harness failed: {run.reason} {run.stderr[-200:]}")


def _check(case: Case) -> str:
    try:
        if not parse_tests(case.get("tests"), entry_point=case.get("entry_point", "")):
            return "'tests' are missing or empty"
    except ValueError as error:
        return f"'tests': {error}"
    return (
        "" if isinstance(case.get("program", case.get("completion")), str) else "needs 'program' or 'completion', text"
    )


def _program(case: Case) -> str | None:
    return case["program"] if "program" in case else extract_program(case["completion"])


def _tests(case: Case) -> tuple[Test, ...]:
    return parse_tests(case["tests"], entry_point=case.get("entry_point", ""))


def _grade_cases(cases: list[Case], verifier: CodeVerifier) -> list[Verdict]:
    """Slice by slice, telling how far it is."""
    verdicts: list[Verdict] = []
    progress = Progress("grading", len(cases), unit="programs")
    for at in range(0, len(cases), _SLICE):
        graded = verifier.grade_programs([(_tests(case), _program(case)) for case in cases[at : at + _SLICE]])
        verdicts += graded
        progress.advance(len(graded))
    return verdicts


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m nemo_vibethinker.reward.code",
        description="Grade programs by their tests: a verdict (right, wrong, ungraded) and its reason for each case.",
        epilog='A case: {"id": 1, "program": "print(int(input()) ** 3)", "tests": [{"stdin": "2", "stdout": "8"}]}; '
        '"completion" in place of "program" is a text whose last Python block is taken. Tests are also assertions and '
        "calls, in the layouts of nemo_vibethinker.data.code_tests.",
    )
    parser.add_argument("--cases", required=True, metavar="FILE.jsonl", help="cases to grade")
    parser.add_argument("--out", required=True, metavar="VERDICTS.jsonl", help="id, verdict and reason of each case")
    parser.add_argument(
        "--sandbox",
        choices=get_args(SandboxChoice),
        default="auto",
        help="auto: bubblewrap, else landlock; none runs WITHOUT ISOLATION (default: auto)",
    )
    parser.add_argument("--workers", type=int, default=2, help="sandboxes at a time (default: 2)")
    parser.add_argument("--wall-s", type=float, default=Limits.wall_s, help="seconds for a run (default: %(default)g)")
    parser.add_argument(
        "--memory-mb", type=int, default=Limits.memory_mb, help="MB of memory for a program (default: %(default)d)"
    )
    return parser


def main() -> int:
    """The command line; returns the exit code, 2 for a user's mistake."""
    parser = _arguments()
    options = parser.parse_args()
    return run_command(parser.prog, lambda: _command(options))


def _command(options: argparse.Namespace) -> None:
    cases = read_cases(options.cases, _check)
    limits = Limits(wall_s=options.wall_s, memory_mb=options.memory_mb)
    try:
        sandbox = find_sandbox(options.sandbox)
    except SandboxError as error:
        raise ValueError(str(error)) from None  # a mistake of the caller's: --sandbox names another
    verdicts = _grade_cases(cases, CodeVerifier(sandbox, limits, options.workers))
    write_verdicts(options.out, cases, verdicts)
    print(verdict_counts(verdicts))


if __name__ == "__main__":
    sys.exit(main())
