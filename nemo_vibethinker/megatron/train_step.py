"""One optimizer step over packed micro-batches, through Megatron's pipeline schedules."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.models.gpt import GPTModel
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_vibethinker.megatron.distributed import host_data_parallel_group, pipeline_parallel_group
from nemo_vibethinker.megatron.micro_batch import MicroBatch, padded_lengths, rank_share, weightless

LossTerms = tuple[Tensor, Tensor, dict[str, Tensor]]  # summed loss, count it is divided by, summed statistics
LossFunction = Callable[[MicroBatch, Tensor], LossTerms]


@dataclass(frozen=True)
class StepResult:
    """What one optimizer step reports, the same on every rank.

    Attributes:
        loss: loss per counted unit over the whole global batch.
        grad_norm: before clipping.
        statistics: sums of the loss function's statistics over the whole global batch.
        count: what the loss was divided by.
        applied: false when the caller did not permit the update, or the gradient was not finite; without loss scaling
            Megatron has then spoilt the weights, unless it was not permitted.
    """

    loss: float
    grad_norm: float
    statistics: dict[str, float]
    count: float
    applied: bool


Permit = Callable[[StepResult], bool]


def forward_logits(model: GPTModel | DistributedDataParallel, batch: MicroBatch) -> Tensor:
    """This rank's output for a packed row: [1, T, V/tp] logits on the last pipeline stage, hidden states before."""
    return model(
        input_ids=batch.tokens[None],
        position_ids=None,  # RoPE restarts at each sample by the segment boundaries
        attention_mask=None,
        packed_seq_params=batch.packed_seq_params(),
    )


def run_forward_backward(
    chunks: Sequence[GPTModel | DistributedDataParallel],
    batches: Sequence[MicroBatch],
    loss_function: LossFunction,
    *,
    forward_only: bool = False,
) -> list[dict[str, Tensor]]:
    """Run all micro-batches of this rank through the pipeline schedule; gradients accumulate in the DDP buffers.

    Args:
        chunks: this rank's part of the model, one chunk but for the interleaved schedule.
        batches: whole rows; the loss function sees this rank's share of each (see `rank_share`).

    Returns:
        What the loss function reported for each micro-batch; empty but on the last pipeline stage.
    """

    def forward_step(iterator: Iterator[MicroBatch], module: torch.nn.Module) -> tuple[Tensor, Callable]:
        batch = next(iterator)
        return forward_logits(module, batch), partial(loss_report, loss_function, batch)  # pyright: ignore

    shares, longest = schedule_rows(batches, chunks[0].config, len(chunks))
    iterators = [iter(shares) for _ in chunks]
    run_schedule: Any = get_forward_backward_func()
    return run_schedule(
        forward_step_func=forward_step,
        data_iterator=iterators if len(chunks) > 1 else iterators[0],
        model=list(chunks),
        num_microbatches=len(shares),
        seq_length=longest,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def schedule_rows(
    batches: Sequence[MicroBatch], config: TransformerConfig, chunks: int = 1
) -> tuple[list[MicroBatch], int]:
    """What a pipeline schedule takes: this rank's share of each row, and the tokens of the longest whole row."""
    longest = max(sum(padded_lengths(batch.lengths, config)) for batch in batches)
    row_length = 0 if config.variable_seq_lengths else longest
    shares = [rank_share(batch, config, row_length) for batch in batches]
    if chunks > 1:  # the interleaved schedule takes the micro-batches in groups, one for each pipeline stage
        shares += [weightless(shares[0])] * (-len(shares) % config.pipeline_model_parallel_size)
    return shares, longest


def loss_report(
    loss_function: LossFunction, batch: MicroBatch, output: Tensor
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """What a pipeline schedule asks of a loss: summed loss, integer count, and all sums of the micro-batch by name."""
    loss, count, statistics = loss_function(batch, output)
    report = {"loss": loss.detach(), "count": count.detach(), **statistics}
    return loss, count.to(torch.int), report


def train_step(
    chunks: Sequence[DistributedDataParallel],
    optimizer: MegatronOptimizer,
    batches: Sequence[MicroBatch],
    loss_function: LossFunction,
    permit: Permit = lambda result: True,
) -> StepResult:
    """Forward, backward and one optimizer update over the micro-batches of all ranks.

    The loss function returns sums; Megatron divides the gradient by the count summed over all micro-batches and ranks,
    so the result does not depend on how the samples were split. `permit` sees the result before the update, the same
    on every rank; where it says no, weights and optimizer stay as they are.
    """
    for chunk in chunks:
        chunk.train()
        chunk.zero_grad_buffer()
    optimizer.zero_grad()
    sums = sum_over_ranks(run_forward_backward(chunks, batches, loss_function))
    count = sums.pop("count")
    loss = sums.pop("loss") / max(count, 1.0)
    overflow = optimizer.prepare_grads()
    grad_norm = math.nan if overflow else float(optimizer.get_grad_norm() or 0.0)
    result = StepResult(loss=loss, grad_norm=grad_norm, statistics=sums, count=count, applied=False)
    if overflow or not permit(result):
        return result
    outcome: Any = optimizer.step()
    return replace(result, applied=bool(outcome[0]) and math.isfinite(grad_norm))


def gather_parameters(chunks: Sequence[DistributedDataParallel]) -> None:
    """Have the updated weights whole on every rank; all call it before anything but a training step reads them.

    With `scale.overlap_param_gather` they would else be gathered during the next step's forward pass.
    """
    for chunk in chunks:
        if chunk.ddp_config.overlap_param_gather:
            chunk.start_param_sync(force_sync=True)


def sum_over_ranks(reports: list[dict[str, Tensor]]) -> dict[str, float]:
    """Sum each reported value over micro-batches, data- and context-parallel ranks; the same on every rank."""
    last = parallel_state.get_pipeline_model_parallel_last_rank()
    box: list[dict[str, float] | None] = [None]
    if parallel_state.is_pipeline_last_stage():
        box = [sum_over_replicas(reports)]
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        torch.distributed.broadcast_object_list(box, src=last, group=pipeline_parallel_group())
    assert box[0] is not None
    return box[0]


def sum_over_replicas(reports: Sequence[dict[str, Tensor]]) -> dict[str, float]:
    """`sum_over_ranks` on the last pipeline stage alone, the only one that has reports."""
    names = sorted({name for report in reports for name in report})
    values = torch.tensor([[float(report[name]) for name in names] for report in reports], dtype=torch.float64)
    sums = values.sum(0)
    torch.distributed.all_reduce(sums, group=host_data_parallel_group(with_context_parallel=True))
    return dict(zip(names, sums.tolist(), strict=True))
