"""Differences of two models' scores on the same problems: a bootstrap over problems of the paired differences."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nemo_vibethinker.spectrum.pass_at_k import Estimate, bootstrap_interval

Solved = Mapping[str, float]  # problem -> share of right responses among its graded ones


@dataclass(frozen=True)
class Difference:
    """pass@1 of one model minus that of another over the problems that both have, in [-1, 1] with its 95% interval."""

    estimate: Estimate
    problems: int

    @property
    def shown(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.estimate.low > 0 or self.estimate.high < 0


def solved_shares(lines: Iterable[Mapping[str, str]]) -> dict[str, float]:
    """Problem -> share of right responses, from samples of `id` and `verdict`; without those never graded."""
    counts: dict[str, list[int]] = {}
    for line in lines:
        if line["verdict"] != "ungraded":
            count = counts.setdefault(line["id"], [0, 0])
            count[0] += line["verdict"] == "right"
            count[1] += 1
    return {identity: right / graded for identity, (right, graded) in counts.items()}


def paired_difference(model: Solved, baseline: Solved, seed: int = 0) -> Difference | None:
    """`model` minus `baseline`, problem by problem; None where they have no problem in common.

    Pairing takes the difficulty of the problems out of the interval, so it is narrower than that of two scores apart.
    """
    common = [identity for identity in baseline if identity in model]
    if not common:
        return None
    differences = [model[identity] - baseline[identity] for identity in common]
    mean = math.fsum(differences) / len(differences)
    return Difference(Estimate(mean, *bootstrap_interval(differences, seed=seed)), len(common))
