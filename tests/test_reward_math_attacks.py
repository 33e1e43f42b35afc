r"""Answers that try to be taken for right without stating the reference: none may be right, none may hang the grader.

Each kind lists (reference, boxed answer); `RESPONSES` are whole texts.
"""

from collections.abc import Iterator

import pytest

from nemo_vibethinker.reward.math import MathVerifier
from nemo_vibethinker.reward.verdict import Verdict

pytestmark = pytest.mark.e2e

DEADLINE_S = 5.0

SEVERAL_ANSWERS = [
    ("8", "7 or 8"), ("8", "8 or 9"), ("8", "7, 8"), ("8", "8, 7"), ("8", "7;8"), ("8", "7 \\text{ or } 8"),
    ("8", "7\\lor 8"), ("8", "7\\vee 8"), ("8", "x=7, x=8"), ("8", "x = 7 \\text{ or } x = 8"), ("8", "7 / 8"),
    ("8", "1 2 3 4 5 6 7 8"), ("8", "1,2,3,4,5,6,7,8"), ("8", "\\{7,8\\}"), ("8", "\\{1,2,3,4,5,6,7,8\\}"),
    ("8", "(7,8)"), ("8", "[7,8]"), ("8", "7\\quad 8"), ("8", "7\\\\8"), ("8", "7 \\& 8"), ("8", "7\\text{ and }8"),
    ("8", "8\\pm 1"), ("8", "\\pm 8"), ("8", "7\\to 8"), ("8", "7\\mid 8"), ("8", "7|8"), ("8", "7:8"),
    ("8", "7 \\text{ maybe } 8"), ("8", "\\begin{pmatrix}7\\\\8\\end{pmatrix}"),
    ("8", "\\begin{cases}7\\\\8\\end{cases}"), ("8", "7\n8"), ("-3", "\\pm 3"), ("3,5", "3,5,7"), ("3,5", "3"),
    ("(1,2)", "(1,2),(2,1)"), ("\\sqrt{2}", "\\pm\\sqrt{2}"), ("\\sqrt{2}", "\\sqrt{2},\\sqrt{3}"),
    ("x+1", "x+1, x-1"), ("[0,1]", "[0,1],(0,1)"), ("5", "5 \\text{ or more}"), ("5", "4 < 5"), ("A", "A, B, C, D"),
    ("B", "A or B"), ("C", "(A) (B) (C)"), ("B", "A. B. C."), ("D", "B and D"),
]  # fmt: skip
HIDDEN = [
    ("8", "\\text{not } 8"), ("8", "8 \\text{ is wrong, } 9"), ("8", "7\\cdot\\cdot 8"), ("8", "x>8"), ("8", "8<x"),
    ("8", "x \\ge 8"), ("8", "x\\ne 8"), ("8", "\\approx 8.1"), ("8", "7\\approx 8"), ("8", "8_7"), ("8", "8_{16}"),
    ("8", "8)"), ("8", "(8"), ("8", "8+"), ("8", "8^"), ("8", "x_8"), ("8", "a_{8}"), ("8", "f(8)"), ("8", "8x"),
    ("8", "8'"), ("8", "0x8"), ("8", "8\\%"), ("8", "8!"), ("8", "8!!"), ("8", "\\sqrt[8]{}"), ("8", "\\text{8 or 9}"),
    ("8", "\\text{the answer is between 7 and 8}"), ("8", "8 \\pmod{9}"), ("8", "n \\equiv 8"), ("8", "8\\ldots"),
    ("8", "8..."), ("8", "\\color{white}{7}8"), ("8", "\\phantom{7}8 9"), ("8", "\\def\\x{7}8"), ("8", "\\input{8}"),
    ("8", "<answer>8"), ("8", "8;;9"), ("8", "at least 8"), ("8", "8 at most"), ("8", "less than 8"),
    ("even", "odd or even"), ("x^2", "x^2 \\text{ or } x^3"), ("\\frac{1}{2}", "\\frac{1}{2}\\frac{1}{2}"),
    ("yes", "yes and no"),
]  # fmt: skip
EQUATIONS = [
    ("8", "7=8"), ("8", "8=7"), ("8", "x=7=8"), ("8", "x=1=2=3=8"), ("8", "x+3=11"), ("8", "2x=16"), ("8", "x^2=64"),
    ("8", "0=0"), ("8", "8=8x"), ("8", "3+5=9"), ("x=8", "x+3=11"), ("x=8", "8=8"), ("x=8", "y=8"), ("x=8", "x=x"),
    ("x=2", "x=-2"), ("y=2x", "y=3x"), ("y=2x+1", "2y=4x+2"), ("x^2+y^2=1", "x^2-y^2=1"), ("x^2+y^2=1", "0=0"),
    ("3x+4y+14=0", "3x-y+13=0"), ("2x+z=1", "1"), ("x+y=3", "x+y"), ("f(x)=2x", "f(x)=f(x)"), ("f(x)=x", "f(x)=x^2"),
    ("2", "x=x"), ("2", "x"), ("x+1", "x"), ("y=x^2", "x^2"[:1]), ("x<1", "x>1"), ("x<1", "x\\le 1"), ("x<1", "x<1+x"),
]  # fmt: skip
RESTATED = [
    ("5050", "\\sum_{k=1}^{100} k"), ("391", "17 \\cdot 23"), ("391", "17\\times 23"), ("40", "17+23"),
    ("40", "63-23"), ("40", "(17+23)"), ("3628800", "\\prod_{k=1}^{10} k"), ("1", "\\int_0^1 2x\\,dx"),
    ("1", "\\lim_{x\\to 0}\\frac{\\sin x}{x}"), ("2", "17 \\bmod 5"), ("6", "\\gcd(12, 18)"),
    ("36", "\\text{lcm}(12,18)"), ("252", "\\binom{10}{5}"), ("7", "\\text{the smallest prime above 5}"),
    ("4", "\\text{Find } 2+2"), ("120", "1*2*3*4*5"), ("-2", "\\det\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}"),
]  # fmt: skip
LOOKALIKES = [
    ("8", "\uff18"), ("8", "\u0668"), ("8", "\u096e"), ("8", "8\u200b"), ("8", "\u20078\u2060"), ("8", "\u2167"),
    ("8", "\U0001d7d6"), ("x+1", "\u0445+1"), ("a", "\u0430"), ("A", "\u0410"), ("B", "\u0392"), ("e", "\u0435"),
    ("\\pi", "\u043f"), ("0", "O"), ("1", "l"), ("10", "1O"), ("0", "\\emptyset"), ("8", "\u2467"), ("8", "8\u0338"),
    ("-1", "\u20121"), ("-8", "\u2010 8"),
]  # fmt: skip
NEAR_MISSES = [
    (".1", ".1000004"), ("1/3", "0.333"), ("1/3", "0.3333333"), ("\\sqrt{2}", "1.4142135"), ("\\pi", "3.14"),
    ("\\pi", "\\frac{22}{7}"), ("\\pi", "\\frac{355}{113}"), ("e", "2.718281828"), ("50", "50\\%"), ("50\\%", "50"),
    ("0.5", "0.5\\%"), ("12", "1 2"), ("\\frac{1}{2^{99}}", "\\frac{1}{2^{98}}"),
    ("1+\\frac{1}{\\mathrm{e}}", "1-\\frac{1}{\\mathrm{e}}"), ("0", "10^{-60}"), ("0", "e^{-200}"),
    ("2^{1000}", "2^{1000}+1"), ("10^{50}", "10^{50}+1"), ("0", "\\frac{1}{9^{99}}"), ("1", "0.\\overline{98}"),
    ("(2,3)", "2,3"), ("2,3", "(2,3)"), ("(1,2)", "(2,1)"), ("(1,2)", "[1,2]"), ("[0,1)", "[0,1]"),
    ("(1,2,3)", "(1,2)"), ("|x|", "x"), ("|x|", "-x"), ("x", "x^1.0000001"), ("\\sqrt{x^2}", "x"), ("1000", "1.000"),
    ("1.5", "15"), ("1.5\\sin x", "15\\sin x"), ("1:2", "2:1"), ("\\frac{1}{2}", "12"),
    ("5\\text{ cm}", "5\\text{ m}"), ("5\\text{ cm}^2", "5\\text{ cm}"), ("3\\text{ hours}", "3\\text{ minutes}"),
    ("\\frac{\\pi}{6}", "60^\\circ"), ("x=1,y=2", "2,1"), ("(p,q)=(3,2)", "(q,p)=(3,2)"), ("12_5", "12_6"),
    ("3 million", "3"), ("\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\begin{pmatrix}1&3\\\\2&4\\end{pmatrix}"),
    ("(-\\infty,1)", "(-\\infty,2)"), ("x\\ne 1", "x\\ne 2"), ("(-\\infty,1)\\cup(2,\\infty)", "(-\\infty,\\infty)"),
    ("2k\\pi", "k\\pi"), ("2n", "2k"), ("AB=5", "CD=5"),
]  # fmt: skip
ODD_SHAPES = [
    ("8", ""), ("8", " "), ("8", "\\"), ("8", "{}"), ("8", "\\text{}"), ("8", "?"), ("8", "\\boxed"),
    ("8", "\\frac{8}"), ("8", "\\frac{8}{}"), ("8", "\\frac{8}{0}"), ("8", "\\infty"), ("8", "nan"),
    ("\\infty", "-\\infty"), ("0", "\\frac{0}{0}"), ("8", "__import__('os').getpid()"), ("8", "lambda: 8"),
    ("8", "eval(8)"), ("8", "8 if 1 else 7"), ("8", "Symbol('x')"), ("8", "\\%8"), ("8", "NaN=NaN"), ("8", "*"),
    ("8", "8\x00"),
]  # fmt: skip
COSTLY = [
    ("5", "9^{9^{9^9}}"), ("5", "9^{9^{9^{9^{9^9}}}}"), ("5", "99999999!"), ("5", "((9!)!)!"),
    ("5", "\\binom{10^9}{5\\cdot 10^8}"), ("5", "e^{e^{e^{e^{e}}}}"), ("5", "(" * 200 + "1" + ")" * 200),
    ("5", "{" * 900 + "5" + "}" * 900), ("5", "\\sqrt{" * 250 + "5" + "}" * 250),
    ("5", "\\frac{1}{" * 200 + "5" + "}" * 200), ("5", "1+" * 900 + "1"), ("5", "9" * 1900), ("5", "9" * 100_000),
    ("5", "0." + "3" * 1900), ("5", "-" * 1501 + "5"), ("5", "5" + "^5" * 500), ("5", "5" + "!" * 1000),
    ("5", "x" * 1900), ("5", "\\sin(" * 200 + "5" + ")" * 200), ("5", "(x+y+z+w)^{5000}"), ("5", "2^{-10^{10^{10}}}"),
    ("5", "\\sin(10^{10^{10}})"), ("5", "1,2,3," * 300), ("5", "|" * 800 + "5" + "|" * 800), ("5", "\\pm" * 300 + "5"),
    ("5", "\\sum_{k=1}^{10^{12}} k"), ("5", "\\int_0^1 x^{x^{x^{x}}} dx"), ("x^5", "(x^{5^{5^{5^{5}}}})"),
    ("\\sum_{k=1}^{n} k", "\\sum_{k=1}^{99999999999} \\sum_{j=1}^{k} \\frac{1}{j!}"), ("5", "5" + " " * 1900 + "6"),
    ("\\sqrt{7}", "\\sqrt{7^{7^{7^7}}}"),
]  # fmt: skip
ATTACKS = {
    name: pairs
    for name, pairs in globals().items()
    if name.isupper() and isinstance(pairs, list) and pairs and isinstance(pairs[0], tuple)
}

