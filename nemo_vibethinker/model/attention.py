"""Attention and normalisation modules of the local layer spec (no Transformer Engine)."""

from typing import Any

import torch
from megatron.core.inference.contexts import StaticInferenceContext
from megatron.core.models.common.embeddings.rope_utils import apply_rotary_pos_emb
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel import gather_from_sequence_parallel_region
from megatron.core.transformer.attention import SelfAttention
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.mlp import MLP
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from nemo_vibethinker.megatron.distributed import context_parallel_group
from nemo_vibethinker.megatron.micro_batch import PackedRow, context_positions
from nemo_vibethinker.model.local_kernels import packed_attention, rotate, swiglu


class SdpaCoreAttention(MegatronModule):
    """Core attention by torch's `scaled_dot_product_attention`.

    Takes dense causal batches, packed THD rows (samples never see each other), and KV-cache steps of generation with an
    explicit mask. Megatron's own `DotProductAttention` refuses packed rows.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        **unused: object,
    ) -> None:
        super().__init__(config=config)
        assert attention_type == "self"
        self.grouped = config.num_query_groups != config.num_attention_heads
        self.context_group = context_parallel_group()

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType | None = None,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            query: [S, B, H, D], or [T, H, D] packed. `key` and `value` likewise with their own length and head count.
            attention_mask: None for causal; else boolean [B, 1, S, S_key], true where attending is allowed.
            packed_seq_params: segment boundaries of a packed row.

        Returns:
            [S, B, H*D], or [T, H*D] packed.
        """
        if packed_seq_params is not None:
            return self._packed(query, key, value, packed_seq_params)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        causal = attention_mask is None and query.size(0) > 1
        out_BHSD = scaled_dot_product_attention(q, k, v, attention_mask, is_causal=causal, enable_gqa=self.grouped)
        return out_BHSD.permute(2, 0, 1, 3).reshape(query.size(0), query.size(1), -1)

    def _packed(self, query: Tensor, key: Tensor, value: Tensor, params: PackedSeqParams) -> Tensor:
        assert params.cu_seqlens_q is not None
        lengths = params.cu_seqlens_q.diff().tolist()
        if self.context_group.size() > 1:
            return self._context_parallel(query, key, value, lengths)
        if query.device.type == "cpu":
            return packed_attention(query, key, value, lengths)
        segments = zip(*(x.transpose(0, 1).split(lengths, dim=1) for x in (query, key, value)), strict=True)
        outs = [
            scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, enable_gqa=self.grouped)[0]
            for q, k, v in segments
        ]
        return torch.cat(outs, dim=1).transpose(0, 1).flatten(1)

    def _context_parallel(self, query: Tensor, key: Tensor, value: Tensor, lengths: list[int]) -> Tensor:
        """This rank's queries against the keys and values of all context-parallel ranks, gathered."""
        size, rank = self.context_group.size(), self.context_group.rank()
        order = torch.cat([context_positions(lengths, r, size) for r in range(size)]).argsort().to(key.device)
        keys, values = (
            gather_from_sequence_parallel_region(x, group=self.context_group)[order].transpose(0, 1)
            for x in (key, value)
        )
        queries = query.transpose(0, 1)  # [H, T, D]
        outs, taken, start = [], 0, 0
        for length in lengths:
            chunk = length // (2 * size)
            for index in (rank, 2 * size - 1 - rank):
                end = (index + 1) * chunk
                seen = torch.ones(chunk, end, dtype=torch.bool, device=key.device).tril(index * chunk)
                q = queries[None, :, taken : taken + chunk]
                k, v = (x[None, :, start : start + end] for x in (keys, values))
                outs.append(scaled_dot_product_attention(q, k, v, seen, enable_gqa=self.grouped)[0])
                taken += chunk
            start += length
        return torch.cat(outs, dim=1).transpose(0, 1).flatten(1)


