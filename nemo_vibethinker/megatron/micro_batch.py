"""Micro-batches: samples packed into one row, with what the loss needs at each position."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_vibethinker.config import fp8_multiple


@dataclass
class PackedRow(PackedSeqParams):
    """Megatron's boundaries of the samples of a row, and what its layers share.

    Attributes:
        rotation: cosine and sine of RoPE at each position, [T, 1, D] each; set by the first layer that needs them.
    """

    rotation: tuple[Tensor, Tensor] | None = None


@dataclass
class MicroBatch:
    """Samples packed one behind the other into a single row.

    Attributes:
        tokens: [T] token ids.
        targets: [T] the next token inside the same sample; anything where `loss_weights` is 0.
        loss_weights: [T] fp32, 0 on prompts, padding and the last position of a sample.
        lengths: lengths of the whole samples, padding included; they sum to T times the context-parallel size.
        num_sequences: samples that weigh something in the loss; under context parallelism only the first rank counts
            them, so that a sum over ranks counts each once.
        extra: per-token tensors [T] that a loss function needs (advantages, behaviour log-probs).
    """

    tokens: Tensor
    targets: Tensor
    loss_weights: Tensor
    lengths: list[int]
    num_sequences: int
    extra: dict[str, Tensor] = field(default_factory=dict)

    def packed_seq_params(self) -> PackedSeqParams:
        """Segment boundaries in Megatron's THD form."""
        lengths = torch.tensor([0, *self.lengths], dtype=torch.int32, device=self.tokens.device)
        boundaries = lengths.cumsum(0, dtype=torch.int32)
        longest = max(self.lengths)
        return PackedRow(
            qkv_format="thd",
            cu_seqlens_q=boundaries,
            cu_seqlens_kv=boundaries,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
        )


def pack_row(
    samples: Sequence[tuple[Sequence[int], int]],
    loss_weights: Sequence[float],
    **extra: Sequence[Sequence[float] | float],
) -> MicroBatch:
    """Lay samples one behind the other, without padding.

    Args:
        samples: (token ids of prompt and response, prompt length) of each sample.
        loss_weights: for each sample the weight of each of its response tokens.
        extra: for each sample a number, or a number for each response token; placed, like the weights, at the position
            that predicts the token.
    """
    lengths = [len(tokens) for tokens, _ in samples]
    tokens_T = torch.tensor([token for tokens, _ in samples for token in tokens])
    placed = {name: torch.zeros(len(tokens_T)) for name in ("loss_weights", *extra)}
    end = 0
    for index, (tokens, prompt_length) in enumerate(samples):
        start, end = end + prompt_length - 1, end + len(tokens)
        for name, values in (("loss_weights", loss_weights), *extra.items()):
            value = values[index]
            placed[name][start : end - 1] = value if isinstance(value, int | float) else torch.tensor(value)
    device = torch.device("cuda") if torch.cuda.is_available() else torch.device("cpu")
    tokens_T = tokens_T.to(device)
    return MicroBatch(
        tokens=tokens_T,
        targets=tokens_T.roll(-1),
        loss_weights=placed.pop("loss_weights").to(device),
        lengths=lengths,
        num_sequences=sum(weight > 0 for weight in loss_weights),
        extra={name: value.to(device) for name, value in placed.items()},
    )


def context_positions(lengths: Sequence[int], rank: int, size: int) -> Tensor:
    """Positions in a packed row that belong to context-parallel rank `rank` of `size`, in its own order.

    Each sample is cut into 2 * size equal chunks; a rank holds chunk `rank` and chunk 2 * size - 1 - rank, which gives
    every rank the same share of causal attention (the zigzag order of Megatron-Core and Transformer Engine).
    """
    if size == 1:
        return torch.arange(sum(lengths))
    parts, start = [], 0
    for length in lengths:
        chunk = length // (2 * size)
        for index in (rank, 2 * size - 1 - rank):
            parts.append(torch.arange(start + index * chunk, start + (index + 1) * chunk))
        start += length
    return torch.cat(parts)


def padded_lengths(lengths: Sequence[int], config: TransformerConfig, row_length: int = 0) -> list[int]:
    """Lengths the layout can divide, of a row of at least `row_length` tokens.

    Context parallelism cuts each sample into two chunks a rank; sequence parallelism shares out the rank's part of the
    row, for which the last sample is padded further; FP8 products take rows by multiples.
    """
    context = config.context_parallel_size
    sample = 2 * context if context > 1 else 1
    share = config.tensor_model_parallel_size if config.sequence_parallel else 1
    share *= fp8_multiple(str(config.fp8_recipe)) if config.fp8 else 1
    padded = [-(-length // sample) * sample for length in lengths]
    padded[-1] += max(0, -(-row_length // sample) * sample - sum(padded))
    padded[-1] += -sum(padded) % math.lcm(sample, context * share)
    return padded


def rank_share(batch: MicroBatch, config: TransformerConfig, row_length: int = 0) -> MicroBatch:
    """What this rank computes of a row that all ranks of its replica hold in full: padded, and its context's part.

    Padding stands at the end of a sample and weighs nothing; causal attention keeps it from the sample's own tokens.
    """
    lengths = padded_lengths(batch.lengths, config, row_length)
    rank, size = parallel_state.get_context_parallel_rank(), parallel_state.get_context_parallel_world_size()
    if size == 1 and lengths == batch.lengths:
        return batch
    tokens = torch.arange(len(batch.tokens)).split(batch.lengths)
    padding = [tokens[0].new_full((length - len(part),), -1) for length, part in zip(lengths, tokens, strict=True)]
    sources = torch.cat([piece for pair in zip(tokens, padding, strict=True) for piece in pair])
    mine = sources[context_positions(lengths, rank, size)].to(batch.tokens.device)

    def take(values_T: Tensor) -> Tensor:
        return values_T[mine].masked_fill(mine < 0, 0)

    return MicroBatch(
        tokens=take(batch.tokens),
        targets=take(batch.targets),
        loss_weights=take(batch.loss_weights),
        lengths=lengths,
        num_sequences=batch.num_sequences if rank == 0 else 0,
        extra={name: take(value) for name, value in batch.extra.items()},
    )


def weightless(batch: MicroBatch) -> MicroBatch:
    """The same tokens without any part in the loss."""
    return replace(batch, loss_weights=torch.zeros_like(batch.loss_weights), num_sequences=0)
