"""Layers of Transformer Engine. Imported only where `capabilities.select_kernels` found it; not run without a GPU.

Training: linear layers with RMSNorm fused in front (in FP8 where `TransformerConfig.fp8` says so), and Transformer
Engine's attention of packed THD rows, which takes the segment boundaries and, under context parallelism, exchanges keys
and values itself (zigzag order, as `context_positions` lays rows out). Padding stands at the end of a sample and weighs
nothing, so the padded boundaries serve as both.

Generation in process: the same linear layers in bf16, and torch's attention, because its key-value cache comes with an
explicit mask, true where attending is allowed; Transformer Engine's masks say the opposite and its cache is its own.
"""

from typing import Any

from megatron.core.extensions.transformer_engine import TEDotProductAttention, TENorm
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_with_transformer_engine_spec
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_vibethinker.model.attention import CachingSelfAttention, SdpaCoreAttention


class PackedOrCachedAttention(TEDotProductAttention):
    """Transformer Engine's attention for packed rows, torch's for the steps of generation."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        **keywords: Any,
    ) -> None:
        super().__init__(config, layer_number, attn_mask_type, attention_type, **keywords)
        self.cached = SdpaCoreAttention(config, layer_number, attn_mask_type, attention_type)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        attn_mask_type: AttnMaskType,
        attention_bias: Tensor | None = None,
        packed_seq_params: PackedSeqParams | None = None,
        num_splits: int | None = None,
    ) -> Tensor:
        """Shapes as `SdpaCoreAttention.forward`."""
        if packed_seq_params is None:
            return self.cached(query, key, value, attention_mask)
        return super().forward(
            query, key, value, attention_mask, attn_mask_type, attention_bias, packed_seq_params, num_splits
        )


def transformer_engine_layer(config: TransformerConfig) -> tuple[ModuleSpec, Any]:
    """The spec of one layer, and the class of the final norm."""
    layer: ModuleSpec = get_gpt_layer_with_transformer_engine_spec(qk_layernorm=config.qk_layernorm)
    submodules: Any = layer.submodules
    submodules.self_attention.module = CachingSelfAttention
    submodules.self_attention.submodules.core_attention = PackedOrCachedAttention
    return layer, TENorm
