"""Truncated importance sampling between the engine that sampled and the trainer (Yao et al. 2025)."""

import torch
from torch import Tensor


def truncated_importance_weights(trainer_logprobs_N: Tensor, engine_logprobs_N: Tensor, *, cap: float) -> Tensor:
    """min(pi_trainer / pi_engine, cap) of each token, detached: what its loss is multiplied by.

    Both are log-probs of the sampled tokens under the weights that sampled them, by two programs. The policy ratio of
    the loss is then pi_theta / pi_trainer. Raises ValueError for a cap below 1, which would weigh down equal policies.
    """
    if cap < 1:
        raise ValueError(f"the cap of truncated importance sampling must be 1 or more, got {cap}")
    return torch.exp(trainer_logprobs_N.detach() - engine_logprobs_N.detach()).clamp_max(cap)
