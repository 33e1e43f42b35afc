"""The clipped policy-gradient loss over flat tokens, and its normalisations."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from nemo_vibethinker.signal.cispo import cispo_surrogate
from nemo_vibethinker.signal.sequence_ratio import sequence_log_ratio

Surrogate = Literal["clip", "gspo", "cispo"]
LossNormalisation = Literal["sequence_mean", "token_mean", "dr_grpo"]
SequenceMean = Callable[[Tensor, Tensor], Tensor]  # (values [N], is response [N]) -> mean of the token's sequence


@dataclass(frozen=True)
class PolicyLoss:
    """Loss and detached statistics of one micro-batch; all scalar tensors.

    The loss is a sum: it adds up over micro-batches and data-parallel ranks. The means are over this micro-batch's
    response tokens: weight them by `num_tokens` to combine micro-batches. Without response tokens all are zero.
    """

    loss: Tensor
    ratio_mean: Tensor
    ratio_max: Tensor
    clip_fraction: Tensor
    kl: Tensor
    num_tokens: Tensor


def token_weight(response_length: int, normalisation: LossNormalisation) -> float:
    """Weight of each token of a response in the summed loss: 1/|y_i| for the per-sequence mean, else 1."""
    if normalisation not in get_args(LossNormalisation):
        raise ValueError(f"normalisation must be sequence_mean, token_mean or dr_grpo, got {normalisation!r}")
    return 1.0 / response_length if normalisation == "sequence_mean" else 1.0


def loss_denominator(
    normalisation: LossNormalisation, *, num_sequences: int, num_tokens: int, max_response_length: int
) -> int:
    """What the summed loss of these sequences is divided by.

    "sequence_mean": sequences, the mean over sequences of per-sequence token means (GRPO as printed in
    VibeThinker-1.5B, arXiv 2511.06221, section 2). "token_mean": response tokens (DAPO, arXiv 2503.14476). "dr_grpo":
    sequences times `max_response_length` (Dr. GRPO, arXiv 2503.20783).

    Linear in the counts: denominators of micro-batches and data-parallel ranks add up to the whole step's, so the
    quotient of the sums does not depend on how the batch is split.
    """
    if normalisation == "token_mean":
        return num_tokens
    return num_sequences * (max_response_length if normalisation == "dr_grpo" else 1)


def policy_loss(
    logprobs_N: Tensor,
    old_logprobs_N: Tensor,
    advantages_N: Tensor,
    token_weights_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    surrogate: Surrogate = "clip",
    sequence_mean: SequenceMean | None = None,
    importance_N: Tensor | None = None,
) -> PolicyLoss:
    """-sum_n weight_n * min(rho_n * A_n, clip(rho_n, 1 - clip_low, 1 + clip_high) * A_n), rho the token-level ratio.

    rho = exp(logprob - old logprob), where the old policy is the one that sampled the tokens (VibeThinker-1.5B, arXiv
    2511.06221, section 2), also in later updates on the same rollout. `surrogate` "gspo" takes the sequence's ratio,
    for which `sequence_mean` gives each token the mean over its sequence; "cispo" the clipped ratio as a weight.
    `importance_N` multiplies each token's term.

    Gradients flow through `logprobs_N` alone. All inputs share one shape; the log-probs are fp32 or wider. Tokens of
    weight zero (prompt, padding) are no response tokens: their log-probs are ignored, whatever they are. `kl` is the k3
    estimate rho - 1 - log(rho) of KL(old || current) (Schulman 2020) with the token-level rho, mean over response
    tokens.
    """
    assert logprobs_N.shape == old_logprobs_N.shape == advantages_N.shape == token_weights_N.shape
    assert logprobs_N.dtype in (torch.float32, torch.float64), "ratios of low-precision log-probs are noise"
    assert 0 <= clip_low <= 1
    assert clip_high >= 0
    is_response_N = token_weights_N > 0
    log_ratio_N = torch.where(is_response_N, logprobs_N - old_logprobs_N.detach(), 0.0)
    token_ratio_N = ratio_N = log_ratio_N.exp()
    if surrogate == "gspo":
        assert sequence_mean is not None
        ratio_N = sequence_log_ratio(log_ratio_N, sequence_mean(log_ratio_N, is_response_N)).exp()
    advantages_N = advantages_N.detach()
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    terms_N = torch.minimum(unclipped_N, clipped_N)
    if surrogate == "cispo":
        known_N = torch.where(is_response_N, logprobs_N, 0.0)
        terms_N = cispo_surrogate(known_N, ratio_N, advantages_N, clip_low=clip_low, clip_high=clip_high)
    if importance_N is not None:
        terms_N = terms_N * torch.where(is_response_N, importance_N.detach(), 0.0)
    loss = -(terms_N * token_weights_N).sum()

    with torch.no_grad():
        num_tokens = is_response_N.sum()

        def mean(values_N: Tensor) -> Tensor:
            return (values_N * is_response_N).sum() / num_tokens.clamp_min(1)

        return PolicyLoss(
            loss=loss,
            ratio_mean=mean(token_ratio_N),
            ratio_max=(token_ratio_N * is_response_N).max(),
            clip_fraction=mean((clipped_N < unclipped_N).to(ratio_N.dtype)),
            kl=mean(token_ratio_N - 1 - log_ratio_N),
            num_tokens=num_tokens,
        )
