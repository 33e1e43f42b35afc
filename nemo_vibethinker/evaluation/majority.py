"""Which answers mean the same, and how often the most frequent one is right (maj@k, also called cons@k)."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

Same = Callable[[Sequence[tuple[str, str]]], list[bool]]  # for each pair, whether its answers are equivalent


@dataclass(frozen=True, slots=True)
class Vote:
    """A response as a vote: the cluster of its answer (None: it gives none) and whether it was graded right."""

    cluster: int | None
    is_right: bool


def cluster_answers(answers: Sequence[str | None], same: Same) -> list[int | None]:
    """The cluster of each answer, numbered by first appearance; None for no answer.

    An answer joins the first cluster whose first member `same` finds equivalent to it. The reference plays no part.
    """
    cluster_of: dict[str, int] = {}
    heads: list[str] = []
    for answer in answers:
        if answer is None or answer in cluster_of:
            continue
        equal = same([(head, answer) for head in heads])
        cluster_of[answer] = equal.index(True) if True in equal else len(heads)
        if cluster_of[answer] == len(heads):
            heads.append(answer)
    return [None if answer is None else cluster_of[answer] for answer in answers]


def majority_credit(votes: Sequence[Vote], weights: Sequence[float] | None = None) -> float:
    """Probability that the cluster of the greatest weight (None: of the most votes) is right, ties drawn at random.

    A cluster is right if its first member is. 0 where no response gives an answer.
    """
    totals: Counter[int] = Counter()
    right: dict[int, bool] = {}
    for vote, weight in zip(votes, weights or [1.0] * len(votes), strict=True):
        if vote.cluster is not None:
            totals[vote.cluster] += weight  # pyright: ignore[reportArgumentType]
            right.setdefault(vote.cluster, vote.is_right)
    if not totals:
        return 0.0
    most = max(totals.values())
    first = [cluster for cluster, total in totals.items() if math.isclose(total, most, rel_tol=1e-12)]
    return sum(right[cluster] for cluster in first) / len(first)


def majority_at(votes: Sequence[Vote], k: int) -> float:
    """The mean of `majority_credit` over the disjoint blocks of k votes in their order. Needs at least k votes."""
    assert 1 <= k <= len(votes)
    blocks = [votes[start : start + k] for start in range(0, len(votes) - k + 1, k)]
    return sum(majority_credit(block) for block in blocks) / len(blocks)
