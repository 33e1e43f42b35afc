"""Log-probabilities and entropy of tokens under logits whose vocabulary is split over the tensor-parallel ranks.

A loss function calls `token_logprobs` on whatever the last pipeline stage returned: logits, or, in training with
`scale.logprob_chunk` set, the hidden states before the output layer. Then the logits are computed chunk by chunk and
again in the backward pass, and [tokens x vocabulary] never exists: at 32K tokens and Qwen's 152K words that is 20 GB
in fp32 for the logits alone, and as much for their gradient.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
    vocab_parallel_cross_entropy,
)
from torch import Tensor

from nemo_vibethinker.megatron.distributed import tensor_parallel_group


@dataclass(frozen=True)
class DeferredLogits:
    """The logits of a packed row before they are computed.

    Attributes:
        hidden_TH: hidden states of all T tokens of this rank's row, in the dtype of the output layer.
        weight_VH: this rank's slice of the output layer.
        chunk_tokens: positions whose logits exist at one time.
    """

    hidden_TH: Tensor
    weight_VH: Tensor
    chunk_tokens: int


ModelOutput = Tensor | DeferredLogits  # [1, T, V/tp] logits, or what they are made of


def defer_logits(
    hidden_S1H: Tensor, weight_VH: Tensor, chunk_tokens: int, *, sequence_parallel: bool
) -> DeferredLogits:
    """Hidden states of the last layer, one row, made ready for `token_logprobs`.

    Args:
        hidden_S1H: S is this rank's part of the row under sequence parallelism, else the row.
        sequence_parallel: gather the parts; the gradient is then reduced and scattered, else summed over the ranks.
    """
    if sequence_parallel:
        hidden_T1H = gather_from_sequence_parallel_region(hidden_S1H)
    else:
        hidden_T1H = copy_to_tensor_model_parallel_region(hidden_S1H)
    return DeferredLogits(hidden_T1H[:, 0], weight_VH, chunk_tokens)


def token_logprobs(
    output: ModelOutput, targets_T: Tensor, *, temperature: float = 1.0, entropy: bool = False
) -> tuple[Tensor, Tensor | None]:
    """log p(target) of each position under softmax(logits / temperature), and the entropy where asked for.

    Args:
        output: what the last pipeline stage returned for one packed row.
        targets_T: global token ids.

    Returns:
        Log-probs [T] in fp32, differentiable, and the entropy in nats [T] in fp32, without gradient, or None; the same
        on every tensor-parallel rank.
    """
    if isinstance(output, DeferredLogits):
        return chunked_logprobs(
            output.hidden_TH, output.weight_VH, targets_T, output.chunk_tokens, temperature=temperature, entropy=entropy
        )
    logits = output if temperature == 1 else output / temperature
    logprobs = vocab_parallel_logprobs(logits, targets_T[None])[0]
    return logprobs, vocab_parallel_entropy(logits)[0] if entropy else None


def chunked_logprobs(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    chunk_tokens: int,
    *,
    temperature: float = 1.0,
    entropy: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """`token_logprobs` of the logits `hidden_TH @ weight_VH.T`, of which `chunk_tokens` rows exist at one time.

    The gradient of `hidden_TH` is this rank's slice of the vocabulary's part: `defer_logits` has it summed. That of
    `weight_VH` is summed over the chunks in fp32, a buffer of [V/tp, H], and reported once. Two all-reduces of [T]
    numbers in the forward pass, none in the backward pass.
    """
    logprobs, entropy_T = _ChunkedLogprobs.apply(hidden_TH, weight_VH, targets_T, chunk_tokens, temperature, entropy)  # pyright: ignore
    return logprobs, entropy_T if entropy else None


class _ChunkedLogprobs(torch.autograd.Function):
    """With p = softmax(z / t), d log p[target] / dz = (onehot(target) - p) / t, so the normaliser is all it keeps."""

    @staticmethod
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any,
        hidden_TH: Tensor,
        weight_VH: Tensor,
        targets_T: Tensor,
        chunk_tokens: int,
        temperature: float,
        entropy: bool,
    ) -> tuple[Tensor, Tensor]:
        places_T, mine_T = _places(targets_T, weight_VH.size(0))
        maxima_T = torch.empty(len(hidden_TH), dtype=torch.float32, device=hidden_TH.device)
        sums_3T = maxima_T.new_zeros(3, len(hidden_TH))  # of exp(z - max), of exp(z - max) (z - max), the target's z
        for part in _chunks(len(hidden_TH), chunk_tokens):
            logits = _logits(hidden_TH[part], weight_VH, temperature)
            maxima_T[part] = logits.amax(-1)
            sums_3T[2, part] = logits.gather(-1, places_T[part, None])[:, 0] * mine_T[part]
            logits -= maxima_T[part, None]
            weights = logits.exp()
            sums_3T[0, part] = weights.sum(-1)
            if entropy:
                sums_3T[1, part] = torch.linalg.vecdot(weights, logits)
        normaliser_T, entropy_T, target_T = _over_ranks(maxima_T, sums_3T)
        ctx.save_for_backward(hidden_TH, weight_VH, places_T, mine_T, normaliser_T)
        ctx.settings = chunk_tokens, temperature
        ctx.mark_non_differentiable(entropy_T)
        return target_T - normaliser_T, entropy_T

    @staticmethod
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_T: Tensor, _: Tensor
    ) -> tuple[Tensor, Tensor, None, None, None, None]:
        hidden_TH, weight_VH, places_T, mine_T, normaliser_T = ctx.saved_tensors
        chunk_tokens, temperature = ctx.settings
        slopes_T = grad_T / temperature
        grad_hidden_TH = torch.empty_like(hidden_TH)
        grad_weight_VH = torch.zeros_like(weight_VH, dtype=torch.float32)
        for part in _chunks(len(hidden_TH), chunk_tokens):
            slopes = _logits(hidden_TH[part], weight_VH, temperature)
            slopes -= normaliser_T[part, None]
            slopes.exp_().mul_(-slopes_T[part, None])
            slopes.scatter_add_(-1, places_T[part, None], (slopes_T[part] * mine_T[part])[:, None])
            slopes = slopes.to(weight_VH.dtype)
            grad_hidden_TH[part] = slopes @ weight_VH
            _add_product(grad_weight_VH, slopes.T, hidden_TH[part])
        return grad_hidden_TH, grad_weight_VH.to(weight_VH.dtype), None, None, None, None


def _chunks(length: int, chunk_tokens: int) -> Iterator[slice]:
    return (slice(start, start + chunk_tokens) for start in range(0, length, chunk_tokens))


def _logits(hidden_CH: Tensor, weight_VH: Tensor, temperature: float) -> Tensor:
    """[C, V/tp] in fp32, to be overwritten."""
    logits = (hidden_CH @ weight_VH.T).float()
    return logits if temperature == 1 else logits.div_(temperature)


def _add_product(total_VH: Tensor, left_VC: Tensor, right_CH: Tensor) -> None:
    if left_VC.dtype == torch.float32:
        total_VH.addmm_(left_VC, right_CH)
    else:
        total_VH += left_VC @ right_CH


def _places(targets_T: Tensor, slice_size: int) -> tuple[Tensor, Tensor]:
    """Where each target stands in this rank's slice of the vocabulary (0 if elsewhere), and whether it does."""
    places_T = targets_T - tensor_parallel_group().rank() * slice_size
    mine_T = (places_T >= 0) & (places_T < slice_size)
    return places_T * mine_T, mine_T


