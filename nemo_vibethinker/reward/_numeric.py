"""Values of expression trees, exactly where they are rational and else to high precision, and equality by them.

Two expressions are equal if their values are equal at sample points, so formulas need no simplifying (Schwartz 1980,
Zippel 1979). A difference counts as zero only if it shrinks as the precision grows.
"""

import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import mpmath
from mpmath import mp

from nemo_vibethinker.reward._expression import Tree

_DIGITS = (40, 120)  # of the two evaluations; noise shrinks between them, a real difference stays
_SHRINKS = mpmath.mpf(10) ** -40
_MAX_EXACT_BITS = 200_000
_MAX_MAGNITUDE = 5_000  # decimal digits before or after the point of an inexact value
_MAX_FACTORIAL = 5_000
_POINTS = (  # for the symbols in alphabetical order: start and step; the last has both signs
    (Fraction(37, 53), Fraction(11, 97)),
    (Fraction(171, 41), Fraction(13, 89)),
    (Fraction(29, 83), Fraction(127, 61)),
    (Fraction(-163, 71), Fraction(59, 43)),
)
_REAL_POINTS = 3

Environment = dict[str, Fraction]


class TooLarge(ValueError):
    """A value beyond what is worth computing; raised before the work is done."""


class Undefined(ValueError):
    """No finite value at this point."""


def symbols(tree: Tree) -> set[str]:
    """Names of the free symbols."""
    if tree[0] == "sym":
        return {tree[1]}
    return set().union(*(symbols(part) for part in tree[1:] if isinstance(part, tuple)))


def equal(first: Tree, second: Tree) -> bool:
    """Whether two expressions have the same values. Raises TooLarge."""
    names = sorted(symbols(first) | symbols(second))
    if not names:
        return _equal_at(first, second, {}) is True
    seen = [_equal_at(first, second, point) for point in _points(names)]
    positive = [verdict for verdict in seen[:_REAL_POINTS] if verdict is not None]
    return bool(positive) and all(positive) and seen[-1] is not False


def _points(names: list[str]) -> Iterator[Environment]:
    for start, step in _POINTS:
        yield {name: start + index * step for index, name in enumerate(names)}


def _equal_at(first: Tree, second: Tree, point: Environment) -> bool | None:
    """None where a value is undefined, or where complex branches of negative numbers play a part."""
    try:
        exact = _exact(first, point), _exact(second, point)
        if exact[0] is not None and exact[1] is not None:
            return exact[0] == exact[1]
        values = [[evaluate(tree, point, digits) for tree in (first, second)] for digits in _DIGITS]
    except Undefined:
        return None
    same = _agree(values)
    involves_branches = any(value < 0 for value in point.values()) and any(mp.im(v) != 0 for v in values[0])
    return None if not same and involves_branches else same


def _agree(values: list[list[Any]]) -> bool:
    rough, fine = (abs(first - second) for first, second in values)
    scale = max(map(abs, values[1]))
    if scale > mpmath.mpf(10) ** (_DIGITS[1] - 20):
        raise TooLarge("too large to compare digit by digit")
    if fine <= scale * mpmath.mpf(10) ** -(_DIGITS[1] - 20):
        return True
    return bool(fine <= rough * _SHRINKS)


def evaluate(tree: Tree, point: Environment, digits: int = 30) -> Any:
    """The value as an mpmath number of `digits` digits. Raises TooLarge and Undefined."""
    with mp.workdps(digits):
        try:
            return _checked(_value(tree, point))
        except (ZeroDivisionError, OverflowError, ValueError) as error:
            if isinstance(error, (TooLarge, Undefined)):
                raise
            raise Undefined(str(error)) from None


def _checked(value: Any) -> Any:
    if not mp.isfinite(value):
        raise Undefined("no finite value")
    if value and abs(mp.mag(value)) > _MAX_MAGNITUDE * 3.33:
        raise TooLarge(f"a value of more than {_MAX_MAGNITUDE} digits")
    return value


def exact_constant(tree: Tree) -> Fraction | None:
    """The value of a tree without symbols if it is rational by plain arithmetic, else None. Raises TooLarge."""
    try:
        return None if symbols(tree) else _exact(tree, {})
    except Undefined:
        return None


def _exact(tree: Tree, point: Environment) -> Fraction | None:
    kind = tree[0]
    if kind == "num":
        return tree[1]
    if kind == "sym":
        return point[tree[1]]
    if kind in ("const", "call") and not (kind == "call" and tree[1] in _EXACT_CALLS):
        return None
    parts = [_exact(part, point) for part in tree[1:] if isinstance(part, tuple)]
    if any(part is None for part in parts):
        return None
    return _bounded(_combine(tree, [part for part in parts if part is not None]))


def _combine(tree: Tree, parts: list[Fraction]) -> Fraction | None:
    kind = tree[0]
    if kind == "add":
        return sum(parts, Fraction(0))
    if kind == "mul":
        return parts[0] * parts[1]
    if kind == "neg":
        return -parts[0]
    if kind == "div":
        if not parts[1]:
            raise Undefined("division by zero")
        return parts[0] / parts[1]
    return _exact_power(*parts) if kind == "pow" else _EXACT_CALLS[tree[1]](*parts)


def _bounded(value: Fraction | None) -> Fraction | None:
    if value is not None and max(value.numerator.bit_length(), value.denominator.bit_length()) > _MAX_EXACT_BITS:
        raise TooLarge("an exact value of too many digits")
    return value


