"""Training samples packed into micro-batches, for each update on a rollout. Imports Megatron."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import cast

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.megatron.distributed import data_parallel_rank_and_size, gather_over_data_parallel
from nemo_vibethinker.megatron.micro_batch import MicroBatch, pack_row
from nemo_vibethinker.signal.loss import LossNormalisation, token_weight
from nemo_vibethinker.signal.row_packing import balanced_rows, rows_in_order
from nemo_vibethinker.signal.samples import Rollout, TrainingSample


def update_batches(rollout: Rollout, config: MgpoConfig) -> Iterator[list[MicroBatch]]:
    """This rank's micro-batches of each update on a rollout; an update for which no rank has samples is left out."""
    total = sum(gather_over_data_parallel(len(rollout.places)))
    updates = config.updates_per_rollout  # places go past the total where an engine has cut groups
    parts = [min(place * updates // max(1, total), updates - 1) for place in rollout.places]
    for part in range(config.updates_per_rollout):
        samples = [s for group, its_part in zip(rollout.samples, parts, strict=True) if its_part == part for s in group]
        everyone = gather_over_data_parallel([_length(sample) for sample in samples])
        if any(everyone):
            yield policy_micro_batches(samples, config, everyone)


def policy_micro_batches(
    samples: Sequence[TrainingSample], config: MgpoConfig, lengths: Sequence[Sequence[int]] | None = None
) -> list[MicroBatch]:
    """Samples in rows of at most `tokens_per_micro_batch` tokens (a longer sample gets its own row).

    Args:
        samples: this rank's.
        lengths: those of the samples of each rank; samples then go where `config.packing` balances them to.
    """
    capacity = config.tokens_per_micro_batch
    if lengths is not None and config.packing == "balanced":
        rows = _exchanged(samples, lengths, capacity)
    else:
        rows = [[samples[i] for i in row] for row in rows_in_order([_length(s) for s in samples], capacity)]
    return [_pack(row, config) if row else _empty_row(config) for row in rows or [[]]]


def _exchanged(
    samples: Sequence[TrainingSample], lengths: Sequence[Sequence[int]], capacity: int
) -> list[list[TrainingSample]]:
    """This rank's rows of a batch balanced over the ranks; samples whose row is another's are sent there."""
    rank, size = data_parallel_rank_and_size()
    places = [(owner, index) for owner, theirs in enumerate(lengths) for index in range(len(theirs))]
    shares = balanced_rows([length for theirs in lengths for length in theirs], capacity, size)
    mine = {index: samples[place[1]] for index, place in enumerate(places) if place[0] == rank}
    if size > 1:
        kept = {index for row in shares[rank] for index in row}
        sent = {index: sample for index, sample in mine.items() if index not in kept}
        for received in gather_over_data_parallel(sent):
            mine |= {index: sample for index, sample in received.items() if index in kept}
    return [[mine[index] for index in row] for row in shares[rank]]


def _length(sample: TrainingSample) -> int:
    return len(sample.prompt) + len(sample.response.sample.tokens)


def _pack(row: list[TrainingSample], config: MgpoConfig) -> MicroBatch:
    normalisation = cast(LossNormalisation, config.normalisation)
    sequence = {"sequence": [float(index) for index in range(len(row))]} if config.surrogate == "gspo" else {}
    return pack_row(
        [(s.prompt + s.response.sample.tokens, len(s.prompt)) for s in row],
        [token_weight(len(s.response.sample.tokens), normalisation) for s in row],
        advantages=[s.advantage for s in row],
        behaviour_logprobs=[s.response.sample.logprobs for s in row],
        **sequence,
    )


def _empty_row(config: MgpoConfig) -> MicroBatch:
    """Keeps a rank without samples in step with the others' collectives; weighs nothing."""
    sequence = {"sequence": [0.0]} if config.surrogate == "gspo" else {}
    return pack_row([([0, 0], 1)], [0.0], advantages=[0.0], behaviour_logprobs=[0.0], **sequence)


def with_values(batches: Sequence[MicroBatch], **values: Sequence) -> list[MicroBatch]:
    """The micro-batches with further per-token tensors [T], one of each kind for each micro-batch."""
    return [
        replace(batch, extra=batch.extra | {name: rows[index] for name, rows in values.items()})
        for index, batch in enumerate(batches)
    ]
