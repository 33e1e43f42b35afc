"""Log-probs of packed rows under the model as it is: of the old policy, or of a reference."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemo_vibethinker.megatron.distributed import context_parallel_group, pipeline_parallel_group
from nemo_vibethinker.megatron.logprobs import ModelOutput, token_logprobs
from nemo_vibethinker.megatron.micro_batch import MicroBatch
from nemo_vibethinker.megatron.train_step import LossTerms, run_forward_backward


def row_logprobs(
    chunks: Sequence[DistributedDataParallel], batches: Sequence[MicroBatch], temperature: float
) -> list[Tensor]:
    """Log-prob of each position's target, [T] fp32 of each whole row, without gradient; 0 where it weighs nothing.

    All ranks call it together, with the rows of their replica, and get the same values as the others of the replica.
    The forward pass is the training step's, bit for bit, so it records gradients too: only then are logits chunked.
    """
    found: list[tuple[Tensor, Tensor]] = []

    def keep(share: MicroBatch, output: ModelOutput) -> LossTerms:
        logprobs_T, _ = token_logprobs(output, share.targets, temperature=temperature)
        found.append((share.extra["position"].long(), logprobs_T.detach()))
        return logprobs_T.sum().detach() * 0, share.loss_weights.sum(), {}

    for chunk in chunks:
        chunk.train()  # the same kernels as the training step
    run_forward_backward(chunks, [_numbered(batch) for batch in batches], keep, forward_only=True)
    return [_whole_row(batch, found[index] if found else None) for index, batch in enumerate(batches)]


def _numbered(batch: MicroBatch) -> MicroBatch:
    """With each position's number in the row, from 1; padding has 0."""
    numbers_T = torch.arange(1, len(batch.tokens) + 1, device=batch.tokens.device)
    return replace(batch, extra={"position": numbers_T})


def _whole_row(batch: MicroBatch, share: tuple[Tensor, Tensor] | None) -> Tensor:
    """The row's values from the shares of the context-parallel ranks of the last pipeline stage, on every rank."""
    row_T = torch.zeros(len(batch.tokens) + 1, device=batch.tokens.device)
    if share is not None:
        row_T[share[0]] = share[1]
        if context_parallel_group().size() > 1:
            row_T[0] = 0.0
            torch.distributed.all_reduce(row_T, group=context_parallel_group())
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(row_T, src=last, group=pipeline_parallel_group())
    return row_T[1:].masked_fill(batch.loss_weights == 0, 0.0)
