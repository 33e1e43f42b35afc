import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_vibethinker.config import Config, RewardConfig, validate
from nemo_vibethinker.data.code_tests import parse_tests
from nemo_vibethinker.data.records import Record
from nemo_vibethinker.reward.code import CodeVerifier, extract_program
from nemo_vibethinker.reward.grader import Grader
from nemo_vibethinker.reward.sandbox import Limits, Sandbox, SandboxError, find_sandbox

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("NVT_DATA_DIR", ROOT.parent / "shared" / "data"))
CUBE = ["assert f(2) == 8", "assert f(3) == 27"]
RICH_PROGRAM = """
import math
from collections import Counter
from decimal import Decimal
from fractions import Fraction
def sort(values): values.sort()
class Node:
    def __init__(self, value): self.value, self.left = value, None
    def __eq__(self, other): return self.value == other.value
def total(node): return node.value + (total(node.left) if node.left else 0)
def apply(function, values): return [function(value) for value in values]
def count(text): return Counter(text)
def naturals(n): yield from range(n)
def fail(): raise KeyError("x")
def numbers(): return [Fraction(1, 3), Decimal("0.1"), 2**200, 1.5, 1j, None, {1: ("a", b"b")}, {2}, True]
"""
RICH_TESTS = [
    "values = [3, 1]\nassert sort(values) is None\nassert values == [1, 3]",
    "node = Node(3)\nnode.left = Node(4)\nassert total(node) == 7 and node.left.value == 4 and isinstance(node, Node)",
    "assert Node(1) == Node(1) and Node(1) != Node(2)",
    "assert apply(lambda x: x + 1, [1, 2]) == [2, 3]\nassert apply(str, [1]) == ['1']",
    "assert count('aab') == {'a': 2, 'b': 1}",
    "assert list(naturals(3)) == [0, 1, 2] and sum(naturals(4)) == 6",
    "try:\n    fail()\n    assert False\nexcept KeyError:\n    pass",
    "from fractions import Fraction\nfrom decimal import Decimal\nassert numbers() == [Fraction(1, 3), Decimal('0.1'),"
    " 2**200, 1.5, 1j, None, {1: ('a', b'b')}, {2}, True]",
    "def check(candidate):\n    assert math.isclose(candidate(Node(0.1)), 0.1)\ncheck(total)",
]
FAKES = {
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "hard exit when called": "def f(x):\n    import os; os._exit(0)",
    "exit when called": "def f(x): raise SystemExit(0)",
    "printed text": "import os\ndef f(x):\n    for fd in range(64):\n        try: os.write(fd, b'right\\t')\n"
    "        except OSError: pass\n    return 0",
    "equal to all": "class A:\n    def __eq__(self, other): return True\n    def __ne__(self, other): return False\n"
    "def f(x): return A()",
    "int equal to all": "class A(int):\n    def __eq__(self, other): return True\ndef f(x): return A(0)",
    "builtins": "import builtins\nbuiltins.AssertionError = Exception\nbuiltins.all = any\ndef f(x): return 0",
    "names": "__builtins__ = {}\n__name__ = 'x'\ndef f(x): return 0",
    "frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        frame.f_globals['main'] = frame.f_globals['_examine'] = lambda *a: ('right', '')\n"
    "        frame = frame.f_back\n    return 0",
    "kill the parent": "import os\ndef f(x): os.kill(os.getppid(), 9)",
    "endless": "def f(x):\n    while True: pass",
    "memory": "def f(x): return [0] * 10**9",
    "deep": "def f(x):\n    y = []\n    for _ in range(10**5): y = [y]\n    return y",
    "cycle": "def f(x):\n    y = []\n    y.append(y)\n    return y",
    "no such name": "def g(x): return x**3",
    "syntax": "def f(x) return x",
}
READS_TESTS = """
import gc, os
def f(x):
    needle = " ".join(["assert", "f"])
    seen = [o for o in gc.get_objects() if isinstance(o, (list, tuple)) and any(needle in str(i) for i in o)]
    for fd in range(64):
        try:
            os.lseek(fd, 0, 0)
            seen += [1] if needle.encode() in os.read(fd, 1 << 16) else []
        except OSError: pass
    return len(seen)
"""


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def verifier(request: pytest.FixtureRequest) -> CodeVerifier:
    try:
        sandbox = find_sandbox(request.param)
    except SandboxError as error:
        pytest.skip(str(error))
    return CodeVerifier(sandbox, Limits(wall_s=10, cpu_s=1, memory_mb=256), workers=2)


