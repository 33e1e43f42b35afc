"""Long2Short: shorter right responses are worth more (VibeThinker-3B, arXiv 2606.16140, section 2.2.2)."""

import torch
from torch import Tensor


def long2short_rewards(rewards_PG: Tensor, lengths_PG: Tensor, *, scale: float) -> Tensor:
    """r + scale * (s - mean_C s) / max_C |s - mean_C s| for the right responses C of each group, with s = 1 / length.

    Wrong responses keep their reward, as does a group whose right responses are of one length, or only one. The shifts
    of a group sum to zero.

    Shapes: rewards (0 or 1) and lengths in tokens [prompts, group]; result fp32, the same shape.
    """
    right_PG = rewards_PG == 1
    inverse_PG = 1.0 / lengths_PG.double()
    count_P1 = right_PG.sum(dim=1, keepdim=True).clamp_min(1)
    mean_P1 = torch.where(right_PG, inverse_PG, 0.0).sum(dim=1, keepdim=True) / count_P1
    deviation_PG = torch.where(right_PG, inverse_PG - mean_P1, 0.0)
    largest_P1 = deviation_PG.abs().amax(dim=1, keepdim=True)
    # Equal lengths deviate from their rounded mean by less than this; 1 and 1.0001 tokens would not.
    is_spread_P1 = largest_P1 > 1e-12 * mean_P1
    shift_PG = torch.where(
        is_spread_P1, deviation_PG / largest_P1.where(is_spread_P1, torch.ones_like(largest_P1)), 0.0
    )
    return (rewards_PG + scale * shift_PG).float()