def _exact_power(base: Fraction, exponent: Fraction) -> Fraction | None:
    if exponent.denominator != 1:
        return None
    if base in (0, 1, -1):
        if not base and exponent < 0:
            raise Undefined("division by zero")
        return base ** int(exponent % 2 if base else min(exponent, 1))
    bits = max(base.numerator.bit_length(), base.denominator.bit_length())
    if abs(exponent) * bits > _MAX_EXACT_BITS:
        raise TooLarge("a power of too many digits")
    return base ** int(exponent)


def _exact_factorial(value: Fraction) -> Fraction | None:
    if value.denominator != 1 or value < 0:
        return None
    if value > _MAX_FACTORIAL:
        raise TooLarge("a factorial of too many digits")
    return Fraction(math.factorial(int(value)))


def _exact_binomial(above: Fraction, below: Fraction) -> Fraction | None:
    if above.denominator != 1 or below.denominator != 1 or not 0 <= below <= above:
        return None
    if above > _MAX_FACTORIAL:
        raise TooLarge("a binomial coefficient of too many digits")
    result = Fraction(1)
    for step in range(int(below)):
        result = result * (above - step) / (step + 1)
    return result


def _exact_gcd(*parts: Fraction) -> Fraction | None:
    return Fraction(math.gcd(*(int(part) for part in parts))) if all(p.denominator == 1 for p in parts) else None


def _exact_lcm(*parts: Fraction) -> Fraction | None:
    return Fraction(math.lcm(*(int(part) for part in parts))) if all(p.denominator == 1 for p in parts) else None


_EXACT_CALLS: dict[str, Any] = {
    "factorial": _exact_factorial,
    "binomial": _exact_binomial,
    "gcd": _exact_gcd,
    "lcm": _exact_lcm,
    "abs": abs,
    "floor": lambda value: Fraction(value.numerator // value.denominator),
    "ceil": lambda value: Fraction(-(-value.numerator // value.denominator)),
    "min": min,
    "max": max,
}


def _value(tree: Tree, point: Environment) -> Any:
    kind = tree[0]
    if kind in ("num", "sym"):
        value = tree[1] if kind == "num" else point[tree[1]]
        return mp.mpf(value.numerator) / value.denominator
    if kind == "const":
        return {"pi": +mp.pi, "e": +mp.e, "mathrme": +mp.e, "i": mp.mpc(0, 1)}[tree[1]]
    parts = [_checked(_value(part, point)) for part in tree[1:] if isinstance(part, tuple)]
    if kind == "call":
        return _call(tree[1], parts)
    if kind == "add":
        return mp.fsum(parts)
    if kind == "neg":
        return -parts[0]
    if kind == "pow":
        return _power(*parts)
    return parts[0] * parts[1] if kind == "mul" else parts[0] / parts[1]


def _power(base: Any, exponent: Any) -> Any:
    if base == 0:
        return mp.power(base, exponent)
    if abs(exponent) * max(abs(mp.mag(base)), 1) > _MAX_MAGNITUDE * 4:
        raise TooLarge("a power of too many digits")
    if mp.im(base) == 0 and mp.re(base) < 0 and mp.im(exponent) == 0:
        return _real_root(mp.re(base), mp.re(exponent))
    return mp.power(base, exponent)


def _real_root(base: Any, exponent: Any) -> Any:
    """Odd roots of negative numbers are negative, as in school."""
    inverse = 1 / exponent if exponent else 0
    nearest = mp.nint(inverse)
    if abs(inverse - nearest) < mpmath.mpf(10) ** -20 and int(nearest) % 2 == 1:
        return -mp.power(-base, exponent)
    return mp.power(base, exponent)


def _call(name: str, parts: list[Any]) -> Any:
    if name.startswith("unknown "):
        return _unknown(name, parts)
    if name in ("exp", "sinh", "cosh") and abs(parts[0]) > _MAX_MAGNITUDE:
        raise TooLarge("an exponential of too many digits")
    if name == "factorial" and abs(parts[0]) > _MAX_FACTORIAL:
        raise TooLarge("a factorial of too many digits")
    return _CALLS[name](*parts)


def _unknown(name: str, parts: list[Any]) -> Any:
    """A stand-in for an unknown function: equal arguments, and as good as only those, give equal values."""
    seed = mp.mpf(sum(ord(letter) * (place + 3) for place, letter in enumerate(name)))
    return mp.fsum(mp.cos(mp.sqrt(seed + place) * part) + part / (seed + place) for place, part in enumerate(parts))


def _compare(choose: Any) -> Any:
    return lambda *parts: choose(mp.re(part) for part in parts)


def _gcd(*parts: Any) -> Any:
    raise Undefined("a common divisor of what is no integer")


_CALLS: dict[str, Any] = {
    "sin": mp.sin, "cos": mp.cos, "tan": mp.tan, "cot": mp.cot, "sec": mp.sec, "csc": mp.csc,
    "arcsin": mp.asin, "arccos": mp.acos, "arctan": mp.atan, "arccot": mp.acot, "sinh": mp.sinh, "cosh": mp.cosh,
    "tanh": mp.tanh, "coth": mp.coth, "ln": mp.log, "exp": mp.exp, "lg": mp.log10, "abs": abs,
    "log": lambda value, base=None: mp.log(value) / mp.log(base) if base is not None else mp.log(value),
    "floor": mp.floor, "ceil": mp.ceil, "factorial": mp.factorial, "binomial": mp.binomial,
    "degree": lambda value: value * mp.pi / 180, "min": _compare(min), "max": _compare(max), "gcd": _gcd, "lcm": _gcd,
}  # fmt: skip
