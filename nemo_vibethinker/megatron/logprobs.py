"""Log-probabilities and entropy from logits whose vocabulary is split over the tensor-parallel ranks."""

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy
from torch import Tensor

from nemo_vibethinker.megatron.distributed import tensor_parallel_group


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
