import json
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_vibethinker.data.boxed import last_boxed
from nemo_vibethinker.reward.math import MathVerifier

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("NVT_DATA_DIR", ROOT / "data"))

NUMBERS = [
    ("8", "8"), ("8", "+8"), ("8", "8."), ("8", "$8$"), ("8", "\\(8\\)"), ("8", "\\text{8}"), ("8", "{8}"),
    ("8", "8.0"), ("8", "8.000"), ("1,000", "1000"), ("1000", "1{,}000.0"), ("1000000", "1,\\!000,\\!000"),
    ("12345", "12\\,345"), ("1000", "10^3"), ("1000", "10^{3}"), ("1/2", "0.5"), ("-\\frac{1}{2}", "\\frac{1}{-2}"),
    ("\\frac12", "\\dfrac{1}{2}"), ("2\\frac{1}{2}", "2.5"), ("\\frac{5}{2}", "2\\frac12"), (".5", "50\\%"),
    ("0.5", ".50"), ("28\\%", "28 percent"), ("28\\%", "0.28"), ("62.5\\%", "\\frac58"),
    ("1/12", "0.0833333333333333"), ("\\frac{1}{3}", "0.\\overline{3}"), ("2 \\times 10^{-3}", "0.002"),
    ("3\\text{ million}", "3000000"), ("\\sqrt{16}", "4"), ("5!", "120"), ("-3", "\u22123"),
    ("\\frac{3}{4}", "\u00be"), ("41.494", "17+10\\sqrt{6}"), ("1.732", "\\sqrt{3}"), ("0.333", "\\frac13"),
    ("185", "185\\"), ("3", "3^1"), ("-\\frac{7}{4}", "-1.75"), ("7", "007"), ("\\frac{8}{46}", "\\frac{4}{23}"),
    ("2\\cdot 3^2", "18"), ("0", "-0"),
]  # fmt: skip
UNITS = [
    ("4\\text{ m/s}", "4 m/s"), ("12_{8}", "12_8"),
    ("\\$12.50", "12.5"), ("12.5", "\\$12.50"), ("90^\\circ", "90"), ("60", "60^{\\circ}"),
    ("\\frac{\\pi}{3}", "60^\\circ"), ("10", "10\\text{ cm}^2"), ("10\\text{ cm}", "10"),
    ("10\\text{ cm}", "10\\text{ centimeters}"), ("5\\text{ km/h}", "5 km/h"), ("12", "12 \\mathrm{~cm}^{2}"),
    ("15\\text{th day}", "15"), ("21", "21 years"), ("3", "3 apples"), ("10", "10 \\text{ square units}"),
    ("240", "240 \\text{ yuan}"), ("2.5 \\ \\mathrm{m}", "2.5"), ("4", "4\\text{ hours}"), ("100", "100 degrees"),
    ("7", "7\\text{ ways}"), ("36\\pi", "36\\pi\\text{ cm}^3"),
]  # fmt: skip
EXPRESSIONS = [
    ("2\\pi", "\\pi \\cdot 2"), ("x^2-1", "(x-1)(x+1)"), ("\\frac{\\sqrt{2}}{2}", "\\frac{1}{\\sqrt{2}}"),
    ("\\sqrt{\\frac{1}{n}}", "\\frac{1}{\\sqrt{n}}"), ("\\tan^2(y)+1", "\\sec^2(y)"), ("e", "\\mathrm{e}"),
    ("\\sqrt[3]{x^2}", "x^{2/3}"), ("2\\sin x\\cos x", "\\sin 2x"), ("\\log_2 8", "3"), ("\\ln(4)", "2\\ln 2"),
    ("e^{i\\pi}", "-1"), ("\\frac{1+a+b+c}c", "\\frac{a+b+c+1}{c}"), ("(x+1)^2", "x^2 + 2*x + 1"),
    ("n(n+1)/2", "\\frac{n^2+n}{2}"), ("\\binom{n}{2}", "\\frac{n(n-1)}{2}"), ("(n+1)!", "(n+1) \\cdot n!"),
    ("|x|", "\\left|x\\right|"), ("\\sqrt{x^2}", "|x|"), ("\\frac{a}{b}", "a/b"), ("3+4i", "4i + 3"),
    ("\\lfloor x \\rfloor", "\\left\\lfloor x\\right\\rfloor"), ("\\sqrt{5+2\\sqrt{6}}", "\\sqrt{2}+\\sqrt{3}"),
    ("x_1+x_2", "x_{2}+x_{1}"), ("\\cos(\\pi/3)", "0.5"), ("2^{k-n}", "2^k \\cdot 2^{-n}"), ("\\arctan 1", "\\pi/4"),
    ("\\sin^{-1} 1", "\\frac{\\pi}{2}"), ("\\theta", "\u03b8"), ("\\frac94\\pi", "2.25\\pi"),
    ("10\\sqrt3 + \\sqrt{4}", "10\\sqrt{3} + \\sqrt4"), ("\\frac{4}{3} \\pi r^3", "\\frac{4\\pi r^3}{3}"),
    ("-x", "0-x"), ("a^{-1}", "1/a"), ("sqrt(2)", "\\sqrt2"), ("f(x)+1", "1+f(x)"), ("\\frac{x}{2}+C", "C + 0.5x"),
    ("\\max(a,b)", "\\max(a, b)"), ("\\sum_{k=1}^n k^2", "\\sum_{k=1}^{n} k^{2}"), ("x\u00b2", "x^2"),
]  # fmt: skip
LISTS = [
    ("1,2,3", "\\{3, 1, 2\\}"), ("\\pm 3", "-3, 3"), ("1,\\sqrt{2}", "\\sqrt 2, 1"), ("5,15", "5 \\text{ and } 15"),
    ("1,2", "x=1 \\text{ or } x=2"), ("x=1,x=2", "2, 1"), ("1;2", "1, 2"), ("1\\pm\\sqrt5", "1-\\sqrt5, 1+\\sqrt5"),
    ("\\{1\\pm\\sqrt{5},-2\\}", "-2, 1+\\sqrt{5}, 1-\\sqrt{5}"), ("(1,2),(3,4)", "(3,4), (1,2)"),
    ("(\\pm 1, \\pm 2)", "(1,2),(1,-2),(-1,2),(-1,-2)"), ("(p,q,r)=(3,2,7)", "(3,2,7)"),
    ("(3,2,7)", "(p,q,r)=(3,2,7)"), ("p=5,q=2;p=7,q=2", "(5,2),(7,2)"), ("AB=4,CD=5", "4, 5"),
    ("a_3=2,a_{37}=19", "a_{37}=19, a_3=2"), ("f(n)=n, g(n)=1", "(f(n),g(n))=(n,1)"), ("1.68,0.45", "a=1.68, b=0.45"),
    ("0,\\pm 1", "\\{-1,0,1\\}"), ("\\emptyset", "\\text{no solution}"), ("8,4", "4 and 8"),
    ("\\text{red, blue}", "blue and red"), ("\\{1,2\\}", "\\{2,1,1\\}"), ("1,000, 2,000", "2000, 1000"),
    ("40\\text{ red},60\\text{ blue}", "40, 60"),
]  # fmt: skip
SHAPES = [
    ("(6,1)", "\\left( 6, 1 \\right)"), ("(3,\\frac{\\pi}{2})", "(3, \\pi/2)"), ("[0,\\infty)", "[0,+\\infty)"),
    ("(-\\infty,-5)", "k<-5"), ("[\\frac12,8]", "0.5\\le x\\le 8"), ("x<3", "3>x"), ("x\\le 2", "x \\leq 2"),
    ("x \\ge 0", "[0,\\infty)"), ("x\\ne 3", "(-\\infty,3)\\cup(3,\\infty)"),
    ("\\mathbb{R}\\setminus\\{0\\}", "x\\neq 0"), ("(-\\infty,1)\\cup(2,\\infty)", "x<1 \\text{ or } x>2"),
    ("\\{x \\mid x<2\\}", "(-\\infty,2)"), ("x\\in[-2,7]", "-2\\le x\\le 7"), ("(1,2)\\cup(3,4)", "(3,4)\\cup(1,2)"),
    ("\\mathbb{R}", "\\text{all real numbers}"), ("]1,2[", "(1,2)"), ("1\\le|z|\\le 2", "[-2,-1]\\cup[1,2]"),
    ("b<a<c", "c>a>b"), ("x+y\\le 3", "2x+2y\\le 6"), ("[1,2]\\cup[2,3]", "[1,3]"),
    ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{bmatrix} 1 & 2 \\\\ 3 & 4 \\end{bmatrix}"),
    ("\\begin{pmatrix}1\\\\2\\end{pmatrix}", "(1,2)"), ("(1,2,3)", "\\langle 1,2,3\\rangle"),
    ("\\begin{pmatrix}0.5&0\\\\0&1\\end{pmatrix}", "\\begin{pmatrix}\\frac12&0\\\\0&1\\end{pmatrix}"),
    ("7:32", "\\frac{7}{32}"), ("7:32", "14:64"), ("1:2:3", "2:4:6"), ("S_{ABC}:S=7:32", "7:32"),
]  # fmt: skip
EQUATIONS = [
    ("x=5", "5"), ("5", "x = 5"), ("1000", "10^3 = 1000"), ("-1", "e^{i\\pi} = -1"), ("e^{i\\pi}=-1", "-1"),
    ("\\frac{NO}{BO}=3", "3"), ("\\angle ABC = 60^\\circ", "60"), ("8", "x = 2+6 = 8"),
    ("2x+4y-3=0", "y = -\\frac12 x + \\frac34"), ("x^2+y^2=1", "y^2 = 1 - x^2"), ("f(x)=2x", "2x"),
    ("f(x)=x^2", "f(n)=n^2"), ("y=2x+1", "y=1+2x"), ("y=2x+1", "2x-y+1=0"), ("|AB|=1", "1"),
    ("x = 2k\\pi", "2n\\pi, n \\in \\mathbb{Z}"), ("f(n)=n", "f(n)=n \\text{ for all } n"),
    ("\\frac{9.5}{3.14}", "\\frac{9.5}{3.14} \\approx 3.03"), ("V=36\\pi", "36\\pi"), ("3", "3 = 3"), ("x=y=z=1", "1"),
]  # fmt: skip
WORDS = [
    ("B", "\\text{(B)}"), ("C", "c"), ("(A)", "A"), ("\\text{B}", "\\textbf{(B)}"), ("D", "D. 12"),
    ("B", "(B) \\frac12"), ("C Cecile", "C"), ("\\text{Monday}", "monday"), ("\\text{Even}", "Even"),
    ("\\text{yes}", "Yes"), ("odd", "\\text{odd}"), ("\\text{a circle}", "circle"),
    ("\\text{hexagonal prism}", "hexagonal prism"),
]  # fmt: skip
ACCEPTED = [*NUMBERS, *UNITS, *EXPRESSIONS, *LISTS, *SHAPES, *EQUATIONS, *WORDS]
REJECTED = [
    ("8", "9"), ("1,2", "1"), ("B", "C"), ("odd", "even"), ("\\text{Monday}", "Tuesday"), ("x+1", "x+2"),
    ("\\sqrt{2},1", "\\sqrt{3},1"), ("41.494", "17+10\\sqrt{2}"), ("0.458", "\\frac{31}{60}"), ("7", "a"),
    ("2\\pi", "2"), ("e", "e^2"), ("\\frac12", "\\frac13"), ("b<a<d<c", "a<b<c<d"),
]  # fmt: skip
STATED = [
    ("8", "The final answer is $8$. I hope it is correct."), ("8", "The answer is 8."), ("8", "Answer: 8"),
    ("8", "#### 8"), ("8", "<answer>8</answer>"), ("8", "It is 8."), ("8", "Answer: 7 was a wrong guess.\nAnswer: 8"),
    ("8", "So she has 8 apples left."), ("\\frac12", "The result is $\\frac{1}{2}$"), ("8", "We get\n\\[ x = 8 \\]"),
    ("8", "Hence $x = 8$."), ("8", "The total is **8**."),
    ("8", "\\boxed{7} is a step. Final Answer: The final answer is $8$."), ("B", "I think the correct answer is B"),
    ("1,2", "\\boxed{1} and \\boxed{2}"), ("28\\%", "$\\boxed{28}$ %"),
    ("8", "<think>7? \\boxed{7}</think> \\boxed{8}"), ("1234", "The answer is 1,234."),
    ("\\sqrt{3}", "the answer is \\(\\sqrt{3}\\)."), ("8", "\u6240\u4ee5\u7b54\u6848\u662f8\u3002"),
    ("8", "So the answer is: \\[ \\boxed{8} \\]"), ("x^2", "Final answer: $f(x)=x^2$"),
]  # fmt: skip
ENDLESS = "\\sum_{k=1}^{99999}\\frac{1}{k!}"
HANGS = ["9^{9^{9^9}}", "99999999!", "(" * 200 + "1" + ")" * 200]