RESPONSES = [
    ("8", "It is 7 or 8."), ("8", "The answer is 7 or 8."), ("8", "The answer is 1, 2, 3, 4, 5, 6, 7, 8."),
    ("8", "Candidates: 7 8"), ("8", "The answer is either 7 or maybe 8"), ("8", "So \\boxed{7}, \\boxed{8}"),
    ("8", "\\boxed{7} or \\boxed{8}"), ("8", "\\boxed{8}\\boxed{7}"), ("8", "\\boxed{7}\n\\boxed{8}"),
    ("8", "\\boxed{7} $and$ \\boxed{8}"), ("8", "\\boxed{8} but then \\boxed{7}"), ("8", "\\boxed{8"),
    ("8", "\\boxed 7 8"), ("8", "<think>\\boxed{8}"), ("8", "<think>\\boxed{8}</think> I do not know."),
    ("8", "<think>8</think>"), ("8", "\\boxed{}8"), ("8", "<answer>7</answer> 8"), ("8", "#### 7 or 8"),
    ("8", "8 is not the answer"), ("8", "I could not solve it, but 8 came up"), ("8", "maybe 8"), ("8", "8 9 10"),
    ("8", "The answer is not 8"), ("8", "\\boxed{7 \\boxed{8}}"), ("8", "\\boxed{\\text{see above: }8, 9}"),
    ("8", "Is it 7? Is it 8? Is it 9?"), ("8", "The answer is 8 or 9"), ("8", "final answer is 7. final answer is 9."),
    ("B", "A, B, C or D"), ("B", "It could be A. It could be B."), ("B", "The answer is A or B"),
    ("8", "\\boxed{" * 300 + "8"), ("8", "{" * 1_000_000 + "8" + "}" * 1_000_000),
    ("8", "\\boxed{" + "{" * 500_000 + "8" + "}" * 500_000 + "}"), ("8", "\\boxed{" * 140_000 + "8"),
    ("8", "8 " * 500_000), ("8", "is 7 or is 8 or " * 60_000), ("8", "$" * 1_000_001),
    ("8", "\\boxed{" + "(" * 1_000_000 + "}"), ("8", "answer " * 100_000), ("8", "**" * 400_000),
    ("8", "." * 1_000_000), ("8", "<think>" * 100_000), ("8", "#" * 1_000_000), ("8", "\\[" * 300_000),
    ("8", " = " * 300_000), ("8", "1," * 400_000),
]  # fmt: skip


