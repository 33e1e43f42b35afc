r"""Grades a second of the maths verifier against math-verify alone, and what each accepts of the published cases.

    NVT_DATA_DIR=... python benchmarks/math_grading.py --seconds 10

The mix is `verifier/cases.jsonl` under NVT_DATA_DIR, or else made-up pairs.
math-verify is called as its README does (`verify(parse(gold), parse(answer))`), in as many processes as the verifier
uses. Start-up is not timed; verdicts are not kept between passes.
"""

import argparse
import collections
import json
import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

from nemo_vibethinker.reward.math import MathVerifier

Row = dict[str, Any]


def load_rows() -> tuple[str, list[Row]]:
    """Name of the mix and its rows."""
    path = Path(os.environ.get("NVT_DATA_DIR", ".")) / "verifier" / "cases.jsonl"
    if path.exists():
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return str(path), [row for row in rows if row.get("gold") and row.get("prediction")]
    return "made up", [row for n in range(2, 52) for row in made_up(n)]


def made_up(n: int) -> list[Row]:
    """Pairs of an integer, a fraction, a root, a polynomial, a list and an interval."""
    pairs = [
        (f"{n}", f"{n}.0"), (f"\\frac{{1}}{{{n}}}", f"1/{n}"), (f"\\sqrt{{{n}}}", f"{n}^{{1/2}}"), (f"(x-{n})(x+{n})", f"x^2-{n * n}"),  # noqa: E501
        (f"{n},{n + 1}", f"x={n + 1} \\text{{ or }} x={n}"), (f"(-\\infty,{n})", f"x<{n}"),
    ]  # fmt: skip
    return [{"tier": "made up", "gold": gold, "prediction": answer, "expected": True} for gold, answer in pairs]


def naive(pair: tuple[str, str]) -> bool:
    """math-verify as its README calls it, with dollars around bare formulas."""
    from math_verify import parse, verify

    try:
        gold, answer = (text if "$" in text or "boxed" in text else f"${text}$" for text in pair)
        return bool(verify(parse(gold), parse(answer)))
    except Exception:
        return False


def quiet() -> None:
    """Child processes of math-verify: imported before the clock starts, without their warnings."""
    logging.disable(logging.CRITICAL)
    naive(("1", "1"))


def rate(pairs: list[tuple[str, str]], seconds: float, processes: int) -> tuple[float, list[bool]]:
    """Grades a second of the verifier in steady state: the best of the passes that fit into `seconds`."""
    best, accepted, end = 0.0, [], time.monotonic() + seconds
    with MathVerifier(processes=processes) as verifier:
        verifier.grade_predictions(pairs[: 64 * processes])
        while not accepted or time.monotonic() < end:
            start = time.monotonic()
            accepted = [verdict.is_right for verdict in verifier.grade_predictions(pairs)]
            best = max(best, len(pairs) / (time.monotonic() - start))
    return best, accepted


def naive_rate(pairs: list[tuple[str, str]], processes: int) -> tuple[float, list[bool]]:
    """Grades a second of math-verify alone over one pass."""
    with multiprocessing.get_context("spawn").Pool(processes, quiet) as pool:
        pool.map(len, [""] * processes)
        start = time.monotonic()
        accepted = pool.map(naive, pairs, chunksize=16)
        return len(pairs) / (time.monotonic() - start), accepted


def report(name: str, speed: float, rows: list[Row], accepted: list[bool]) -> None:
    """Print one line of figures, and the share accepted by tier and expectation."""
    shares: dict[tuple[str, bool], list[bool]] = collections.defaultdict(list)
    for row, right in zip(rows, accepted, strict=True):
        shares[row["tier"], row["expected"]].append(right)
    print(f"{name:<12} {speed:8,.0f} grades/s")
    for (tier, expected), verdicts in sorted(shares.items()):
        kind = "true" if expected else "wrong"
        print(
            f"  {tier:<13} {kind:<6} accepted {sum(verdicts):4}/{len(verdicts):<4} {sum(verdicts) / len(verdicts):6.1%}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="time for the verifier's passes (default 10)")
    parser.add_argument("--processes", type=int, default=2, help="grader processes (default 2)")
    options = parser.parse_args()
    mix, rows = load_rows()
    pairs = [(row["gold"], row["prediction"]) for row in rows]
    print(f"{len(rows)} pairs: {mix}; {options.processes} processes on {os.cpu_count()} cores")
    speed, accepted = rate(pairs, options.seconds, options.processes)
    report("verifier", speed, rows, accepted)
    speed, accepted = naive_rate(pairs, options.processes)
    report("math-verify", speed, rows, accepted)


if __name__ == "__main__":
    main()