def fenced(program: str) -> str:
    return f"Here:\n```python\n{program}\n```\n"


def test_right_and_wrong(verifier: CodeVerifier) -> None:
    assert verifier.grade(CUBE, fenced("def f(x): return x**3")).is_right
    verdict = verifier.grade(CUBE, fenced("def f(x): return 8"))
    assert (verdict.kind, verdict.reason) == ("wrong", "test 2 of 2 (assert f(3) == 27): expected 27, got 8")
    assert verifier.grade(CUBE, "def f(x): return x**3").reason == "no code block"


WHOLE = "import sys\na, *rest = sys.stdin.read().split()\nprint(int(a) ** 3)"
CALLS = [
    {"function": "f", "args": [2], "expected": 8},
    {"function": "f", "args": [0.5], "expected": 0.125},
    {"function": "f", "args": [[1, "a"]], "expected": [1, "a"]},
]
OUTPUTS = [{"stdin": "2\n", "stdout": "8\n"}, {"stdin": "3\n" + "x " * 200_000, "stdout": "27"}]


def test_calls(verifier: CodeVerifier) -> None:
    program = "def f(x): return tuple(x) if isinstance(x, list) else x**3"
    assert verifier.grade_program(CALLS, program).is_right
    assert verifier.grade_program(CALLS, f"class Solution:\n    {program.replace('(x):', '(self, x):')}").is_right
    reasons = {
        "def f(x): return x**3 if x == 2 else 0": "test 2 of 3 (f(0.5)): expected 0.125, got 0",
        "def f(x): raise ValueError('no')": "test 1 of 3 (f(2)): ValueError: no",
        "g = 1": "test 1 of 3 (f(2)): the program defines no f",
        "1/0": "the program: ZeroDivisionError: division by zero",
        "import os\nos._exit(3)": "the program ended itself with exit 3",
    }
    verdicts = verifier.grade_programs([(CALLS, program) for program in reasons])
    assert [(verdict.kind, verdict.reason) for verdict in verdicts] == [("wrong", text) for text in reasons.values()]


def test_whole_programs(verifier: CodeVerifier) -> None:
    right = {
        "script": WHOLE,
        "main": "def main():\n    print(int(input()) ** 3)\nif __name__ == '__main__':\n    main()",
        "exit": "import sys\nsys.stdout.write(str(int(sys.stdin.readline()) ** 3))\nsys.exit()",
        "thread": "import threading\nthreading.Thread(target=lambda: print(int(input()) ** 3)).start()",
        "bytes": "import os\nos.write(1, b'%d' % (int(open(0, 'rb').readline()) ** 3))",
        "at exit": "import atexit\nn = int(input())\natexit.register(lambda: print(n ** 3))",
    }
    verdicts = verifier.grade_programs([(OUTPUTS, program) for program in right.values()])
    assert [verdict.kind for verdict in verdicts] == ["right"] * len(right), verdicts
    reasons = {
        "print(8)": "test 2 of 2: line 1: expected '27', got '8'",
        "1/0": "test 1 of 2: the program ended itself with exit 1: ZeroDivisionError: division by zero",
        "while True: print('x' * 1000)": "test 1 of 2: more than 64 KB of output",
        "while True: pass": "test 1 of 2: processor time used up",
    }
    verdicts = verifier.grade_programs([(OUTPUTS, program) for program in reasons])
    assert [(verdict.kind, verdict.reason) for verdict in verdicts] == [("wrong", text) for text in reasons.values()]