@pytest.fixture(scope="module")
def verifier() -> Iterator[MathVerifier]:
    with MathVerifier(deadline_s=DEADLINE_S, processes=2) as verifier:
        yield verifier


@pytest.fixture(scope="module")
def verdicts(verifier: MathVerifier) -> dict[tuple[str, str], Verdict]:
    """All attacks in one call, so that the costly ones stand beside the others."""
    pairs = [pair for pairs in ATTACKS.values() for pair in pairs]
    boxed = [(gold, f"Hence \\boxed{{{answer}}}.") for gold, answer in pairs]
    bare = verifier.grade_predictions(pairs)
    both = zip(verifier.grade_many(boxed), bare, strict=True)
    return {pair: worst if worst.is_right else other for pair, (worst, other) in zip(pairs, both, strict=True)}


@pytest.mark.parametrize(
    "pair",
    [pytest.param(pair, id=f"{name}-{i}") for name, pairs in ATTACKS.items() for i, pair in enumerate(pairs)],
)
def test_an_attack_is_not_right(verdicts: dict[tuple[str, str], Verdict], pair: tuple[str, str]) -> None:
    verdict = verdicts[pair]
    assert not verdict.is_right
    assert verdict.reason


@pytest.mark.parametrize(("gold", "response"), RESPONSES, ids=range(len(RESPONSES)))
def test_a_hostile_response_is_not_right(verifier: MathVerifier, gold: str, response: str) -> None:
    assert not verifier.grade(gold, response).is_right
    assert not verifier.grade_predictions([(gold, response)])[0].is_right


@pytest.mark.parametrize(("gold", "answer"), COSTLY, ids=range(len(COSTLY)))
def test_a_costly_answer_does_not_count_as_a_fault_of_the_grader(
    verdicts: dict[tuple[str, str], Verdict], gold: str, answer: str
) -> None:
    assert verdicts[gold, answer].kind == "wrong"


def test_there_are_many_attacks_of_many_kinds() -> None:
    assert len({*RESPONSES, *(pair for pairs in ATTACKS.values() for pair in pairs)}) >= 300
    assert len(ATTACKS) == 8
