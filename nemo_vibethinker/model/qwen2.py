"""Qwen2 and dense Qwen3 as Megatron-Core's `GPTModel`, with the local layer spec."""

from collections.abc import Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig

from nemo_vibethinker.config import Config
from nemo_vibethinker.model.attention import CachingSelfAttention, RMSNorm, SdpaCoreAttention
from nemo_vibethinker.model.hf_weights import TensorSource, load_hf_weights, random_hf_tensors

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def transformer_config(config: Config) -> TransformerConfig:
    """Megatron's configuration of the model and its layout. Fusions that need CUDA kernels are off."""
    model, parallel = config.scale.model, config.scale.parallel
    dtype = torch.bfloat16 if config.scale.precision == "bf16" else torch.float32
    return TransformerConfig(
        # architecture
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        qk_layernorm=model.qk_norm,
        normalization="RMSNorm",
        layernorm_epsilon=model.rms_norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        add_qkv_bias=model.qkv_bias,
        attention_dropout=0.0,
        hidden_dropout=0.0,
        init_method=_leave,  # weights are filled by `load_hf_weights`, the same for every layout
        output_layer_init_method=_leave,
        embedding_init_method=_leave,
        # layout and precision
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=parallel.virtual_pipeline if parallel.virtual_pipeline > 1 else None,
        context_parallel_size=parallel.context,
        sequence_parallel=parallel.sequence,
        **_RECOMPUTE[config.scale.recompute],
        num_layers_in_first_pipeline_stage=first_stage_layers(model.num_layers, parallel.pipeline),
        pipeline_dtype=dtype,
        params_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        moe_token_dispatcher_type="alltoall",  # no experts here, but the default refuses variable lengths
        # Rows are packed by a token budget, so their lengths differ. The interleaved schedule has messages of several
        # micro-batches under way between two stages at once and cannot tell their shapes apart: it gets equal rows.
        variable_seq_lengths=parallel.virtual_pipeline == 1,
        batch_p2p_comm=parallel.virtual_pipeline == 1,
        calculate_per_token_loss=True,  # losses are sums; Megatron divides by the count over all ranks
        finalize_model_grads_func=finalize_model_grads,
        use_cpu_initialization=False,  # which would hold each weight a second time, in fp32
        # kernels
        gradient_accumulation_fusion=False,
        masked_softmax_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        deallocate_pipeline_outputs=False,
    )


def _leave(tensor: torch.Tensor) -> None:
    """No initialisation. Not `perform_initialization=False`, which also leaves out the marks of tensor parallelism."""


def first_stage_layers(num_layers: int, stages: int) -> int | None:
    """Layers of the first pipeline stage, which takes the remainder; None where they divide evenly."""
    return None if num_layers % stages == 0 else num_layers - (num_layers // stages) * (stages - 1)


def block_spec(config: TransformerConfig, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of one chunk by the local (torch only) spec, with our core attention and RMSNorm."""
    layer: ModuleSpec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    submodules: Any = layer.submodules
    submodules.input_layernorm = RMSNorm
    submodules.pre_mlp_layernorm = RMSNorm
    submodules.self_attention.module = CachingSelfAttention
    submodules.self_attention.submodules.core_attention = SdpaCoreAttention
    if config.qk_layernorm:
        submodules.self_attention.submodules.q_layernorm = RMSNorm
        submodules.self_attention.submodules.k_layernorm = RMSNorm
    norm: Any = RMSNorm  # a class where Megatron's annotation says a spec
    return TransformerBlockSubmodules([layer] * get_num_layers_to_build(config, vp_stage), norm)


def build_chunks(config: Config, vocab_size: int, weights: TensorSource | None = None) -> list[GPTModel]:
    """This rank's part of the model: one chunk, or several under the interleaved pipeline schedule.

    Arguments and errors as `build_model`.
    """
    stages = range(config.scale.parallel.virtual_pipeline)
    return [build_model(config, vocab_size, weights, vp_stage) for vp_stage in stages]


def build_model(config: Config, vocab_size: int, weights: TensorSource | None = None, vp_stage: int = 0) -> GPTModel:
    """One chunk of this rank's part of the model; the same model for every layout.

    Args:
        vocab_size: size of the (padded) vocabulary; divisible by the tensor-parallel size.
        weights: full tensors by Hugging Face name; None: freshly initialised from `config.seed`.
        vp_stage: which chunk.

    Raises:
        ValueError: the vocabulary cannot be split over the tensor-parallel ranks.
    """
    if vocab_size % config.scale.parallel.tensor:
        raise ValueError(f"vocabulary of {vocab_size} is not divisible by scale.parallel.tensor")
    megatron_config = transformer_config(config)
    stage = vp_stage if config.scale.parallel.virtual_pipeline > 1 else None
    layers: Any = block_spec(megatron_config, stage)  # GPTModel's annotation knows the spec of a single layer only
    model = GPTModel(
        config=megatron_config,
        transformer_layer_spec=layers,
        vocab_size=vocab_size,
        max_sequence_length=config.scale.model.max_position_embeddings,
        pre_process=parallel_state.is_pipeline_first_stage(ignore_virtual=False, vp_stage=vp_stage),
        post_process=parallel_state.is_pipeline_last_stage(ignore_virtual=False, vp_stage=vp_stage),
        position_embedding_type="rope",
        rotary_base=int(config.scale.model.rope_theta),
        share_embeddings_and_output_weights=config.scale.model.tie_embeddings,
        vp_stage=stage,
    )
    model.cuda()  # nothing on a CPU
    load_hf_weights(model, weights or random_hf_tensors(config, vocab_size))
    return model


def wrap_for_training(config: Config, chunks: Sequence[GPTModel]) -> list[DistributedDataParallel]:
    """Megatron's data-parallel wrapper with contiguous fp32 gradient buffers, for each chunk."""
    ddp_config = DistributedDataParallelConfig(
        use_distributed_optimizer=config.scale.parallel.distributed_optimizer, grad_reduce_in_fp32=True
    )
    return [DistributedDataParallel(chunk.config, ddp_config, chunk) for chunk in chunks]