@pytest.fixture(scope="module")
def verifier():
    with MathVerifier(deadline_s=60, processes=2) as verifier:
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
    assert last_boxed(response) == answer


@pytest.mark.parametrize("unit", ["{", "}", "{}", "\\boxed{", "\\"])
def test_extraction_takes_linear_time(unit: str) -> None:
    response = "\\boxed{1}" + unit * (1_000_000 // len(unit))
    start = time.process_time()
    assert last_boxed(response) == "1"
    assert time.process_time() - start < 5


def test_in_training_a_response_without_a_box_is_wrong() -> None:
    with MathVerifier(boxed_only=True) as verifier:
        verdict = verifier.grade("8", "The answer is 8.")
        assert (verdict.kind, verdict.reason) == ("wrong", "no \\boxed answer")
        assert verifier.grade("8", "\\boxed{8} The final answer is $7$.").is_right
        assert not verifier.grade("8", "<think> \\boxed{8}").is_right


@pytest.mark.parametrize(("gold", "response"), STATED, ids=range(len(STATED)))
def test_final_statements(verifier: MathVerifier, gold: str, response: str) -> None:
    assert verifier.grade(gold, response).kind == "right"


@pytest.mark.parametrize("response", ["", "I do not know.", "I wrote 8 pages about it", "plain 8", "<think> it is 8"])
def test_without_a_final_statement_it_is_wrong(verifier: MathVerifier, response: str) -> None:
    verdict = verifier.grade("8", response)
    assert verdict.kind == "wrong"
    assert verdict.reason


def test_an_empty_reference_is_ungraded(verifier: MathVerifier) -> None:
    assert verifier.grade("", "\\boxed{8}").kind == "ungraded"


@pytest.mark.e2e
def test_a_reference_that_never_ends_is_ungraded_and_the_grader_stays_usable() -> None:
    with MathVerifier(deadline_s=3) as verifier:
        assert verifier.grade(ENDLESS, "\\boxed{2}").kind == "ungraded"
        assert verifier.grade("\\sqrt{4}", "\\boxed{1+1}").kind == "right"


@pytest.mark.e2e
def test_an_answer_that_never_ends_is_wrong() -> None:
    with MathVerifier(deadline_s=3) as verifier:
        assert verifier.grade("\\sum_{k=1}^{n} k", f"\\boxed{{{ENDLESS}}}").kind == "wrong"
        for hang in HANGS:
            verdict = verifier.grade("5", f"\\boxed{{{hang}}}")
            assert verdict.kind == "wrong"
            assert verdict.reason


def test_a_dead_grader_is_ungraded_and_replaced() -> None:
    with MathVerifier(deadline_s=60) as verifier:
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
        {"id": "c", "gold": "7", "response": "I give up."},
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


def test_agrees_with_published_cases(tmp_path: Path) -> None:
    """The published file runs as it is: core at least 99%, model outputs 97%, at most 1% of the hard wrong ones."""
    path = DATA / "verifier" / "cases.jsonl"
    if not path.exists():
        pytest.skip(f"no {path}; set NVT_DATA_DIR")
    result = run_cli(path, tmp_path / "out.jsonl")
    assert result.returncode == 0
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    verdicts = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in verdicts] == [row["id"] for row in rows]
    agree: dict[object, list[bool]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        same = (verdict["verdict"] == "right") == row["expected"]
        agree.setdefault(row["tier"], []).append(same)
        agree.setdefault((row["tier"], row["expected"]), []).append(same)
    share = {key: sum(values) / len(values) for key, values in agree.items()}
    assert share["core"] >= 0.99
    assert share["model_output"] >= 0.97
    assert share["hard", False] >= 0.99
    assert share["hard", True] >= 0.72


def _grade_roots(verifier: MathVerifier, queue: "multiprocessing.Queue[list[bool]]") -> None:
    pairs = [(f"\\sqrt{{{n}}}", f"\\boxed{{\\sqrt{{{n + n % 2}}}}}") for n in range(2, 12)]
    queue.put([verdict.is_right for verdict in verifier.grade_many(pairs)])
    verifier.close()


def _grade_roots_anew(queue: "multiprocessing.Queue[list[bool]]") -> None:
    _grade_roots(MathVerifier(deadline_s=30), queue)


EVEN = [n % 2 == 0 for n in range(2, 12)]


def test_a_verifier_works_on_both_sides_of_a_fork() -> None:
    context = multiprocessing.get_context("fork")
    queue: multiprocessing.Queue[list[bool]] = context.Queue()
    with MathVerifier(deadline_s=30) as verifier:
        assert verifier.grade("\\sqrt{4}", "\\boxed{2}").is_right
        children = [context.Process(target=_grade_roots, args=(verifier, queue)) for _ in range(2)]
        for child in children:
            child.start()
        assert verifier.grade("\\sqrt{9}", "\\boxed{3}").is_right
        assert [queue.get(timeout=120) for _ in children] == [EVEN, EVEN]
        for child in children:
            child.join(60)
        assert [child.exitcode for child in children] == [0, 0]
        assert verifier.grade("\\sqrt{16}", "\\boxed{4}").is_right


def test_a_spawned_process_has_its_own_verifier() -> None:
    context = multiprocessing.get_context("spawn")
    queue: multiprocessing.Queue[list[bool]] = context.Queue()
    child = context.Process(target=_grade_roots_anew, args=(queue,))
    child.start()
    assert queue.get(timeout=120) == EVEN
    child.join(60)
    assert child.exitcode == 0


@pytest.mark.parametrize("end", ["", "import os; os.kill(os.getpid(), 9)"])
def test_no_child_outlives_the_interpreter(end: str) -> None:
    code = (
        "from nemo_vibethinker.reward.math import MathVerifier\n"
        "verifier = MathVerifier(deadline_s=30)\n"
        "verifier.grade('\\\\sqrt{2}', '\\\\boxed{\\\\sqrt{3}}')\n"
        f"print(verifier._pool._graders[0]._process.pid, flush=True)\n{end}"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=120)
    stat = Path(f"/proc/{int(result.stdout)}/stat")
    for _ in range(600):
        if not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return
        time.sleep(0.1)
    pytest.fail("the grader process lives on")


@pytest.mark.e2e
def test_one_poisoned_comparison_of_a_batch_fails_alone() -> None:
    batch = [(f"\\sqrt{{{n}}}", f"\\boxed{{0+\\sqrt{{{n}}}}}") for n in range(2, 8)]
    batch.insert(3, (ENDLESS, "\\boxed{2}"))
    with MathVerifier(deadline_s=3) as verifier:
        verdicts = verifier.grade_many(batch)
    assert [verdict.kind for verdict in verdicts] == ["right"] * 3 + ["ungraded"] + ["right"] * 3