def _over_ranks(maxima_T: Tensor, sums_3T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(log of the sum of exp(z), entropy, the target's z) over the whole vocabulary, [T] each."""
    group = tensor_parallel_group()
    top_T = maxima_T.clone()
    if group.size() > 1:
        torch.distributed.all_reduce(top_T, op=torch.distributed.ReduceOp.MAX, group=group)
        # Moved from this rank's maximum m to the common M: exp(z - M) = exp(m - M) exp(z - m), and z - M likewise.
        lower_T = maxima_T - top_T
        sums_3T[1] += lower_T * sums_3T[0]
        sums_3T[:2] *= lower_T.exp()
        torch.distributed.all_reduce(sums_3T, group=group)
    logs_T = sums_3T[0].log()
    return top_T + logs_T, logs_T - sums_3T[1] / sums_3T[0], sums_3T[2]


def vocab_parallel_logprobs(logits_BTV: Tensor, targets_BT: Tensor) -> Tensor:
    """log p(target) of each position, differentiable.

    Args:
        logits_BTV: this rank's slice of the vocabulary, any floating dtype; not changed.
        targets_BT: global token ids.

    Returns:
        [B, T] in fp32, the same on every tensor-parallel rank.
    """
    # The kernel works in place on its fp32 input, which must be contiguous and not the caller's tensor.
    logits = logits_BTV.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    return -vocab_parallel_cross_entropy(logits, targets_BT)


@torch.no_grad()
def vocab_parallel_entropy(logits_BTV: Tensor) -> Tensor:
    """Entropy in nats of the next-token distribution at each position, [B, T] fp32, without gradient."""
    group = tensor_parallel_group()
    logits = logits_BTV.float()
    top = logits.amax(-1, keepdim=True)
    torch.distributed.all_reduce(top, op=torch.distributed.ReduceOp.MAX, group=group)
    shifted = logits - top
    weights = shifted.exp()
    sums = torch.stack([weights.sum(-1), (weights * shifted).sum(-1)])
    torch.distributed.all_reduce(sums, group=group)
    return sums[0].log() - sums[1] / sums[0]
