import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_vibethinker.reward.math import MathVerifier, extract_answer

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("NVT_DATA_DIR", ROOT.parent / "shared" / "data"))

ACCEPTED = [
    ("8", "8"), ("8", "+8"), ("8", "8."), ("8", "$8$"), ("1,000", "1000"), ("1000", "1{,}000.0"), ("1/2", "0.5"),
    ("-\\frac{1}{2}", "\\frac{1}{-2}"), ("\\frac12", "\\dfrac{1}{2}"), ("2\\frac{1}{2}", "2.5"), (".5", "50\\%"),
    ("\\$12.50", "12.5"), ("90^\\circ", "90"), ("10", "10\\text{ cm}^2"), ("28\\%", "28 percent"), ("B", "\\text{(B)}"),
    ("C", "c"), ("\\text{Monday}", "monday"), ("(6,1)", "\\left( 6, 1 \\right)"), ("1,2,3", "\\{3, 1, 2\\}"),
    ("\\pm 3", "-3, 3"), ("1/12", "0.0833333333333333"),
    ("2\\pi", "\\pi \\cdot 2"), ("x=5", "5"), ("5", "x = 5"), ("1000", "10^3 = 1000"), ("x^2-1", "(x-1)(x+1)"),
    ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"), ("2x+4y-3=0", "y = -\\frac12 x + \\frac34"),
    ("(3,\\frac{\\pi}{2})", "(3, \\pi/2)"), ("\\tan^2(y)+1", "\\sec^2(y)"), ("5!", "120"), ("e", "\\mathrm{e}"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}"),
    ("[0,\\infty)", "[0,+\\infty)"), ("x\\le 2", "x \\leq 2"), ("1,\\sqrt{2}", "\\sqrt 2, 1"),
]  # fmt: skip
REJECTED = [
    ("8", "9"), ("8", ""), ("8", "7 or 8"), ("8", "1 2 3 4 5 6 7 8"), ("8", "7, 8"), ("8", "7;8"), ("8", "7\\quad 8"),
    ("8", "7 \\text{ maybe } 8"), ("8", "x = 7 \\text{ maybe } x = 8"), ("8", "7 = 8"), ("8", "7 \\lor 8"),
    ("8", "7 \\to 8"), ("8", "7 \\mid 8"), ("8", "8_7"), ("8", "8)"), ("8", "8 \\pm 1"), ("8", "7 \\approx 8"),
    ("8", "[7,8]"), ("8", "7\\cdot\\cdot 8"), ("8", "8\\%"), ("8", "x>8"), ("8", "\\{7, 8\\}"),
    ("50", "50\\%"), (".1", ".1000004"), ("1/3", "0.333"), ("(2,3)", "2,3"), ("(1,2)", "[1,2]"), ("(6,1)", "(1,6)"),
    ("[0,1)", "[0,1]"), ("1,2", "1"), ("12", "1 2"), ("B", "C"), ("odd", "even"), ("\\text{Monday}", "Tuesday"),
    ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"), ("1+\\frac{1}{\\mathrm{e}}", "1-\\frac{1}{\\mathrm{e}}"),
    ("3x+4y+14=0", "3x-y+13=0"), ("y=2x", "y=3x"), ("x=1", "y=2"), ("2x+z=1", "1"), ("\\sqrt{2}", "1.4142135"),
    ("x<1", "x>1"), ("x+1", "x+2"), ("(-\\infty,1)", "(-\\infty,2)"), ("\\sqrt{2},1", "\\sqrt{3},1"),
]  # fmt: skip
HANGS = ["9^{9^{9^9}}", "99999999!", "(" * 200 + "1" + ")" * 200]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(deadline_s=10, processes=2) as verifier:
        yield verifier


@pytest.mark.parametrize(("gold", "answer"), ACCEPTED)
def test_accepts(verifier: MathVerifier, gold: str, answer: str) -> None:
    verdict = verifier.grade(gold, f"Hence \\boxed{{{answer}}}.")
    assert verdict.kind == "right", verdict


@pytest.mark.parametrize(("gold", "answer"), REJECTED)
def test_rejects(verifier: MathVerifier, gold: str, answer: str) -> None:
    verdict = verifier.grade(gold, f"Hence \\boxed{{{answer}}}.")
    assert verdict.kind == "wrong", verdict


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("no answer", None),
        ("\\boxed{1", None),
        ("\\boxed{1} then \\boxed{2}", "2"),
        ("\\boxed{1} then \\boxed{2", "1"),
        ("{ stray \\boxed {\\frac{1}{2}} } }", "\\frac{1}{2}"),
        ("\\boxed{\\boxed{ 5 }}", "5"),
        ("\\boxed{\\{1, 2\\}}", "\\{1, 2\\}"),
        ("\\boxed{}", ""),
    ],
)
def test_extraction(response: str, answer: str | None) -> None:
    assert extract_answer(response) == answer


