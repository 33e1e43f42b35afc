"""What a problem family produces, and the worked arithmetic its chains of thought are written with.

Arithmetic is written as chains of true equalities in steps small enough for a tiny model: sums and differences go
place by place (47+38=77+8=85), products and quotients by tens and ones (23*4=80+12=92).

Families keep to two rules that make copying numbers out of the prompt easy to learn: the operands of a level have, as
far as possible, a fixed number of digits, and wordings differ before the first number rather than after it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One instance of a family. `key` identifies the instance whatever its wording; `solutions` maps the name of a
    strategy to a complete response; `answer` is empty for code, `tests` (assert statements) are empty for maths."""

    key: tuple[int | str, ...]
    prompt: str
    solutions: dict[str, str]
    answer: str = ""
    tests: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Family:
    """A named generator of problems of one domain; `make(rng, level)` draws one instance of level 1, 2 or 3."""

    name: str
    domain: str
    make: Callable[[random.Random, int], Problem]


def boxed(answer: int | str, *steps: str) -> str:
    """A chain of thought: one step per line, then the boxed answer."""
    return "\n".join((*steps, f"\\boxed{{{answer}}}"))


def poly(*terms: tuple[int, str]) -> str:
    """Polynomial text from (coefficient, power) terms: ((1, "x^2"), (-3, "x"), (2, "")) gives "x^2 - 3x + 2"."""
    text = ""
    for coefficient, power in terms:
        size = "" if abs(coefficient) == 1 and power else str(abs(coefficient))
        sign = (" - " if coefficient < 0 else " + ") if text else ("-" if coefficient < 0 else "")
        text += f"{sign}{size}{power}" if coefficient else ""
    return text


def _places(number: int) -> list[int]:
    """The non-zero place values, highest first: 138 gives [100, 30, 8]."""
    digits = str(number)
    return [int(d) * 10 ** (len(digits) - 1 - i) for i, d in enumerate(digits) if d != "0"]


def _fold(first: int, second: int, sign: str) -> str:
    """first (sign) second, one place of `second` at a time, written as a chain of equalities."""
    chain, total, rest = f"{first}{sign}{second}", first, second
    for part in _places(second) if first >= 10 else [second]:
        total, rest = total + part if sign == "+" else total - part, rest - part
        chain += f"={total}{sign}{rest}" if rest else f"={total}"
    return chain if second >= 1 else f"{first}{sign}0={first}"


def add(a: int, b: int) -> str:
    """a+b for a, b >= 0, e.g. "47+38=77+8=85"."""
    return _fold(a, b, "+")


def sub(a: int, b: int) -> str:
    """a-b for a >= b >= 0, e.g. "85-38=55-8=47"."""
    assert a >= b, f"negative difference {a}-{b}"
    return _fold(a, b, "-")


def mul(a: int, b: int) -> str:
    """a*b for a, b >= 0, by tens and ones of the longer factor, e.g. "23*4=80+12=92"."""
    tens, ones = divmod(max(a, b), 10)
    if not tens or not ones or min(a, b) < 2:
        return f"{a}*{b}={a * b}"
    return f"{a}*{b}={tens * 10 * min(a, b)}+{ones * min(a, b)}={a * b}"


def quadratic(a: int, b: int, x: int) -> list[str]:
    """The steps that compute ax^2 + bx as (ax + b)x; no product is written when a is 1."""
    return [*([mul(a, x)] if a > 1 else []), add(a * x, b), mul(a * x + b, x)]


def div(a: int, b: int) -> str:
    """a/b for b > 0 dividing a, by tens and ones of the quotient, e.g. "92/4=20+3=23"."""
    assert a % b == 0, f"{a}/{b} is not whole"
    tens, ones = divmod(a // b, 10)
    if not tens or not ones:
        return f"{a}/{b}={a // b}"
    return f"{a}/{b}={tens * 10}+{ones}={a // b}"
