"""An entropy bonus whose coefficient keeps the policy's entropy near a target (Skywork-OR1, arXiv 2505.22312)."""

from torch import Tensor


def entropy_surrogate(logprobs_N: Tensor, entropy_N: Tensor) -> Tensor:
    """-(log pi + H) * log pi of each token, the bracket without gradient: to be maximised.

    For tokens sampled from pi its mean gradient is that of the entropy H = -E[log pi]: grad H = -E[log pi grad log pi],
    and H serves as the baseline, since E[grad log pi] = 0. No [tokens, vocabulary] gradient is needed. Its value means
    nothing.
    """
    return -(logprobs_N + entropy_N).detach() * logprobs_N


def next_coefficient(coefficient: float, entropy: float, *, target: float, rate: float, ceiling: float) -> float:
    """The coefficient after a step of mean entropy `entropy` (nats a token): up by `rate` below the target, else down.

    Stays in 0 to `ceiling`.
    """
    moved = coefficient + rate if entropy < target else coefficient - rate
    return min(max(moved, 0.0), ceiling)
