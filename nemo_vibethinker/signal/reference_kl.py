"""The penalty for leaving a reference policy, and when the reference is set anew (ProRL, arXiv 2505.24864)."""

import torch
from torch import Tensor


def k3_divergence(logprobs_N: Tensor, reference_logprobs_N: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi) of each token: an estimate of KL(pi || pi_ref) that is never negative.

    Unbiased for tokens sampled from pi, with little variance (Schulman 2020, "k3"). Gradients flow through
    `logprobs_N` alone: d/dlogprob = 1 - pi_ref / pi.
    """
    log_ratio_N = reference_logprobs_N.detach() - logprobs_N
    return torch.expm1(log_ratio_N) - log_ratio_N


def reference_step(step: int, interval: int) -> int:
    """After how many finished steps the reference of step `step` (from 1) was taken; interval 0: the stage's start."""
    return (step - 1) // interval * interval if interval else 0
