r"""Notation that our parser does not know (sums, integrals, limits, piecewise values): left to math-verify, guarded.

math-verify picks what it can read out of a text, so it is asked only where the reference itself has such notation and
the answer has no word, no list and no second number beside the formula.
"""

import re
from typing import Any

from sympy import Expr, Float, N, Rational

_COMMANDS = re.compile(
    r"\\(?:sum|prod|int|iint|oint|lim|partial|nabla|begin|pmod|bmod|mod|det|Re|Im|cup|cap|setminus|mathbb|emptyset)(?![a-z])"
)
_WORD = re.compile(
    r"(?<![\\A-Za-z])(?<!\\begin\{)(?<!\\end\{)[A-Za-z]{4,}|\\text|\d \d|\\(?:or|and|to|approx|pm)(?![a-z])"
)
_DIGITS = 30
_TOLERANCE = Float("1e-12", _DIGITS)
_POINTS = [
    (Rational(37, 53), Rational(11, 97)),
    (Rational(71, 41), Rational(13, 89)),
    (Rational(29, 83), Rational(7, 61)),
]


def equal(gold: str, answer: str) -> bool:
    """Whether math-verify holds both for equal, and their values agree at sample points."""
    if not _COMMANDS.search(gold) or _WORD.search(answer) or _WORD.search(gold):
        return False
    from math_verify import verify

    expected, given = _parse(gold), _parse(answer)
    if not expected or not given or not verify(expected, given, timeout_seconds=None):
        return False
    if isinstance(expected[0], Expr) and isinstance(given[0], Expr):
        return _agree(expected[0], given[0])
    return True


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Not ExprExtractionConfig as well: it would pick the last number out of a text that does not parse as a whole.
    # The caller's deadline replaces the library's alarm signals.
    return parse(f"${text}$", extraction_config=[LatexExtractionConfig()], parsing_timeout=None)  # type: ignore[arg-type]


def _agree(gold: Expr, answer: Expr) -> bool:
    """Guards math-verify's rounding: the values have to agree to twelve digits at every sample point."""
    pairs = list(zip(_samples(gold, gold, answer), _samples(answer, gold, answer), strict=True))
    pairs = [(left, right) for left, right in pairs if _finite(left) and _finite(right)]
    if not pairs:
        return bool(gold == answer or (gold - answer).simplify() == 0)
    return all(abs(left - right) <= _TOLERANCE * (abs(left) + abs(right)) for left, right in pairs)


def _finite(value: Any) -> bool:
    return bool(value.is_number and value.is_finite)


def _samples(value: Expr, *expressions: Expr) -> list[Any]:
    symbols = sorted(set().union(*(expression.free_symbols for expression in expressions)), key=str)
    points = [{symbol: start + index * step for index, symbol in enumerate(symbols)} for start, step in _POINTS]
    return [N(value.subs(point), _DIGITS) for point in points]
