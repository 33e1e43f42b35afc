"""Calculus families: derivatives at a point, product derivatives, integrals, mean slopes, minima."""

import random

from nemo_vibethinker.data.world.problem import Family, Problem, add, boxed, div, mul, poly, quadratic, sub


def derivative(rng: random.Random, level: int) -> Problem:
    """Derivative of ax^2 + bx at a point, by the power rule or from the difference quotient."""
    a = rng.randint(*((2, 5), (2, 6), (5, 9))[level - 1])
    b = rng.randint(*((1, 9), (10, 40), (10, 60))[level - 1])
    x = rng.randint(*((2, 9), (3, 9), (6, 12))[level - 1])
    answer = 2 * a * x + b
    slope = poly((2 * a, "x"), (b, "")).replace(" ", "")
    power = boxed(answer, f"f'={slope}", mul(2 * a, x), add(2 * a * x, b))
    quotient = boxed(answer, mul(2, x), f"(f({x}+h)-f({x}))/h={a}*({2 * x}+h)+{b}", mul(a, 2 * x), add(2 * a * x, b))
    wording = ["Differentiate {} at x = {}.", "Find the slope of {} at x = {}."]
    return Problem(
        key=(a, b, x),
        prompt=rng.choice(wording).format(poly((a, "x^2"), (b, "x")), x),
        answer=str(answer),
        solutions={"power_rule": power, "difference_quotient": quotient},
    )


def product_derivative(rng: random.Random, level: int) -> Problem:
    """Derivative of (ax + b)(x + c) at a point, by the product rule or after expanding."""
    a = rng.randint(2, 4) if level == 3 else 1
    b, c = (rng.randint(10, 30) if level == 2 else rng.randint(1, 9) for _ in range(2))
    x = rng.randint(2, 9)
    left, right = a * x + b, x + c
    answer = left + a * right
    scale = ((mul(a, x),), (mul(a, right),), (mul(a, c),)) if a > 1 else ((), (), ())
    product = boxed(answer, *scale[0], add(a * x, b), add(x, c), *scale[1], add(left, a * right))
    linear = a * c + b
    expand = boxed(answer, *scale[2], add(a * c, b), mul(2 * a, x), add(2 * a * x, linear))
    text = f"({poly((a, 'x'), (b, ''))})(x + {c})"
    prompt = rng.choice(["Differentiate {} at x = {}.", "Slope of {} at x = {}."]).format(text, x)
    return Problem(
        key=(a, b, c, x), prompt=prompt, answer=str(answer), solutions={"product_rule": product, "expand": expand}
    )


def integral(rng: random.Random, level: int) -> Problem:
    """Integral of a linear function, by its antiderivative or as the area of a trapezoid."""
    k = rng.randint(*((1, 4), (1, 3), (2, 3))[level - 1])
    b = rng.randint(*((2, 9), (1, 9), (10, 25))[level - 1])
    low = 0 if level == 1 else rng.randint(1, 3)
    high = low + rng.randint(2, 8 if level == 1 else 5)
    values = {x: k * x * x + b * x for x in (low, high)}
    answer = values[high] - values[low]
    primitive = [poly((k, "x^2"), (b, "x")).replace(" ", "")]
    primitive += quadratic(k, b, high)
    if low:
        primitive += [*quadratic(k, b, low), sub(values[high], values[low])]
    left, right, width = 2 * k * low + b, 2 * k * high + b, high - low
    ends = [mul(2 * k, low), add(2 * k * low, b)] if low else []
    gap = [sub(high, low)] if low else []
    ends += [mul(2 * k, high), add(2 * k * high, b), add(left, right), div(left + right, 2), *gap]
    trapezoid = boxed(answer, *ends, mul((left + right) // 2, width))
    wording = [
        "Integrate {} from {} to {}.",
        "Find the area under {} from {} to {}.",
    ]
    return Problem(
        key=(k, b, low, high),
        prompt=rng.choice(wording).format(poly((2 * k, "x"), (b, "")), low, high),
        answer=str(answer),
        solutions={"antiderivative": boxed(answer, *primitive), "trapezoid": trapezoid},
    )


def average_slope(rng: random.Random, level: int) -> Problem:
    """Mean slope of ax^2 + bx over an interval, from the end values or from the midpoint derivative."""
    a = rng.randint(*((2, 4), (2, 3), (4, 6))[level - 1])
    b = rng.randint(*((1, 9), (10, 25), (10, 30))[level - 1])
    low = rng.randint(1, 3)
    high = low + rng.randint(2, 5)
    left, right, width, answer = a * low * low + b * low, a * high * high + b * high, high - low, a * (low + high) + b
    ends = [*quadratic(a, b, high), *quadratic(a, b, low)]
    end_values = boxed(answer, *ends, sub(right, left), sub(high, low), div(right - left, width))
    midpoint = boxed(answer, add(low, high), mul(a, low + high), add(a * (low + high), b))
    prompt = rng.choice(["Average slope of {} from {} to {}.", "Mean slope of {} from {} to {}."])
    return Problem(
        key=(a, b, low, high),
        prompt=prompt.format(poly((a, "x^2"), (b, "x")), low, high),
        answer=str(answer),
        solutions={"end_values": end_values, "midpoint": midpoint},
    )


def minimum(rng: random.Random, level: int) -> Problem:
    """Minimum of a(x-p)^2 + m, from the zero of the derivative or by completing the square."""
    a = rng.randint(2, 3) if level == 3 else 1
    p = rng.randint(*((2, 6), (4, 9), (2, 5))[level - 1])
    m = rng.randint(1, 60)
    b, c = 2 * a * p, a * p * p + m
    scale = [mul(a, p * p)] if a > 1 else []
    zero = f"{poly((2 * a, 'x'), (-b, ''))}=0".replace(" ", "")
    steps = [zero, f"x={div(b, 2 * a)}", mul(p, p), *scale, add(a * p * p, c), mul(b, p), sub(a * p * p + c, b * p)]
    halves = [div(b, a)] if a > 1 else []
    square = [*halves, div(2 * p, 2), mul(p, p), *scale, sub(c, a * p * p)]
    wording = ["Find the minimum of {}.", "Find the least value of {}."]
    return Problem(
        key=(a, p, m),
        prompt=rng.choice(wording).format(poly((a, "x^2"), (-b, "x"), (c, ""))),
        answer=str(m),
        solutions={"derivative_zero": boxed(m, *steps), "complete_square": boxed(m, *square)},
    )


FAMILIES = tuple(
    Family(make.__name__, "calculus", make)
    for make in (derivative, product_derivative, integral, average_slope, minimum)
)
