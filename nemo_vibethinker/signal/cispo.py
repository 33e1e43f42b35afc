"""CISPO: the clipped ratio as a fixed weight, so that no token loses its gradient (MiniMax-M1, arXiv 2506.13585)."""

from torch import Tensor


def cispo_surrogate(
    logprobs_N: Tensor, ratio_N: Tensor, advantages_N: Tensor, *, clip_low: float, clip_high: float
) -> Tensor:
    """stop_gradient(clip(rho, 1 - clip_low, 1 + clip_high)) * A * log pi of each token, to be maximised.

    Its gradient is the clipped ratio times A times the gradient of the log-prob; its value means nothing.
    """
    return ratio_N.detach().clamp(1 - clip_low, 1 + clip_high) * advantages_N.detach() * logprobs_N
