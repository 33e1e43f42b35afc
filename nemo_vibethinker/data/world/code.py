"""Code families: each task asks for one small Python function f(x); its tests tell the parameters apart."""

import random
from collections.abc import Callable, Iterable
from typing import Any

from nemo_vibethinker.data.world.problem import Family, Problem


def _task(
    rng: random.Random,
    text: str,
    expression: tuple[str, str],
    statements: tuple[str, list[str]],
    function: Callable[[Any], object],
    inputs: Iterable[object],
) -> Problem:
    """A problem with two solutions, each given as (strategy, code): one expression, and a body of statements."""
    prompt = rng.choice(["Write f(x): {}.", "Define f(x): {}.", "Code f(x): {}."]).format(text)
    tests = tuple(f"assert f({given!r}) == {function(given)!r}" for given in inputs)
    solutions = {
        expression[0]: _program(expression[0], [f"return {expression[1]}"]),
        statements[0]: _program(statements[0], statements[1]),
    }
    return Problem(key=(text,), prompt=prompt, solutions=solutions, tests=tests)


def _program(strategy: str, lines: list[str]) -> str:
    body = "".join(f"    {line}\n" for line in lines)
    return f"Use {strategy.replace('_', ' ')}.\n```python\ndef f(x):\n{body}```"


def arithmetic(rng: random.Random, level: int) -> Problem:
    """x plus k; a times x plus b; a times (x plus k) plus b: one expression or a variable updated in steps."""
    a, k, b = rng.randint(2, 9), rng.randint(2, 12), rng.randint(1, 150 if level == 1 else 30)
    word, sign = rng.choice([("plus", "+"), ("minus", "-")])
    signed = b if sign == "+" else -b
    text = ("x", f"{a} times x", f"{a} times (x plus {k})")[level - 1]
    code = ("x", f"{a}*x", f"{a}*(x+{k})")[level - 1]
    steps = ([], [f"y = {a}*y"], [f"y = y+{k}", f"y = {a}*y"])[level - 1]
    scale, shift = (a if level > 1 else 1), (k if level == 3 else 0)
    return _task(
        rng,
        f"{text} {word} {b}",
        ("one_expression", f"{code}{sign}{b}"),
        ("a_variable", ["y = x", *steps, f"y = y{sign}{b}", "return y"]),
        lambda x: scale * (x + shift) + signed,
        (0, 1, 5, -20),
    )


def bound(rng: random.Random, level: int) -> Problem:
    """x, or x plus a, kept from going below or above k (level 3: both bounds): min and max or branches."""
    a, k = (0 if level == 1 else rng.randint(2, 20)), rng.randint(10, 150)
    value, code = ("x", "x") if level == 1 else (f"x plus {a}", f"x+{a}")
    if level == 3:
        top = k + rng.randint(2, 30)
        return _task(
            rng,
            f"{value}, at least {k}, at most {top}",
            ("min_or_max", f"min(max({code}, {k}), {top})"),
            (
                "branches",
                [f"y = {code}", f"if y < {k}:", f"    y = {k}", f"if y > {top}:", f"    y = {top}", "return y"],
            ),
            lambda x: min(max(x + a, k), top),
            (k - a - 1, k - a + 1, top - a, top - a + 1),
        )
    word, name, sign, pick = rng.choice([("below", "max", "<", max), ("above", "min", ">", min)])
    return _task(
        rng,
        f"{value}, but not {word} {k}",
        ("min_or_max", f"{name}({code}, {k})"),
        ("branches", [f"if {code} {sign} {k}:", f"    return {k}", f"return {code}"]),
        lambda x: pick(x + a, k),
        (k - a - 3, k - a, k - a + 1, k - a + 5),
    )


def list_total(rng: random.Random, level: int) -> Problem:
    """Count or sum of the items beyond a threshold, level 3 scaled: a comprehension or a loop."""
    t, a = rng.randint(2, 150), rng.randint(2, 9)
    word, sign = rng.choice([("above", ">"), ("below", "<")])
    noun, item, scale = ("count", "1", "") if level == 1 else ("sum", "i", "" if level == 2 else f"{a}*")
    factor = a if level == 3 else 1

    def function(x: list[int]) -> int:
        kept = [i for i in x if (i > t if sign == ">" else i < t)]
        return factor * (len(kept) if level == 1 else sum(kept))

    return _task(
        rng,
        f"{f'{a} times ' if level == 3 else ''}{noun} of items {word} {t}",
        ("a_comprehension", f"{scale}sum({item} for i in x if i {sign} {t})"),
        ("a_loop", ["s = 0", "for i in x:", f"    if i {sign} {t}:", f"        s += {item}", f"return {scale}s"]),
        function,
        ([t, t + 1, t + 1, t + 7], [t - 1, t, t - 4], [t - 1, t + 1], []),
    )


def text_edit(rng: random.Random, level: int) -> Problem:
    """A string with two digits added, repeated, reversed: operators or a loop."""
    n, ending = rng.randint(2, 9), str(rng.randint(10, 99))
    parts = ["x", f"x repeated {n} times", f"x reversed, repeated {n} times"]
    operator = ["x", f"x*{n}", f"x[::-1]*{n}"][level - 1]
    source = "reversed(x)" if level == 3 else "x"
    build = (
        ["s = ''", f"for c in {source}:", "    s = s+c"]
        if level != 2
        else ["s = ''", f"for i in range({n}):", "    s = s+x"]
    )
    after = rng.random() < 0.5
    finish = [f"s = s*{n}"] if level == 3 else []
    copies = n if level > 1 else 1

    def function(x: str) -> str:
        middle = (x[::-1] if level == 3 else x) * copies
        return middle + ending if after else ending + middle

    return _task(
        rng,
        f"{parts[level - 1]} plus '{ending}'" if after else f"'{ending}' plus {parts[level - 1]}",
        ("an_operator", f"{operator}+'{ending}'" if after else f"'{ending}'+{operator}"),
        ("a_loop", [*build, *finish, f"return s+'{ending}'" if after else f"return '{ending}'+s"]),
        function,
        ("xy", "", "pqr"),
    )


def condition(rng: random.Random, level: int) -> Problem:
    """One of two values by parity, by a threshold, or by divisibility: a conditional expression or an if."""
    a, b, t = rng.randint(2, 60), rng.randint(2, 60), rng.randint(3, 60)
    m = rng.randint(2, 9)
    if a == b:
        return condition(rng, level)
    texts = [
        (f"{a} if x is even, else {b}", str(a), str(b), "x%2 == 0"),
        (f"x plus {a} if x above {t}, else x minus {b}", f"x+{a}", f"x-{b}", f"x > {t}"),
        (f"x plus {a} if {m} divides x, else x times {b}", f"x+{a}", f"x*{b}", f"x%{m} == 0"),
    ]
    text, yes, no, test = texts[level - 1]

    def function(x: int) -> int:
        if level == 1:
            return a if x % 2 == 0 else b
        if level == 2:
            return x + a if x > t else x - b
        return x + a if x % m == 0 else x * b

    inputs = [(2, 3, 4, 7), (t, t + 1, t - 1, t + 20), (m, m + 1, 4 * m, 2 * m - 1)][level - 1]
    return _task(
        rng,
        text,
        ("a_conditional", f"{yes} if {test} else {no}"),
        ("an_if", [f"if {test}:", f"    return {yes}", f"return {no}"]),
        function,
        inputs,
    )


FAMILIES = tuple(Family(make.__name__, "code", make) for make in (arithmetic, bound, list_total, text_edit, condition))
