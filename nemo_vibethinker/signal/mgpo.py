"""MaxEnt-guided policy optimization: the entropy-deviation weight (VibeThinker-1.5B, arXiv 2511.06221, section 3.4)."""

import torch
from torch import Tensor

from nemo_vibethinker.signal.advantages import AdvantageStd, group_advantages


def max_entropy_divergence(p_correct_P: Tensor) -> Tensor:
    """Bernoulli KL(p || 1/2) in nats, with 0 log 0 = 0: zero at p = 1/2, log 2 at p = 0 and p = 1. Shape [prompts]."""
    # p * log(p / 0.5): writing log(2p) keeps the value at p = 1/2 exactly zero.
    divergence_P = torch.xlogy(p_correct_P, 2 * p_correct_P) + torch.xlogy(1 - p_correct_P, 2 * (1 - p_correct_P))
    return divergence_P.clamp_min(0.0)


def mgpo_weights(p_correct_P: Tensor, lambda_me: float) -> Tensor:
    """exp(-lambda_me * KL(p || 1/2)): one at p = 1/2, 2^-lambda_me at p = 0 and p = 1; detached, shape [prompts].

    `lambda_me=0` gives ones. Raises ValueError for a negative `lambda_me`.
    """
    if lambda_me < 0:
        raise ValueError(f"lambda_me must not be negative, got {lambda_me}")
    return torch.exp(-lambda_me * max_entropy_divergence(p_correct_P.detach()))


def mgpo_advantages(rewards_PG: Tensor, *, lambda_me: float, std: AdvantageStd, eps: float = 1e-6) -> Tensor:
    """`group_advantages` times the weight of each group's share of correct responses; shape [prompts, group].

    The weight is constant inside a group, so it must scale the normalised advantage: scaling the rewards would cancel
    in the normalisation. `lambda_me=0` is GRPO bit for bit.

    Raises ValueError if the rewards are not 0 or 1: with shaped rewards the share of correct responses has to come
    from the verdicts, so multiply `group_advantages(shaped)` by `mgpo_weights(p_correct)` there.
    """
    correct_PG = rewards_PG == 1
    if not torch.all(correct_PG | (rewards_PG == 0)):
        raise ValueError("mgpo_advantages takes rewards of 0 or 1; for shaped rewards use mgpo_weights directly")
    advantages_PG = group_advantages(rewards_PG, std=std, eps=eps)
    p_correct_P = correct_PG.to(advantages_PG.dtype).mean(dim=1)
    return mgpo_weights(p_correct_P, lambda_me)[:, None] * advantages_PG
