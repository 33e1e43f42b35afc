"""The sequence-level importance ratio (GSPO, arXiv 2507.18071)."""

from collections.abc import Callable

import torch
from torch import Tensor


def sequence_mean(
    values_N: Tensor, sequence_N: Tensor, is_response_N: Tensor, sum_over_parts: Callable[[Tensor], Tensor]
) -> Tensor:
    """At each token the mean of `values_N` over the response tokens of its sequence; detached.

    Args:
        sequence_N: number of the sequence that a token belongs to, from 0, below N.
        is_response_N: bool; other tokens take no part, and get 0.
        sum_over_parts: adds up a tensor over the ranks that hold other tokens of the same sequences.
    """
    index_N, mask_N = sequence_N.long(), is_response_N.to(values_N.dtype)
    length = int(index_N.max()) + 1 if index_N.numel() else 1
    sums_2S = values_N.new_zeros(2, length)
    sums_2S[0].index_add_(0, index_N, torch.where(is_response_N, values_N.detach(), 0.0))
    sums_2S[1].index_add_(0, index_N, mask_N)
    sums_2S = sum_over_parts(sums_2S)
    return (sums_2S[0] / sums_2S[1].clamp_min(1))[index_N] * mask_N


def sequence_log_ratio(log_ratio_N: Tensor, mean_log_ratio_N: Tensor) -> Tensor:
    """The sequence's log-ratio at each token: its value is the mean over the sequence, its gradient the token's own.

    With a weight of 1/|y| a token, the sum over a sequence has the value and the gradient of
    (pi_theta(y) / pi_old(y)) ^ (1/|y|) (GSPO's token form, equation 14), and no gradient crosses tokens, so that ranks
    which share a sequence need no differentiable sum.
    """
    return mean_log_ratio_N.detach() + (log_ratio_N - log_ratio_N.detach())
