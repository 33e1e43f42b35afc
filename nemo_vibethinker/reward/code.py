"""Grading programs by their tests, inside a sandbox.

The tests are evaluated in a trusted process of the sandbox; the program runs in a child of it that only answers calls
with values (see `_harness`). Guarded: ending the process early, printed text, `__eq__` that is always true, replaced
builtins or standard modules, raising at the end, reading the tests or expected values, writing to the channel of the
verdict. Not guarded: a program that returns right values for the tested arguments by other means than computing them
(a table of memorised answers), and comparisons that a test itself leaves to the program, such as two objects of a
class that the program defines. Where x86-64's seccomp filter is missing, a program could also trace its parent.

Command line: `python -m nemo_vibethinker.reward.code --cases FILE.jsonl --out VERDICTS.jsonl` with rows of
`{id, program, tests}` or `{id, completion, tests}`.
"""

import ast
import builtins
import marshal
import math
import re
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from nemo_vibethinker.reward._cases import Case, grade_file
from nemo_vibethinker.reward.sandbox import Execution, Limits, Sandbox, SandboxError, find_sandbox, trusted_code
from nemo_vibethinker.reward.verdict import Verdict

_BLOCK = re.compile(r"^[ \t]*```[ \t]*(\w*)[^\n]*\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)
_BATCH = 16  # programs in one start of the sandbox
_START_S = 10.0  # seconds for the sandbox to start on a busy machine
_PYTHON = {"python", "python3", "py"}


def extract_program(completion: str) -> str | None:
    """The last fenced block marked as Python, else the last fenced block, else None."""
    blocks = _BLOCK.findall(completion)
    marked = [text for language, text in blocks if language.lower() in _PYTHON]
    return marked[-1] if marked else blocks[-1][1] if blocks else None


class CodeVerifier:
    """Grades programs against test snippets such as `assert f(2) == 8`; thread-safe.

    `workers` programs run at a time, each under `limits`. A bubblewrap sandbox, whose pid namespace lets all processes
    of a program be killed, serves up to sixteen programs one after the other; a landlock sandbox serves one.
    """

    def __init__(self, sandbox: Sandbox | None = None, limits: Limits | None = None, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self._sandbox = sandbox or find_sandbox()
        self._limits = limits or Limits()
        self._workers = workers

    def grade(self, tests: Sequence[str], completion: str) -> Verdict:
        """The verdict on the program in the fenced block of `completion`; no block is wrong."""
        return self.grade_program(tests, extract_program(completion))

    def grade_program(self, tests: Sequence[str], program: str | None) -> Verdict:
        """The verdict on `program`: right if every snippet runs without an exception, in order and in one namespace."""
        return self.grade_programs([(tests, program)])[0]

    def grade_many(self, items: Sequence[tuple[Sequence[str], str]]) -> list[Verdict]:
        """Verdicts on (tests, completion) pairs in their order; equal programs under equal tests run once."""
        return self.grade_programs([(tests, extract_program(completion)) for tests, completion in items])

    def grade_programs(self, items: Sequence[tuple[Sequence[str], str | None]]) -> list[Verdict]:
        """Verdicts on (tests, program) pairs in their order; None for a program is wrong."""
        keys = [(tuple(tests), program) for tests, program in items]
        verdicts = {key: _without_running(*key) for key in keys}
        distinct = [_Task(*key) for key, verdict in verdicts.items() if not verdict]
        size = min(_BATCH, math.ceil(len(distinct) / self._workers)) if self._sandbox.kind == "bubblewrap" else 1
        batches = [distinct[start : start + size] for start in range(0, len(distinct), max(1, size))]
        with ThreadPoolExecutor(self._workers) as pool:
            for batch, graded in zip(batches, pool.map(self._grade_batch, batches), strict=True):
                verdicts |= {(task.tests, task.program): verdict for task, verdict in zip(batch, graded, strict=True)}
        return [verdict for key in keys if (verdict := verdicts[key])]

    def _grade_batch(self, batch: list["_Task"]) -> list[Verdict]:
        """Grade in one sandbox; what that leaves without verdict is graded again, each in a sandbox of its own."""
        try:
            run = self._sandbox.run(
                trusted_code("_harness"), stdin=_payload(batch, self._limits), limits=self._for(batch)
            )
        except SandboxError as error:
            return [Verdict("ungraded", str(error))] * len(batch)
        verdicts = [_verdict(line) for line in run.stdout.splitlines()]
        if len(batch) > 1:
            return verdicts + [self._grade_batch([task])[0] for task in batch[len(verdicts) :]]
        return verdicts or [_without_verdict(run)]

    def _for(self, batch: list["_Task"]) -> Limits:
        """The limits with room for the trusted processes, which enforce the time of each program."""
        wall_s = self._limits.wall_s * len(batch) + _START_S
        return replace(self._limits, wall_s=wall_s, processes=self._limits.processes + 2)


@dataclass(frozen=True)
class _Task:
    tests: tuple[str, ...]
    program: str | None


def _without_running(tests: tuple[str, ...], program: str | None) -> Verdict | None:
    if program is None:
        return Verdict("wrong", "no code block")
    if not tests:
        return Verdict("ungraded", "no tests")
    try:
        compile("\n".join(tests), "tests", "exec")
    except (SyntaxError, ValueError) as error:
        return Verdict("ungraded", f"a test does not compile: {error}")
    return None


def _without_verdict(run: Execution) -> Verdict:
    """Only the program can have stopped the trusted process by a signal or by exhausting the limits."""
    if run.timed_out or run.returncode > 128:
        return Verdict("wrong", run.reason)
    return Verdict("ungraded", f"the harness failed: {run.reason} {run.stderr[-200:]}")


def _verdict(line: str) -> Verdict:
    kind, _, reason = line.partition("\t")
    assert kind in ("right", "wrong", "ungraded")
    return Verdict(kind, reason)


def _payload(batch: list[_Task], limits: Limits) -> bytes:
    programs = [(task.program or "").encode("utf-8", "surrogatepass") for task in batch]
    tests = [marshal.dumps((list(task.tests), *_names_wanted(task.tests))) for task in batch]
    parts = list(zip(programs, tests, strict=True))
    head = marshal.dumps(([(len(program), len(test)) for program, test in parts], limits.wall_s))
    return b"%020d" % len(head) + head + b"".join(program + test for program, test in parts)


def _names_wanted(tests: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names that the tests take from the program, and standard modules they use without importing them.

    Builtins and standard modules of the tests are the trusted process's own: a program's `all` or `math` must not
    decide. Only if the tests call nothing but builtins may the program have redefined one: the function under test.
    """
    nodes = [node for test in tests for node in ast.walk(ast.parse(test))]
    stored = {node.id for node in nodes if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load)}
    used = {node.id for node in nodes if isinstance(node, ast.Name)}
    called = {node.func.id for node in nodes if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    bases = {node.value.id for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    trusted = {name for name in used if hasattr(builtins, name)}
    if called <= trusted:
        trusted -= called
    modules = (bases & sys.stdlib_module_names) - called - stored
    return sorted(used - trusted - modules), sorted(modules)


def _check(case: Case) -> str:
    tests, text = case.get("tests"), case.get("program", case.get("completion"))
    if not isinstance(tests, list) or not all(isinstance(test, str) for test in tests):
        return "'tests' must be a list of strings"
    return "" if isinstance(text, str) else "needs 'program' or 'completion', a string"


def _grade_cases(cases: list[Case]) -> list[Verdict]:
    programs = [case["program"] if "program" in case else extract_program(case["completion"]) for case in cases]
    return CodeVerifier().grade_programs(
        [(case["tests"], program) for case, program in zip(cases, programs, strict=True)]
    )


if __name__ == "__main__":
    sys.exit(grade_file("Grade programs by their tests.", _grade_cases, _check))