@pytest.mark.parametrize("unit", ["{", "}", "{}", "\\boxed{", "\\"])
def test_extraction_takes_linear_time(unit: str) -> None:
    response = "\\boxed{1}" + unit * (1_000_000 // len(unit))
    start = time.process_time()
    assert extract_answer(response) == "1"
    assert time.process_time() - start < 5


def test_without_a_box_the_response_is_wrong(verifier: MathVerifier) -> None:
    verdict = verifier.grade("8", "The answer is 8.")
    assert (verdict.kind, verdict.reason) == ("wrong", "no \\boxed answer")


def test_an_empty_reference_is_ungraded(verifier: MathVerifier) -> None:
    assert verifier.grade("", "\\boxed{8}").kind == "ungraded"


def test_hostile_answers_end_at_the_deadline_and_leave_the_grader_usable() -> None:
    with MathVerifier(deadline_s=0.3) as verifier:
        for hang in HANGS:
            verifier.grade("\\sqrt{2}", "\\boxed{\\sqrt{3}}")  # starts the process, which the deadline does not cover
            start = time.monotonic()
            verdict = verifier.grade("5", f"\\boxed{{{hang}}}")
            assert (verdict.kind, verdict.reason) == ("ungraded", "no verdict within 0.3 s")
            assert time.monotonic() - start < 10  # far from the hour such an answer takes, whatever the machine does


def test_a_dead_grader_is_ungraded_and_replaced() -> None:
    with MathVerifier(deadline_s=10) as verifier:
        assert verifier.grade("\\sqrt{4}", "\\boxed{2}").is_right
        process = verifier._pool._graders[0]._process
        assert process
        process.kill()
        process.wait()
        assert verifier.grade("\\sqrt{4}", "\\boxed{2}").kind == "ungraded"
        assert verifier.grade("\\sqrt{4}", "\\boxed{2}").is_right


def test_threads_get_their_own_verdicts(verifier: MathVerifier) -> None:
    pairs = [(f"\\sqrt{{{n}}}", f"\\boxed{{\\sqrt{{{n + n % 3}}}}}") for n in range(2, 26)]
    with ThreadPoolExecutor(4) as pool:
        kinds = list(pool.map(lambda pair: verifier.grade(*pair).is_right, pairs))
    assert kinds == [n % 3 == 0 for n in range(2, 26)]
    assert [verdict.is_right for verdict in verifier.grade_many(pairs)] == kinds


def test_plain_numbers_need_no_child_process() -> None:
    with MathVerifier() as verifier:
        right = [verifier.grade(str(n), f"So \\boxed{{{n + n % 2}}}").is_right for n in range(2000)]
        assert all(grader._process is None for grader in verifier._pool._graders)
        assert right == [n % 2 == 0 for n in range(2000)]
        assert verifier._pool._graders[0]._process is None


def test_importing_is_cheap() -> None:
    code = "import sys, nemo_vibethinker.reward.math; print({'sympy', 'torch', 'math_verify'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert result.stdout == "set()\n"


def run_cli(cases: Path, out: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "nemo_vibethinker.reward.math", "--cases", str(cases), "--out", str(out)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_command_line(tmp_path: Path) -> None:
    cases = [
        {"id": "a", "gold": "1/2", "prediction": "0.5"},
        {"id": "b", "gold": "1/2", "prediction": "so \\boxed{0.4}"},
        {"id": "c", "gold": "7", "response": "It is 7."},
    ]
    (tmp_path / "cases.jsonl").write_text("\n".join(map(json.dumps, cases)))
    result = run_cli(tmp_path / "cases.jsonl", tmp_path / "out.jsonl")
    assert (result.returncode, result.stdout) == (0, "right 1 wrong 2 ungraded 0\n")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [(row["id"], row["verdict"]) for row in rows] == [("a", "right"), ("b", "wrong"), ("c", "wrong")]


@pytest.mark.parametrize("content", [None, "{", "[1]", '{"id": 1, "gold": 2, "prediction": "2"}', '{"id": 1}'])
def test_a_bad_file_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "cases.jsonl").write_text(content)
    result = run_cli(tmp_path / "cases.jsonl", tmp_path / "out.jsonl")
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert "cases.jsonl" in result.stderr


def test_agrees_with_graded_model_outputs(verifier: MathVerifier) -> None:
    path = DATA / "verifier" / "cases.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; set NVT_DATA_DIR")
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row for row in rows if row["tier"] == "model_output" and isinstance(row.get("prediction"), str)]
    wrong = [
        row["id"] for row in rows if verifier.grade_answer(row["gold"], row["prediction"]).is_right != row["expected"]
    ]
    assert rows
    assert not wrong