def test_all_forms_together(verifier: CodeVerifier) -> None:
    program = "def f(x): return x**3\nif __name__ == '__main__': print(f(int(input())))"
    tests = ["assert f(1) == 1", {"stdin": "2", "stdout": "8"}, {"function": "f", "args": [3], "expected": 27}]
    assert verifier.grade_program(tests, program).is_right
    assert verifier.grade_program([*tests, "assert f(1) == 2"], program).reason == (
        "test 4 of 4 (assert f(1) == 2): expected 2, got 1"
    )


def test_values_objects_and_callbacks_travel(verifier: CodeVerifier) -> None:
    verdict = verifier.grade_program(RICH_TESTS, RICH_PROGRAM)
    assert verdict.is_right, verdict


@pytest.mark.parametrize("name", FAKES)
def test_fakes_are_wrong(verifier: CodeVerifier, name: str) -> None:
    verdict = verifier.grade_program(CUBE, FAKES[name])
    assert verdict.kind == "wrong", verdict
    assert verdict.reason


def test_the_program_can_not_read_the_tests(verifier: CodeVerifier) -> None:
    assert verifier.grade_program(["assert f(0) == 0"], READS_TESTS).is_right


def test_the_program_does_not_lend_builtins_and_modules_to_the_tests(verifier: CodeVerifier) -> None:
    program = "class math:\n    isclose = lambda *a: True\ndef all(x): return True\ndef f(x): return 0"
    assert verifier.grade_program(["assert all(f(x) == x for x in (1, 2))"], program).kind == "wrong"
    assert verifier.grade_program(["assert math.isclose(f(1), 1)"], program).kind == "wrong"
    assert verifier.grade_program(["assert sum(10, 15) == 6"], "def sum(a, b): return 6").is_right
    assert verifier.grade_program(["assert f(3) == pow(2, 3)"], "from math import *\ndef f(x): return 8").is_right


def test_the_grader_hands_on_all_forms_and_the_sandbox(verifier: CodeVerifier) -> None:
    tests: tuple[Any, ...] = ("assert f(2) == 8", {"function": "f", "args": [3], "expected": 27})
    record = Record(id="1", domain="code", prompt="Cube.", tests=tests)
    with Grader(RewardConfig(sandbox=verifier._sandbox.kind, code_wall_s=20.0), workers=1) as grader:
        verdicts = grader.grade([record, record], [fenced("def f(x): return x**3"), fenced("def f(x): return 8")])
        assert grader._code_verifier()._sandbox == verifier._sandbox
    assert [verdict.kind for verdict in verdicts] == ["right", "wrong"]
    config = Config(reward=RewardConfig(sandbox="docker"))
    with pytest.raises(ValueError, match=r"reward\.sandbox=docker: choose one of auto, bubblewrap, landlock, none"):
        validate(config)


