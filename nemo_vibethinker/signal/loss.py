"""The clipped policy-gradient loss over flat tokens, and the weights that normalise it."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

LossNormalisation = Literal["sequence_mean", "token_mean", "dr_grpo"]


@dataclass(frozen=True)
class PolicyLoss:
    """Loss and detached statistics of one micro-batch; all scalar tensors.

    The loss sums over micro-batches and data-parallel ranks. The means are over this micro-batch's response tokens:
    weight them by `num_tokens` to combine micro-batches. Without response tokens all are zero.
    """

    loss: Tensor
    ratio_mean: Tensor
    ratio_max: Tensor
    clip_fraction: Tensor
    kl: Tensor
    num_tokens: Tensor


def token_weights(
    response_lengths_B: Tensor,
    normalisation: LossNormalisation,
    *,
    num_sequences: int,
    num_tokens: int | float,
    max_response_length: int,
) -> Tensor:
    """Weight of each response token of each sequence in `policy_loss`; fp32 [sequences], zero for empty responses.

    "sequence_mean": 1 / (|y_i| * num_sequences), the mean over sequences of per-sequence token means (GRPO as printed
    in VibeThinker-1.5B, arXiv 2511.06221, section 2). "token_mean": 1 / num_tokens (DAPO, arXiv 2503.14476).
    "dr_grpo": 1 / (num_sequences * max_response_length) (Dr. GRPO, arXiv 2503.20783).

    `num_sequences` and `num_tokens` count the whole optimizer step, over all micro-batches and data-parallel ranks;
    then the summed losses do not depend on how the batch is split. Raises ValueError for an unknown normalisation.
    """
    lengths_B = response_lengths_B.to(torch.float32)
    match normalisation:
        case "sequence_mean":
            weights_B = 1.0 / (lengths_B * num_sequences)
        case "token_mean":
            weights_B = torch.full_like(lengths_B, 1.0 / num_tokens)
        case "dr_grpo":
            weights_B = torch.full_like(lengths_B, 1.0 / (num_sequences * max_response_length))
        case _:
            raise ValueError(f"normalisation must be sequence_mean, token_mean or dr_grpo, got {normalisation!r}")
    return weights_B.masked_fill(response_lengths_B == 0, 0.0)


def policy_loss(
    logprobs_N: Tensor,
    behaviour_logprobs_N: Tensor,
    advantages_N: Tensor,
    token_weights_N: Tensor,
    *,
    clip_low: float,
    clip_high: float,
) -> PolicyLoss:
    """-sum_n weight_n * min(rho_n * A_n, clip(rho_n, 1 - clip_low, 1 + clip_high) * A_n), rho the token-level ratio.

    rho = exp(logprob - behaviour logprob), where the behaviour policy is the one that sampled the tokens
    (VibeThinker-1.5B, arXiv 2511.06221, section 2). Gradients flow through `logprobs_N` alone. All inputs share one
    shape; the log-probs are fp32 or wider. Tokens of weight zero (prompt, padding) are no response tokens: their
    log-probs are ignored, whatever they are. `kl` is the k3 estimate rho - 1 - log(rho) of
    KL(behaviour || current) (Schulman 2020), mean over response tokens.
    """
    assert logprobs_N.shape == behaviour_logprobs_N.shape == advantages_N.shape == token_weights_N.shape
    assert logprobs_N.dtype in (torch.float32, torch.float64), "ratios of low-precision log-probs are noise"
    assert 0 <= clip_low <= 1
    assert clip_high >= 0
    is_response_N = token_weights_N > 0
    log_ratio_N = torch.where(is_response_N, logprobs_N - behaviour_logprobs_N.detach(), 0.0)
    ratio_N = log_ratio_N.exp()
    advantages_N = advantages_N.detach()
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip_low, 1 + clip_high) * advantages_N
    loss = -(torch.minimum(unclipped_N, clipped_N) * token_weights_N).sum()

    with torch.no_grad():
        num_tokens = is_response_N.sum()

        def mean(values_N: Tensor) -> Tensor:
            return (values_N * is_response_N).sum() / num_tokens.clamp_min(1)

        return PolicyLoss(
            loss=loss,
            ratio_mean=mean(ratio_N),
            ratio_max=(ratio_N * is_response_N).max(),
            clip_fraction=mean((clipped_N < unclipped_N).to(ratio_N.dtype)),
            kl=mean(ratio_N - 1 - log_ratio_N),
            num_tokens=num_tokens,
        )
