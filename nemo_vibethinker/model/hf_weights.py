"""Hugging Face Qwen2 weights <-> Megatron-Core parameters.

Megatron fuses what Hugging Face keeps apart: Q, K and V interleaved by query group, the MLP's gate over up. Under
tensor parallelism each rank holds its slice of the fused form.
"""

import re
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from nemo_vibethinker.config import Config, ModelConfig

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

TensorSource = Callable[[str], Tensor]  # Hugging Face name -> full (unsharded) tensor

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_PLAIN = {
    "input_layernorm.weight": "input_layernorm.weight",
    "pre_mlp_layernorm.weight": "post_attention_layernorm.weight",
    "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
    "mlp.linear_fc2.weight": "mlp.down_proj.weight",
}
_OUTER = {
    "embedding.word_embeddings.weight": "model.embed_tokens.weight",
    "output_layer.weight": "model.embed_tokens.weight",  # tied; held by the last pipeline stage
    "decoder.final_layernorm.weight": "model.norm.weight",
}
_ROW_PARALLEL = ("self_attention.linear_proj.weight", "mlp.linear_fc2.weight")


def hf_config_fields(model: ModelConfig, vocab_size: int) -> dict[str, Any]:
    """The fields of transformers' `Qwen2Config` for this architecture."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": model.hidden_size,
        "intermediate_size": model.ffn_hidden_size,
        "num_hidden_layers": model.num_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_query_groups,
        "max_position_embeddings": model.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", "rope_theta": model.rope_theta},
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "hidden_act": "silu",
    }


def random_hf_tensors(config: Config, vocab_size: int) -> TensorSource:
    """Initial weights by name: normal(0, init_std), output projections scaled by 1/sqrt(2 num_layers) (GPT-2).

    Each tensor has its own generator, seeded by `config.seed` and its name, so every layout builds the same model.
    """
    model = config.scale.model
    head_dim = model.hidden_size // model.num_attention_heads
    heads, groups = model.num_attention_heads * head_dim, model.num_query_groups * head_dim
    shapes = {
        "embed_tokens.weight": (vocab_size, model.hidden_size),
        "q_proj.weight": (heads, model.hidden_size),
        "k_proj.weight": (groups, model.hidden_size),
        "v_proj.weight": (groups, model.hidden_size),
        "q_proj.bias": (heads,),
        "k_proj.bias": (groups,),
        "v_proj.bias": (groups,),
        "o_proj.weight": (model.hidden_size, heads),
        "gate_proj.weight": (model.ffn_hidden_size, model.hidden_size),
        "up_proj.weight": (model.ffn_hidden_size, model.hidden_size),
        "down_proj.weight": (model.hidden_size, model.ffn_hidden_size),
    }

    def tensor(name: str) -> Tensor:
        kind = ".".join(name.split(".")[-2:])
        if kind.endswith("norm.weight"):
            return torch.ones(model.hidden_size)
        if kind.endswith(".bias"):
            return torch.zeros(shapes[kind])
        scale = (2 * model.num_layers) ** -0.5 if kind in ("o_proj.weight", "down_proj.weight") else 1.0
        generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
        return torch.randn(shapes[kind], generator=generator) * (model.init_std * scale)

    return tensor


@torch.no_grad()
def load_hf_weights(model: "GPTModel", source: TensorSource) -> None:
    """Fill this rank's parameters from full Hugging Face tensors."""
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    offset = get_transformer_layer_offset(model.config, model.vp_stage)
    groups = model.config.num_query_groups
    assert groups is not None
    for name, parameter in model.named_parameters():
        parameter.copy_(_local_slice(name, offset, groups, source, rank, size))


def _local_slice(name: str, offset: int, groups: int, source: TensorSource, rank: int, size: int) -> Tensor:
    match = _LAYER.fullmatch(name)
    if match is None:
        full = source(_OUTER[name])
        return full if "layernorm" in name else full.chunk(size)[rank]
    prefix, kind = f"model.layers.{int(match[1]) + offset}.", match[2]
    if kind == "mlp.linear_fc1.weight":
        halves = (source(f"{prefix}mlp.{half}_proj.weight").chunk(size)[rank] for half in ("gate", "up"))
        return torch.cat(tuple(halves))
    if kind.startswith("self_attention.linear_qkv."):
        return fuse_qkv(prefix, kind.rsplit(".", 1)[1], groups, source).chunk(size)[rank]
    full = source(prefix + _PLAIN[kind])
    return full.chunk(size, dim=1)[rank] if kind in _ROW_PARALLEL else full


def fuse_qkv(prefix: str, leaf: str, groups: int, source: TensorSource) -> Tensor:
    """[Q of group 0, K of group 0, V of group 0, Q of group 1, ...] along the first dimension."""
    parts = [source(f"{prefix}self_attn.{x}_proj.{leaf}") for x in "qkv"]
    return torch.cat([p.reshape(groups, -1, *p.shape[1:]) for p in parts], dim=1).flatten(0, 1)


def split_qkv(fused: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `fuse_qkv` for one weight or bias: (Q, K, V)."""
    per_group = heads // groups
    head_dim = fused.shape[0] // (heads + 2 * groups)
    by_group = fused.reshape(groups, -1, *fused.shape[1:])
    parts = by_group.split([per_group * head_dim, head_dim, head_dim], dim=1)
    q, k, v = (p.flatten(0, 1).contiguous() for p in parts)
    return q, k, v


def to_hf_tensors(full: dict[str, Tensor], model: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face (name, tensor) pairs from unsharded Megatron tensors, layer by layer.

    Args:
        full: Megatron names with global layer numbers -> full tensors.
    """
    for name, tensor in full.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            if name != "output_layer.weight":  # tied
                yield _OUTER[name], tensor
            continue
        prefix, kind = f"model.layers.{match[1]}.", match[2]
        if kind == "mlp.linear_fc1.weight":
            gate, up = tensor.chunk(2)
            yield f"{prefix}mlp.gate_proj.weight", gate.contiguous()
            yield f"{prefix}mlp.up_proj.weight", up.contiguous()
        elif kind.startswith("self_attention.linear_qkv."):
            parts = split_qkv(tensor, model.num_attention_heads, model.num_query_groups)
            for letter, part in zip("qkv", parts, strict=True):
                yield f"{prefix}self_attn.{letter}_proj.{kind.rsplit('.', 1)[1]}", part
        else:
            yield prefix + _PLAIN[kind], tensor
