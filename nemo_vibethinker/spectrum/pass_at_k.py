"""Pass@K with intervals: the unbiased estimator of Chen et al. 2021 and a bootstrap over problems."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A mean over problems and the ends of its confidence interval, all in [0, 1]."""

    mean: float
    low: float
    high: float


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of `k` samples drawn without replacement is correct.

    1 - C(n - c, k) / C(n, k) (Chen et al. 2021, arXiv 2107.03374, equation 1), evaluated in integers, so that the
    result is the correctly rounded exact value for any n. Raises ValueError if k is outside 1..num_samples or
    num_correct outside 0..num_samples.
    """
    return pass_at_k_mean([num_correct], num_samples, k)


def pass_at_k_mean(correct_counts: Sequence[int], num_samples: int, k: int) -> float:
    """Mean of `pass_at_k` over problems that all have `num_samples` samples.

    The sum is exact too: two checkpoints whose Pass@K is mathematically equal compare equal as floats, which
    `select_specialists` relies on to break ties. Raises ValueError as `pass_at_k` does, and for no problems.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} needs 1 <= k <= samples per problem, but there are {num_samples} samples")
    if not correct_counts:
        raise ValueError(f"pass@{k} needs at least one problem")
    if min(correct_counts) < 0 or max(correct_counts) > num_samples:
        raise ValueError(
            f"correct counts must lie in 0..{num_samples} (the samples per problem), "
            f"got {min(correct_counts)}..{max(correct_counts)}"
        )
    subsets = comb(num_samples, k)
    passing_subsets = sum(subsets - comb(num_samples - count, k) for count in correct_counts)
    return passing_subsets / (subsets * len(correct_counts))


def bootstrap_interval(
    per_problem: Sequence[float], *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval (Efron 1979) of the mean over problems.

    It measures the uncertainty from the choice of problems; equal values give an interval of width zero.
    Raises ValueError for no problems or a confidence outside (0, 1).
    """
    if len(per_problem) == 0:
        raise ValueError("a bootstrap interval needs at least one problem")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}")
    # Drawing how often each distinct value occurs is the same distribution as drawing problems, with less memory.
    values, counts = np.unique(np.asarray(per_problem, dtype=np.float64), return_counts=True)
    total = len(per_problem)
    draws = np.random.default_rng(seed).multinomial(total, counts / total, size=resamples)
    tail = (1 - confidence) / 2
    low, high = np.quantile(draws @ values / total, [tail, 1 - tail])
    return float(low), float(high)


def estimate_pass_at_k(correct_counts: Sequence[int], num_samples: int, k: int, seed: int = 0) -> Estimate:
    """Pass@K over problems with its 95% bootstrap interval. Raises ValueError as `pass_at_k_mean` does."""
    mean = pass_at_k_mean(correct_counts, num_samples, k)
    low, high = bootstrap_interval([pass_at_k(num_samples, count, k) for count in correct_counts], seed=seed)
    return Estimate(mean, low, high)
