"""Statistics families: mean, median, missing value of a mean, weighted mean."""

import random

from nemo_vibethinker.data.world.problem import Family, Problem, add, boxed, div, mul, sub


def _running_sum(numbers: list[int]) -> list[str]:
    return [add(sum(numbers[:i]), numbers[i]) for i in range(1, len(numbers))]


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def mean(rng: random.Random, level: int) -> Problem:
    """Mean of a list, by its sum or by deviations from the smallest value."""
    n, low, high = ((3, 1, 9), (3, 10, 40), (4, 10, 40))[level - 1]
    numbers = [rng.randint(low, high) for _ in range(n)]
    numbers[-1] += -sum(numbers) % n
    least, answer = min(numbers), sum(numbers) // n
    excess = [number - least for number in numbers]
    total = boxed(answer, *_running_sum(numbers), div(sum(numbers), n))
    deviations = boxed(
        answer,
        f"over {least}: {_listed(excess)}",
        *_running_sum(excess),
        div(sum(excess), n),
        add(least, answer - least),
    )
    prompt = rng.choice(["Find the mean of {}.", "Find the average of {}."]).format(_listed(numbers))
    return Problem(
        key=tuple(numbers), prompt=prompt, answer=str(answer), solutions={"sum": total, "deviations": deviations}
    )


def median(rng: random.Random, level: int) -> Problem:
    """Median of a list, by sorting or by dropping the extremes; level 3 has an even number of values."""
    n, low, high = ((3, 1, 9), (5, 10, 60), (4, 10, 80))[level - 1]
    numbers = rng.sample(range(low, high + 1), n)
    ordered = sorted(numbers)
    pair = ordered[(n - 1) // 2 : n // 2 + 1]
    total = sum(pair)
    answer = str(pair[0]) if n % 2 else f"{total // 2}.5" if total % 2 else str(total // 2)
    final = [] if n % 2 else [add(*pair), f"{total}/2={answer}"]
    middle = [f"middle {_listed(pair)}", *final]
    drops, rest = [], numbers
    while len(rest) > 2:
        least, most = min(rest), max(rest)
        rest = [number for number in rest if number not in (least, most)]
        drops.append(f"drop {least}, {most}: {_listed(rest)}")
    prompt = rng.choice(["Find the median of {}.", "Find the middle value of {}."]).format(_listed(numbers))
    return Problem(
        key=tuple(numbers),
        prompt=prompt,
        answer=answer,
        solutions={"sort": boxed(answer, _listed(ordered), *middle), "drop_extremes": boxed(answer, *drops, *final)},
    )


def missing_value(rng: random.Random, level: int) -> Problem:
    """A value that gives a list the stated mean, from the totals or by balancing around the mean."""
    n, low, high = ((2, 1, 9), (2, 10, 40), (3, 10, 40))[level - 1]
    numbers = [rng.randint(low, high) for _ in range(n)]
    target = rng.randint(max(low, sum(numbers) // n - 9), sum(numbers) // n + 9)
    total, answer = target * (n + 1), target * (n + 1) - sum(numbers)
    if answer < 1:
        return missing_value(rng, level)
    totals = boxed(answer, mul(target, n + 1), *_running_sum(numbers), sub(total, sum(numbers)))
    over = [number - target for number in numbers if number > target]
    under = [target - number for number in numbers if number < target]
    net = sum(over) - sum(under)
    sides = [
        f"over {_listed(over or [0])}",
        *_running_sum(over),
        f"under {_listed(under or [0])}",
        *_running_sum(under),
    ]
    gap = sub(max(sum(over), sum(under)), min(sum(over), sum(under)))
    balance = boxed(answer, *sides, gap, sub(target, net) if net >= 0 else add(target, -net))
    wording = ["The mean of {} and x is {}. Find x.", "The average of {} and x is {}. Find x."]
    return Problem(
        key=(*numbers, target),
        prompt=rng.choice(wording).format(_listed(numbers), target),
        answer=str(answer),
        solutions={"totals": totals, "balance": balance},
    )


def weighted_mean(rng: random.Random, level: int) -> Problem:
    """Mean of two groups, by totals or by the share of the gap between them."""
    counts, low, high = ((2, 5), (2, 5), (2, 6))[level - 1], (1, 2, 10)[level - 1], (9, 12, 30)[level - 1]
    p, q, a = rng.randint(*counts), rng.randint(*counts), rng.randint(low, high)
    gap = rng.randint(1, 2 * level - 1) * (p + q) if level > 1 else rng.randint(1, 12)
    if gap * q % (p + q):
        return weighted_mean(rng, level)
    b, share = a + gap, gap * q // (p + q)
    answer = a + share
    totals = boxed(answer, mul(p, a), mul(q, b), add(p * a, q * b), add(p, q), div(p * a + q * b, p + q))
    lever = boxed(answer, sub(b, a), add(p, q), mul(gap, q), div(gap * q, p + q), add(a, share))
    wording = ["{} students got {}, {} got {}. Find the mean.", "{} pupils got {}, {} got {}. Find the mean."]
    return Problem(
        key=(p, a, q, b),
        prompt=rng.choice(wording).format(p, a, q, b),
        answer=str(answer),
        solutions={"totals": totals, "gap_share": lever},
    )


FAMILIES = tuple(Family(make.__name__, "statistics", make) for make in (mean, median, missing_value, weighted_mean))