def test_faults_of_tests_are_ungraded(verifier: CodeVerifier) -> None:
    program = "def f(x): return x"
    assert verifier.grade_program([], program).kind == "ungraded"
    assert verifier.grade_program(["assert f("], program).kind == "ungraded"
    assert verifier.grade_program(["def test_f():\n    assert f(1) == 2"], program).reason.startswith("the tests check")
    assert verifier.grade_program(["raise SystemExit"], program).kind == "ungraded"
    assert verifier.grade_program(["import numpy\nassert f(1) == 1"], program).kind == "ungraded"
    assert verifier.grade_program(["assert f(object()) == 1"], program).kind == "ungraded"
    assert verifier.grade_program(["assert f(1) == 1"], "import numpy\n" + program).kind == "wrong"


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Starts of a sandbox."""
    starts: list[object] = []
    run = Sandbox.run_trusted
    monkeypatch.setattr(Sandbox, "run_trusted", lambda self, *a, **k: starts.append(k["stdin"]) or run(self, *a, **k))
    return starts


def test_many_keep_their_order_and_equal_ones_run_once(verifier: CodeVerifier, runs: list[object]) -> None:
    right, wrong = fenced("def f(x): return x**3"), fenced("def f(x): return x")
    items = [(CUBE, right), (CUBE, wrong), (CUBE, "none"), (CUBE, right), (CUBE[:1], right)]
    assert [verdict.is_right for verdict in verifier.grade_many(items)] == [True, False, False, True, True]
    assert len(runs) == 2


DISTURBERS = {
    "none": "",
    "daemon": "import os, time\nif os.fork() == 0:\n    while True: time.sleep(1)",
    "file": "open('/tmp/left', 'w').close()",
    "killer": "import os\nos.kill(-1, 9)",
    "sleeper": "import time\ntime.sleep(60)",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break",
}


@pytest.mark.parametrize("name", DISTURBERS)
def test_programs_of_one_sandbox_do_not_disturb_each_other(
    verifier: CodeVerifier, runs: list[object], name: str
) -> None:
    verifier = CodeVerifier(verifier._sandbox, Limits(wall_s=1.5, cpu_s=1, memory_mb=256), workers=1)
    good = [f"def f(x): return x**3 + 0 * {n}" for n in range(4)]
    programs = [good[0], DISTURBERS[name] + "\ndef f(x): return 0", *good[1:]]
    verdicts = verifier.grade_programs([(CUBE, program) for program in programs])
    assert [verdict.kind for verdict in verdicts] == ["right", "wrong", "right", "right", "right"], verdicts
    if name == "none":
        assert len(runs) == 1


def test_a_broken_sandbox_is_ungraded(verifier: CodeVerifier, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_vibethinker.reward._mounts.interpreter", lambda: "/bin/false")
    assert verifier.grade_program(CUBE, "def f(x): return x**3").kind == "ungraded"


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("none", None),
        ("```python\na\n```\n```python\nb\n```", "b\n"),
        ("```python\na\n```\n```\nb\n```", "a\n"),
        ("```\na\n```\n```text\nb\n```", "b\n"),
        ("```py\na\n``` and ```python\nb", "a\n"),
        ("```python\nunclosed", None),
    ],
)
def test_extraction(completion: str, program: str | None) -> None:
    assert extract_program(completion) == program


def run_cli(cases: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_vibethinker.reward.code", "--cases", str(cases), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_command_line(tmp_path: Path) -> None:
    cases = [
        {"id": 1, "tests": CUBE, "program": "def f(x): return x**3"},
        {"id": 2, "tests": CUBE, "completion": fenced("def f(x): return x")},
    ]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    result = run_cli(tmp_path / "cases.jsonl", tmp_path / "out.jsonl")
    assert (result.returncode, result.stdout) == (0, "right 1 wrong 1 ungraded 0\n")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["verdict"]) for row in rows] == [(1, "right"), (2, "wrong")]
    (tmp_path / "cases.jsonl").write_text('{"id": 1, "tests": [3], "program": ""}')
    result = run_cli(tmp_path / "cases.jsonl", tmp_path / "out.jsonl")
    assert result.returncode == 2
    assert "cases.jsonl:1: 'tests': test 1 must be text or an object, not 3" in result.stderr


def references(name: str) -> list[dict[str, Any]]:
    path = DATA / "code" / f"{name}.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; set NVT_DATA_DIR")
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reference_solutions_are_right_and_others_wrong(verifier: CodeVerifier) -> None:
    rows = references("mbpp")[::40]
    right = [(tuple(filter(None, (row["test_setup_code"], *row["test_list"]))), row["code"]) for row in rows]
    for row in references("humaneval")[::10]:
        tests = parse_tests(row["test"], entry_point=row["entry_point"])
        right.append((tests, row["prompt"] + row["canonical_solution"]))
    broken = [(tests, re.sub(r"\breturn\b", "return 987654321 if True else", program)) for tests, program in right]
    empty = [(tests, "") for tests, _ in right]
    verdicts = verifier.grade_programs([*right, *broken, *empty])
    kinds = [verdict.kind for verdict in verdicts]
    assert kinds == ["right"] * len(right) + ["wrong"] * 2 * len(right), verdicts
