"""Group-relative advantages (GRPO; VibeThinker-1.5B, arXiv 2511.06221, section 2)."""

from typing import Literal

import torch
from torch import Tensor

AdvantageStd = Literal["population", "sample", "none"]


def group_advantages(rewards_PG: Tensor, *, std: AdvantageStd, eps: float = 1e-6) -> Tensor:
    """(r - mu) / (sigma + eps) inside each prompt's group of G responses.

    `std` chooses sigma: "population" divides by G (paper form), "sample" by G - 1 (common in frameworks), "none"
    keeps r - mu (Dr. GRPO, arXiv 2503.20783). A group of equal rewards gets exactly zero.

    Shapes: rewards [prompts, group], result the same, floating point. Raises ValueError for groups of fewer than two
    responses or an unknown `std`.
    """
    if rewards_PG.ndim != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"rewards must be [prompts, group] with group >= 2, got shape {tuple(rewards_PG.shape)}")
    values_PG = rewards_PG if rewards_PG.is_floating_point() else rewards_PG.float()
    deviations_PG = values_PG - values_PG.mean(dim=1, keepdim=True)
    match std:
        case "population" | "sample":
            sigma_P1 = values_PG.std(dim=1, keepdim=True, correction=int(std == "sample"))
            advantages_PG = deviations_PG / (sigma_P1 + eps)
        case "none":
            advantages_PG = deviations_PG
        case _:
            raise ValueError(f"std must be population, sample or none, got {std!r}")
    # The mean of equal rewards may be off by one rounding, which division by eps would blow up.
    return advantages_PG.masked_fill(~nonzero_variance_groups(rewards_PG)[:, None], 0.0)


def nonzero_variance_groups(rewards_PG: Tensor) -> Tensor:
    """True where a group's rewards are not all equal, so that its advantages carry a gradient; bool [prompts]."""
    return torch.any(rewards_PG != rewards_PG[:, :1], dim=1)
