"""Micro-batches: samples packed into one row, with what the loss needs at each position."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor


@dataclass
class MicroBatch:
    """Samples packed one behind the other into a single row.

    Attributes:
        tokens: [T] token ids.
        targets: [T] the next token inside the same sample; anything where `loss_weights` is 0.
        loss_weights: [T] fp32, 0 on prompts and the last position of a sample.
        lengths: lengths of the samples, summing to T.
        extra: per-token tensors [T] that a loss function needs (advantages, behaviour log-probs).
    """

    tokens: Tensor
    targets: Tensor
    loss_weights: Tensor
    lengths: list[int]
    extra: dict[str, Tensor] = field(default_factory=dict)

    def packed_seq_params(self) -> PackedSeqParams:
        """Segment boundaries in Megatron's THD form."""
        boundaries = torch.tensor([0, *self.lengths], dtype=torch.int32).cumsum(0, dtype=torch.int32)
        longest = max(self.lengths)
        return PackedSeqParams(
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
        extra={name: value.to(device) for name, value in placed.items()},
    )