class RMSNorm(torch.nn.RMSNorm):
    """torch's RMSNorm with the constructor Megatron's specs call."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: object) -> None:
        super().__init__(hidden_size, eps=eps, dtype=config.params_dtype)
        # Under sequence parallelism its gradient is of a part of the tokens: Megatron sums it over the ranks.
        setattr(self.weight, "sequence_parallel", config.sequence_parallel)  # noqa: B010


class SwigluMlp(MLP):
    """Megatron's MLP with `local_kernels.swiglu`."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, hidden_states: Tensor, **unused: object
    ) -> tuple[Tensor, Tensor | None]:
        """[S, B, H] to the same, and no bias."""
        joined, _ = self.linear_fc1(hidden_states)
        return self.linear_fc2(swiglu(joined))


class CachingSelfAttention(SelfAttention):
    """Self-attention whose key cache holds keys with RoPE applied.

    Megatron's static cache holds plain keys and rotates the whole cache again for each new token; rotating a key once,
    when it is written, makes a decoding step several times cheaper. In packed rows RoPE is `local_kernels.rotate`,
    its tables made once a row and not once a layer, where no fused kernel and no context parallelism is about.
    """

    _row: PackedRow | None = None

    def forward(self, *arguments: Any, packed_seq_params: PackedSeqParams | None = None, **keywords: Any) -> Any:
        """As Megatron's."""
        plain = not self.config.apply_rope_fusion and self.config.context_parallel_size == 1
        self._row = packed_seq_params if plain and isinstance(packed_seq_params, PackedRow) else None
        return super().forward(*arguments, packed_seq_params=packed_seq_params, **keywords)

    def _rotate_row(
        self, row: PackedRow, query: Tensor, key: Tensor, frequencies_S11D: Tensor
    ) -> tuple[Tensor, Tensor]:
        """[T, 1, H, D] queries and keys, each sample's positions from 0."""
        if row.rotation is None:
            assert row.cu_seqlens_q is not None
            lengths = row.cu_seqlens_q.diff().tolist()
            angles_T1D = torch.cat([frequencies_S11D[:length] for length in lengths])[:, 0]
            row.rotation = angles_T1D.cos().to(query.dtype), angles_T1D.sin().to(query.dtype)
        return rotate(query[:, 0], *row.rotation)[:, None], rotate(key[:, 0], *row.rotation)[:, None]

    def _adjust_key_value_for_inference(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        inference_context: StaticInferenceContext | None,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        rotary_pos_emb: tuple[Tensor, Tensor] | None,
        *unused: object,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor] | None, AttnMaskType, None]:
        """Append [S, B, G, D] keys and values to the cache; returns them with everything cached before."""
        if inference_context is None and self._row is not None:
            assert rotary_pos_emb is not None
            query, key = self._rotate_row(self._row, query, key, rotary_pos_emb[0])
            return query, key, value, None, self.attn_mask_type, None
        if inference_context is None:
            return query, key, value, rotary_pos_emb, self.attn_mask_type, None
        assert rotary_pos_emb is not None
        start = inference_context.sequence_len_offset
        end = start + key.size(0)
        emb = rotary_pos_emb[0][start:end]
        query, key = (
            apply_rotary_pos_emb(x, emb, config=self.config, cp_group=self.pg_collection.cp) for x in (query, key)
        )
        keys, values = self._cache(inference_context, key)
        keys[:, :, start:end] = key.permute(1, 2, 0, 3)
        values[:, :, start:end] = value.permute(1, 2, 0, 3)
        key, value = (x[:, :, :end].permute(2, 0, 1, 3) for x in (keys, values))
        return query, key, value, None, self.attn_mask_type, None

    def _cache(self, context: StaticInferenceContext, key: Tensor) -> tuple[Tensor, Tensor]:
        """This layer's buffers, [B, G, S_max, D] each: the order attention reads them in."""
        memory = context.key_value_memory_dict
        if self.layer_number not in memory:
            shape = (key.size(1), key.size(2), context.max_sequence_length, key.size(3))
            memory[self.layer_number] = (key.new_empty(shape), key.new_empty(shape))
        return memory[self.layer_number]
