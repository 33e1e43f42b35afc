"""Hugging Face Qwen2 and Qwen3 (dense) weights <-> Megatron-Core parameters.

Megatron fuses what Hugging Face keeps apart: Q, K and V interleaved by query group, the MLP's gate over up. Under
tensor parallelism each rank holds its slice of the fused form. Norms have two names: a module of their own under the
local layer spec, a part of the following linear layer under Transformer Engine's.
"""

import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from nemo_vibethinker.config import Config
from nemo_vibethinker.model.hf_folder import hf_shapes

if TYPE_CHECKING:
    from megatron.core.models.gpt import GPTModel

TensorSource = Callable[[str], Tensor]  # Hugging Face name -> full (unsharded) tensor
# How tensor-parallel ranks share a tensor: not at all, by rows, by columns, by query groups, or each half by rows.
Split = Literal["whole", "rows", "columns", "groups", "halves"]

_LAYER = re.compile(r"decoder\.layers\.(\d+)\.(.+)")
_IN_LAYER: dict[str, tuple[tuple[str, ...], Split]] = {
    "input_layernorm.weight": (("input_layernorm.weight",), "whole"),
    "self_attention.linear_qkv.layer_norm_weight": (("input_layernorm.weight",), "whole"),
    "self_attention.linear_qkv.weight": (tuple(f"self_attn.{x}_proj.weight" for x in "qkv"), "groups"),
    "self_attention.linear_qkv.bias": (tuple(f"self_attn.{x}_proj.bias" for x in "qkv"), "groups"),
    "self_attention.q_layernorm.weight": (("self_attn.q_norm.weight",), "whole"),
    "self_attention.k_layernorm.weight": (("self_attn.k_norm.weight",), "whole"),
    "self_attention.linear_proj.weight": (("self_attn.o_proj.weight",), "columns"),
    "pre_mlp_layernorm.weight": (("post_attention_layernorm.weight",), "whole"),
    "mlp.linear_fc1.layer_norm_weight": (("post_attention_layernorm.weight",), "whole"),
    "mlp.linear_fc1.weight": (("mlp.gate_proj.weight", "mlp.up_proj.weight"), "halves"),
    "mlp.linear_fc2.weight": (("mlp.down_proj.weight",), "columns"),
}
_OUTER: dict[str, tuple[tuple[str, ...], Split]] = {
    "embedding.word_embeddings.weight": (("model.embed_tokens.weight",), "rows"),
    "decoder.final_layernorm.weight": (("model.norm.weight",), "whole"),
    "output_layer.weight": (("lm_head.weight",), "rows"),
}


def random_hf_tensors(config: Config, vocab_size: int) -> TensorSource:
    """Initial weights by name: normal(0, init_std), output projections scaled by 1/sqrt(2 num_layers) (GPT-2).

    Each tensor has its own generator, seeded by `config.seed` and its name, so every layout builds the same model.
    """
    model = config.scale.model
    shapes = hf_shapes(model, vocab_size)

    def tensor(name: str) -> Tensor:
        if name.endswith("norm.weight"):
            return torch.ones(shapes[name])
        if name.endswith(".bias"):
            return torch.zeros(shapes[name])
        scale = (2 * model.num_layers) ** -0.5 if name.endswith(("o_proj.weight", "down_proj.weight")) else 1.0
        generator = torch.Generator().manual_seed(zlib.crc32(f"{config.seed}/{name}".encode()))
        return torch.randn(shapes[name], generator=generator) * (model.init_std * scale)

    return tensor


@torch.no_grad()
def load_hf_weights(model: "GPTModel", source: TensorSource) -> None:
    """Fill this rank's parameters from full Hugging Face tensors, one parameter after the other."""
    from megatron.core import parallel_state
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    rank = parallel_state.get_tensor_model_parallel_rank()
    size = parallel_state.get_tensor_model_parallel_world_size()
    offset = get_transformer_layer_offset(model.config, model.vp_stage)
    groups = model.config.num_query_groups
    assert groups is not None
    for name, parameter in model.named_parameters():
        names, split = hf_names(name, offset, tied=model.share_embeddings_and_output_weights)
        parameter.copy_(local_part([source(n) for n in names], split, groups, rank, size))


def hf_names(name: str, layer_offset: int, *, tied: bool) -> tuple[tuple[str, ...], Split]:
    """The Hugging Face tensors that make up a Megatron parameter, and how its ranks share it.

    Args:
        layer_offset: global number of the chunk's first layer.
        tied: whether the output layer is the embedding, of which the last pipeline stage holds a copy.
    """
    match = _LAYER.fullmatch(name)
    if match is None:
        return _OUTER["embedding.word_embeddings.weight" if tied and name == "output_layer.weight" else name]
    names, split = _IN_LAYER[match[2]]
    prefix = f"model.layers.{int(match[1]) + layer_offset}."
    return tuple(prefix + n for n in names), split


