"""Algebra families: linear equations, polynomial values, sum and difference, arithmetic sequences."""

import random

from nemo_vibethinker.data.world.problem import Family, Problem, add, boxed, div, mul, poly, sub


def linear_equation(rng: random.Random, level: int) -> Problem:
    """ax + b = c (level 3: ax + b = cx + d), isolating x or correcting a trial value."""
    if level == 1:
        a, b, c, x = rng.randint(2, 9), rng.randint(1, 9), 0, rng.randint(2, 9)
    elif level == 2:
        a, b, c, x = rng.randint(2, 9), rng.randint(10, 30), 0, rng.randint(2, 12)
    else:
        a, b, x = rng.randint(5, 9), rng.randint(1, 9), rng.randint(2, 9)
        c = rng.randint(2, a - 2)
    d, slope = (a - c) * x + b, a - c
    collect = (f"{a}x-{c}x={slope}x",) if c else ()
    isolate = boxed(x, *collect, f"{slope}x={sub(d, b)}", f"x={div(d - b, slope)}")
    right = (add(c, d),) if c else ()
    gap = (c + d) - (a + b)
    trial = boxed(x, "try x=1", add(a, b), *right, sub(c + d, a + b), div(gap, slope), f"x={add(1, x - 1)}")
    equation = f"{poly((a, 'x'), (b, ''))} = {poly((c, 'x'), (d, ''))}"
    prompt = rng.choice(["Solve {}.", "Find x if {}."]).format(equation)
    return Problem(key=(a, b, c, d), prompt=prompt, answer=str(x), solutions={"isolate": isolate, "trial": trial})


def polynomial_value(rng: random.Random, level: int) -> Problem:
    """The value of a quadratic, term by term or by Horner's scheme."""
    low, high = ((2, 6), (4, 9), (3, 6))[level - 1]
    x, p, a = rng.randint(low, high), rng.randint(2, 9), rng.randint(2, 3) if level == 3 else 1
    q = rng.randint(10, 40) if level == 2 else rng.randint(1, 9)
    square, linear = a * x * x, p * x
    scale = (mul(a, x * x),) if a > 1 else ()
    terms = boxed(square + linear + q, mul(x, x), *scale, mul(p, x), add(square, linear), add(square + linear, q))
    scale = (mul(a, x),) if a > 1 else ()
    inner = a * x + p
    horner = boxed(square + linear + q, *scale, add(a * x, p), mul(inner, x), add(inner * x, q))
    text = poly((a, "x^2"), (p, "x"), (q, ""))
    prompt = rng.choice(["Find {} for x = {}.", "Evaluate {} for x = {}."]).format(text, x)
    answer = str(square + linear + q)
    return Problem(key=(a, p, q, x), prompt=prompt, answer=answer, solutions={"terms": terms, "horner": horner})


def sum_and_difference(rng: random.Random, level: int) -> Problem:
    """One of two numbers from their sum and difference, directly or through the other number."""
    low, high, step_low, step_high = ((5, 40, 1, 9), (10, 40, 10, 30), (30, 60, 20, 70))[level - 1]
    small, difference = rng.randint(low, high), rng.randint(step_low, step_high)
    large, total = small + difference, 2 * small + difference
    by_sum = (add(total, difference), div(2 * large, 2))
    by_difference = (sub(total, difference), div(2 * small, 2))
    wanted = rng.choice(["larger", "smaller"])
    if wanted == "larger":
        answer, direct, other = large, by_sum, (*by_difference, add(small, difference))
    else:
        answer, direct, other = small, by_difference, (*by_sum, sub(large, difference))
    wording = [
        "Two numbers have sum {} and difference {}. Find the {}.",
        "Two numbers sum to {} and differ by {}. Find the {}.",
    ]
    return Problem(
        key=(total, difference),
        prompt=rng.choice(wording).format(total, difference, wanted),
        answer=str(answer),
        solutions={"direct": boxed(answer, *direct), "through_other": boxed(answer, *other)},
    )


def arithmetic_sequence(rng: random.Random, level: int) -> Problem:
    """The n-th term of an arithmetic sequence, by listing terms or by the closed form."""
    first = rng.randint(*((10, 30), (10, 40), (20, 80))[level - 1])
    step = rng.randint(*((1, 6), (3, 9), (6, 12))[level - 1])
    n = rng.randint(*((4, 6), (5, 7), (6, 8))[level - 1])
    answer = first + (n - 1) * step
    terms = [first + i * step for i in range(n)]
    listing = boxed(answer, f"step {sub(terms[1], first)}", ", ".join(map(str, terms)))
    closed = boxed(answer, f"step {sub(terms[1], first)}", mul(n - 1, step), add(first, (n - 1) * step))
    start = ", ".join(map(str, terms[:3]))
    prompt = rng.choice(["A sequence starts {}. Find term {}.", "A sequence begins {}. Find term {}."])
    return Problem(
        key=(first, step, n),
        prompt=prompt.format(start, n),
        answer=str(answer),
        solutions={"listing": listing, "closed_form": closed},
    )


FAMILIES = tuple(
    Family(make.__name__, "algebra", make)
    for make in (linear_equation, polynomial_value, sum_and_difference, arithmetic_sequence)
)
