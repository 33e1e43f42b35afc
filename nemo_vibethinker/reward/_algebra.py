"""Equality by algebra, with math-verify; runs in a child process that is killed when it takes too long.

Requests and replies are JSON lines on standard input and output: [gold, answer] and [equal, error].
"""

import json
import os
import re
import resource
import sys
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify
from sympy import Expr, Float, N, Rational

from nemo_vibethinker.reward._answers import split_answers

_MEMORY = 4 << 30
_DIGITS = 30
_TOLERANCE = Float("1e-12", _DIGITS)
_EQUALS = re.compile(r"(?<![<>!:=])=(?!=)")
_NAME = re.compile(r"\|?\\?[A-Za-z]+(?:_\{?\w+\}?)?'*(?:\([A-Za-z0-9,]*\))?\|?|[A-Z]:[A-Z]")
# Not ExprExtractionConfig as well: it would pick the last number out of a text that does not parse as a whole.
_EXTRACTION = [LatexExtractionConfig()]
_POINTS = [
    (Rational(37, 53), Rational(11, 97)),
    (Rational(71, 41), Rational(13, 89)),
    (Rational(29, 83), Rational(7, 61)),
]


def equal(gold: str, answer: str) -> bool:
    """Whether two normalised answers mean the same; lists match one to one, in any order."""
    expected, given = split_answers(gold), split_answers(answer)
    if len(expected) != len(given):
        return False
    for part in expected:
        match = next((other for other in given if _same(part, other)), None)
        if match is None:
            return False
        given.remove(match)
    return True


def _same(gold: str, answer: str) -> bool:
    expected, given = _EQUALS.split(gold), _EQUALS.split(answer)
    if len(expected) == len(given) == 1:
        return _same_expression(gold, answer)
    if len(expected) == 1:
        needed = given[-1:] if _NAME.fullmatch(given[0].strip()) else given
        return all(_same_expression(gold, side) for side in needed)
    if len(given) == 1:
        return bool(_NAME.fullmatch(expected[0].strip())) and _same_expression(expected[-1], answer)
    if expected[0].strip() == given[0].strip():
        return _same_expression(expected[-1], given[-1])
    return len(expected) == len(given) == 2 and _same_equation(expected, given)


def _parse(text: str) -> list[Any]:
    # The caller's deadline replaces the library's alarm signals.
    return parse(f"${text}$", extraction_config=_EXTRACTION, parsing_timeout=None)  # type: ignore[arg-type]


def _same_expression(gold: str, answer: str) -> bool:
    expected, given = _parse(gold), _parse(answer)
    if not expected or not given or not verify(expected, given, timeout_seconds=None):
        return False
    if isinstance(expected[0], Expr) and isinstance(given[0], Expr):
        return _agree(expected[0], given[0])
    return True


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


def _same_equation(gold: list[str], answer: list[str]) -> bool:
    """Whether the differences of the sides are proportional, judged at sample points."""
    sides = [_parse(side)[:1] for side in (*gold, *answer)]
    if not all(side and isinstance(side[0], Expr) for side in sides):
        return False
    left, right, other_left, other_right = (side[0] for side in sides)
    first, second = left - right, other_left - other_right
    pairs = zip(_samples(first, first, second), _samples(second, first, second), strict=True)
    ratios = [one / other for one, other in pairs if other != 0]
    if len(ratios) < len(_POINTS) or not all(ratio.is_finite and ratio != 0 for ratio in ratios):
        return False
    return all(abs(ratio - ratios[0]) <= _TOLERANCE * abs(ratios[0]) for ratio in ratios)


def _reply(line: str) -> list[Any]:
    try:
        return [equal(*json.loads(line)), ""]
    except Exception as error:  # whatever hostile text provokes in the parsers is reported, and the caller counts it
        return [False, f"{type(error).__name__}: {str(error)[:200]}"]


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like a reply
    replies.write("ready\n")
    for line in sys.stdin:
        replies.write(json.dumps(_reply(line)) + "\n")