def local_part(parts: Sequence[Tensor], split: Split, groups: int, rank: int, size: int) -> Tensor:
    """Tensor-parallel rank `rank`'s part of the parameter that the full tensors `parts` make up."""
    if split == "groups":
        return fuse_qkv(parts, groups).chunk(size)[rank]
    if split == "columns":
        return parts[0].chunk(size, dim=1)[rank]
    if split == "whole" or (len(parts) == 1 and size == 1):
        return parts[0]
    return torch.cat([part.chunk(size)[rank] for part in parts])


def full_parts(shards: Sequence[Tensor], split: Split, heads: int, groups: int) -> list[Tensor]:
    """The inverse of `local_part`: full tensors from the parts of all tensor-parallel ranks, in their order."""
    if split == "whole" or (split in ("rows", "columns") and len(shards) == 1):
        return [shards[0]]
    if split == "columns":
        return [torch.cat(list(shards), dim=1)]
    if split == "rows":
        return [torch.cat(list(shards))]
    if split == "groups":
        return list(split_qkv(torch.cat(list(shards)), heads, groups))
    return [torch.cat(half) for half in zip(*(shard.chunk(2) for shard in shards), strict=True)]


def fuse_qkv(parts: Sequence[Tensor], groups: int) -> Tensor:
    """[Q of group 0, K of group 0, V of group 0, Q of group 1, ...] along the first dimension, from (Q, K, V)."""
    return torch.cat([p.reshape(groups, -1, *p.shape[1:]) for p in parts], dim=1).flatten(0, 1)


def split_qkv(fused: Tensor, heads: int, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The inverse of `fuse_qkv` for one weight or bias: (Q, K, V)."""
    per_group = heads // groups
    head_dim = fused.shape[0] // (heads + 2 * groups)
    by_group = fused.reshape(groups, -1, *fused.shape[1:])
    parts = by_group.split([per_group * head_dim, head_dim, head_dim], dim=1)
    q, k, v = (p.flatten(0, 1).contiguous() for p in parts)
    return q, k, v


@torch.no_grad()
def stream_hf_tensors(chunks: Sequence["GPTModel"]) -> Iterator[tuple[str, Tensor]]:
    """Hugging Face (name, full tensor) pairs of the live model, one after the other, on every rank.

    All ranks of a replica iterate together: each parameter is gathered over its tensor-parallel ranks and told to the
    other pipeline stages, so a host holds one parameter more than its own part of the model.
    """
    from megatron.core.transformer.transformer_layer import get_transformer_layer_offset

    from nemo_vibethinker.megatron.distributed import pipeline_parallel_group, tensor_parallel_group

    config, tied = chunks[0].config, chunks[0].share_embeddings_and_output_weights
    mine: dict[tuple[str, ...], tuple[Split, Tensor]] = {}
    for chunk in chunks:
        offset = get_transformer_layer_offset(chunk.config, chunk.vp_stage)
        for name, parameter in chunk.named_parameters():
            if not (tied and name == "output_layer.weight"):
                names, split = hf_names(name, offset, tied=tied)
                mine[names] = (split, parameter)
    pipeline, tensor_group = pipeline_parallel_group(), tensor_parallel_group()
    listings: list[dict[tuple[str, ...], tuple[Split, torch.Size]]] = [{} for _ in range(pipeline.size())]
    torch.distributed.all_gather_object(listings, {n: (s, p.shape) for n, (s, p) in mine.items()}, group=pipeline)
    sources = torch.distributed.get_process_group_ranks(pipeline)
    device = next(chunks[0].parameters()).device
    for stage, names in _in_order(listings):
        split, shape = listings[stage][names]
        if tensor_group.size() == pipeline.size() == 1:
            shards = [mine[names][1].detach()]
        else:
            buffer = torch.empty(tensor_group.size(), *shape, dtype=config.params_dtype, device=device)
            shards = list(buffer)
            if names in mine:
                torch.distributed.all_gather(shards, mine[names][1].detach().contiguous(), group=tensor_group)
            if pipeline.size() > 1:
                torch.distributed.broadcast(buffer, src=sources[stage], group=pipeline)
        assert config.num_query_groups is not None
        full = full_parts(shards, split, config.num_attention_heads, config.num_query_groups)
        yield from zip(names, full, strict=True)


def _in_order(listings: Sequence[dict[tuple[str, ...], tuple[Split, torch.Size]]]) -> list[tuple[int, tuple[str, ...]]]:
    """(pipeline stage, names) of every parameter: embedding, layers by number, the rest."""

    def key(entry: tuple[int, tuple[str, ...]]) -> tuple[int, int]:
        first = entry[1][0]
        match = re.match(r"model\.layers\.(\d+)\.", first)
        return (1, int(match[1])) if match else (0 if "embed" in first else 2, 0)

    return sorted(((stage, names) for stage, listing in enumerate(listings) for names in listing), key=key)
