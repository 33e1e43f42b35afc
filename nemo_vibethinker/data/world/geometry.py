"""Geometry families: rectangle perimeter, corner-cut area, angle sums, trapezoid area."""

import random

from nemo_vibethinker.data.world.problem import Family, Problem, add, boxed, div, mul, sub


def rectangle_perimeter(rng: random.Random, level: int) -> Problem:
    """Perimeter from the sides, adding four sides or doubling; level 3 asks for a side from the perimeter."""
    if level == 3:
        return _side_from_perimeter(rng)
    a, b = (rng.randint(10, 40), rng.randint(2, 9)) if level == 1 else (rng.randint(10, 49), rng.randint(10, 49))
    answer = 2 * (a + b)
    four = boxed(answer, add(a, b), add(a + b, a), add(2 * a + b, b))
    double = boxed(answer, add(a, b), mul(2, a + b))
    wording = [
        "A rectangle has sides {} and {}. Find its perimeter.",
        "A field has sides {} and {}. Find its perimeter.",
    ]
    return Problem(
        key=(a, b),
        prompt=rng.choice(wording).format(a, b),
        answer=str(answer),
        solutions={"four_sides": four, "double_sum": double},
    )


def _side_from_perimeter(rng: random.Random) -> Problem:
    a, b = rng.randint(10, 40), rng.randint(10, 49)
    perimeter = 2 * (a + b)
    halve = boxed(b, div(perimeter, 2), sub(a + b, a))
    remove = boxed(b, add(a, a), sub(perimeter, 2 * a), div(2 * b, 2))
    wording = [
        "A rectangle has perimeter {} and one side {}. Find the other side.",
        "A field has perimeter {} and one side {}. Find the other side.",
    ]
    return Problem(
        key=("side", perimeter, a),
        prompt=rng.choice(wording).format(perimeter, a),
        answer=str(b),
        solutions={"halve": halve, "remove_sides": remove},
    )


def corner_cut_area(rng: random.Random, level: int) -> Problem:
    """Area of a rectangle without a rectangular corner, by subtraction or by two pieces."""
    wide, high = ((3, 8), (5, 9), (11, 19))[level - 1], ((3, 7), (4, 9), (5, 9))[level - 1]
    a, b = rng.randint(*wide), rng.randint(*high)
    c, d = rng.randint(1, min(a - 1, 9)), rng.randint(1, b - 1)
    answer = a * b - c * d
    subtract = boxed(answer, mul(a, b), mul(c, d), sub(a * b, c * d))
    pieces = boxed(answer, sub(a, c), mul(a - c, b), sub(b, d), mul(c, b - d), add((a - c) * b, c * (b - d)))
    wording = [
        "Rectangle {} by {} loses corner {} by {}. Area?",
        "Field {} by {} loses corner {} by {}. Area?",
    ]
    return Problem(
        key=(a, b, c, d),
        prompt=rng.choice(wording).format(a, b, c, d),
        answer=str(answer),
        solutions={"subtract": subtract, "two_pieces": pieces},
    )


def missing_angle(rng: random.Random, level: int) -> Problem:
    """The last angle of a triangle (level 3: quadrilateral), summing first or subtracting in turn."""
    if level == 3:
        return _quadrilateral_angle(rng)
    unit = 5 if level == 1 else 1
    a, b = (rng.randint(10 // unit, 85 // unit) * unit for _ in range(2))
    answer = 180 - a - b
    wording = [
        "A triangle has angles {} and {}. Find the third angle.",
        "A roof has angles {} and {}. Find the third angle.",
    ]
    return Problem(
        key=(a, b),
        prompt=rng.choice(wording).format(a, b),
        answer=str(answer),
        solutions={
            "sum_first": boxed(answer, add(a, b), sub(180, a + b)),
            "in_turn": boxed(answer, sub(180, a), sub(180 - a, b)),
        },
    )


def _quadrilateral_angle(rng: random.Random) -> Problem:
    a, b, c = (rng.randint(8, 19) * 5 for _ in range(3))
    answer = 360 - a - b - c
    wording = [
        "A quadrilateral has angles {}, {} and {}. Find the last angle.",
        "A field has angles {}, {} and {}. Find the last angle.",
    ]
    return Problem(
        key=("quadrilateral", a, b, c),
        prompt=rng.choice(wording).format(a, b, c),
        answer=str(answer),
        solutions={
            "sum_first": boxed(answer, add(a, b), add(a + b, c), sub(360, a + b + c)),
            "in_turn": boxed(answer, sub(360, a), sub(360 - a, b), sub(360 - a - b, c)),
        },
    )


def trapezoid_area(rng: random.Random, level: int) -> Problem:
    """Area of a trapezoid, by the mean base or as a rectangle and a triangle."""
    low, high, tall = ((2, 9, 9), (10, 19, 6), (12, 30, 9))[level - 1]
    a, excess, h = rng.randint(low, high), 2 * rng.randint(1, 6), rng.randint(2, tall)
    b, half = a + excess, excess // 2
    answer = (a + half) * h
    mean_base = boxed(answer, add(a, b), div(a + b, 2), mul(a + half, h))
    pieces = boxed(answer, mul(a, h), sub(b, a), div(excess, 2), mul(half, h), add(a * h, half * h))
    wording = [
        "A trapezoid has bases {} and {} and height {}. Find its area.",
        "A roof has bases {} and {} and height {}. Find its area.",
    ]
    return Problem(
        key=(a, b, h),
        prompt=rng.choice(wording).format(a, b, h),
        answer=str(answer),
        solutions={"mean_base": mean_base, "two_pieces": pieces},
    )


FAMILIES = tuple(
    Family(make.__name__, "geometry", make)
    for make in (rectangle_perimeter, corner_cut_area, missing_angle, trapezoid_area)
)
