"""Qwen2 and dense Qwen3 as Megatron-Core's `GPTModel`, with the layers this machine has kernels for."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.models.gpt import GPTModel
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules, get_num_layers_to_build
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from nemo_vibethinker.config import Config, ScaleConfig
from nemo_vibethinker.megatron.capabilities import Kernels, detect_machine, select_kernels
from nemo_vibethinker.megatron.logprobs import ModelOutput, defer_logits
from nemo_vibethinker.model.attention import CachingSelfAttention, RMSNorm, SdpaCoreAttention, SwigluMlp
from nemo_vibethinker.model.hf_weights import TensorSource, load_hf_weights, random_hf_tensors

# It warns of every MLP class but its own; ours takes no argument beyond those.
logging.getLogger("megatron.core.transformer.transformer_layer").setLevel(logging.ERROR)

_RECOMPUTE: dict[str, dict[str, Any]] = {
    "none": {},
    "selective": {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]},
    "full": {"recompute_granularity": "full", "recompute_method": "uniform", "recompute_num_layers": 1},
}


def run_kernels(config: Config) -> Kernels:
    """What the run uses of the machine this process is on.

    Raises:
        ValueError: it asks for FP8, and this machine cannot do it.
    """
    cuda = torch.cuda.is_available()
    return select_kernels(config, detect_machine(cuda, torch.cuda.get_device_capability() if cuda else None))


def transformer_config(config: Config, kernels: Kernels) -> TransformerConfig:
    """Megatron's configuration of the model, its layout, its precision and its kernels."""
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
        **_fp8(config.scale, kernels),
        gradient_accumulation_fusion=kernels.gradient_accumulation_fusion,
        bias_activation_fusion=kernels.cuda,
        bias_dropout_fusion=kernels.cuda,
        apply_rope_fusion=kernels.transformer_engine,
        masked_softmax_fusion=False,  # neither attention has a softmax of its own
        persist_layer_norm=False,  # for LayerNorm
        # Userbuffers have one shape for the whole run, and packed rows differ in length.
        tp_comm_overlap=False,
        deallocate_pipeline_outputs=False,
    )


def _fp8(scale: ScaleConfig, kernels: Kernels) -> dict[str, Any]:
    """Weights stay in bf16; the matrix products of the layers, not of embedding and output layer, are in FP8.

    The history of maxima of delayed scaling (1,024 steps, their maximum) and a bf16 layer at each end of the model are
    NVIDIA's settings (Megatron-Bridge, `bf16_with_fp8_delayed_scaling_mixed` and `..._current_scaling_mixed`).
    """
    if kernels.fp8 is None:
        return {}
    return {
        "fp8": kernels.fp8,
        "fp8_recipe": scale.fp8_recipe,
        "fp8_margin": 0,
        "fp8_amax_history_len": 1024,
        "fp8_amax_compute_algo": "max",
        "first_last_layers_bf16": scale.fp8_bf16_layers > 0,
        "num_layers_at_start_in_bf16": scale.fp8_bf16_layers,
        "num_layers_at_end_in_bf16": scale.fp8_bf16_layers,
    }


def _leave(tensor: torch.Tensor) -> None:
    """No initialisation. Not `perform_initialization=False`, which also leaves out the marks of tensor parallelism."""


def first_stage_layers(num_layers: int, stages: int) -> int | None:
    """Layers of the first pipeline stage, which takes the remainder; None where they divide evenly."""
    return None if num_layers % stages == 0 else num_layers - (num_layers // stages) * (stages - 1)


def block_spec(config: TransformerConfig, kernels: Kernels, vp_stage: int | None) -> TransformerBlockSubmodules:
    """The layers of one chunk."""
    if kernels.transformer_engine:
        from nemo_vibethinker.model.te_spec import transformer_engine_layer

        layer, norm = transformer_engine_layer(config)
    else:
        layer, norm = local_layer(config)
    return TransformerBlockSubmodules([layer] * get_num_layers_to_build(config, vp_stage), norm)


def local_layer(config: TransformerConfig) -> tuple[ModuleSpec, Any]:
    """The spec of one layer over torch alone, with our core attention and RMSNorm, and the class of the final norm."""
    layer: ModuleSpec = get_gpt_layer_local_spec(normalization="RMSNorm", qk_layernorm=config.qk_layernorm)
    submodules: Any = layer.submodules
    submodules.input_layernorm = RMSNorm
    submodules.pre_mlp_layernorm = RMSNorm
    if not config.bias_activation_fusion:  # else Megatron's own fused SwiGLU
        submodules.mlp.module = SwigluMlp
    submodules.self_attention.module = CachingSelfAttention
    submodules.self_attention.submodules.core_attention = SdpaCoreAttention
    if config.qk_layernorm:
        submodules.self_attention.submodules.q_layernorm = RMSNorm
        submodules.self_attention.submodules.k_layernorm = RMSNorm
    return layer, RMSNorm


class PolicyModel(GPTModel):
    """`GPTModel` whose logits wait for the loss in training, and which leaves FP8 in evaluation mode.

    Attributes:
        logprob_chunk: where not 0, a forward pass in training mode that records gradients gives `DeferredLogits` in
            place of logits, to be computed this many tokens at a time. `wrap_for_training` sets it.
    """

    logprob_chunk: int = 0

    def forward(self, *arguments: Any, **keywords: Any) -> ModelOutput:
        """As `GPTModel.forward`; in evaluation mode without FP8, so that generation and export see the weights."""
        with nullcontext() if self.training else in_high_precision(self.config):
            return super().forward(*arguments, **keywords)

    def _postprocess(self, hidden_states: Tensor, *arguments: Any, **keywords: Any) -> ModelOutput:
        if not (self.post_process and self.logprob_chunk and self.training and torch.is_grad_enabled()):
            return super()._postprocess(hidden_states, *arguments, **keywords)
        tied = self.share_embeddings_and_output_weights
        weight = self.shared_embedding_or_output_weight() if tied else self.output_layer.weight
        assert weight is not None
        for hook in self.output_layer._forward_pre_hooks.values():  # waits for weights still on their way from the
            hook(self.output_layer, ())  # replicas, as calling the layer would
        sequence_parallel = self.output_layer.sequence_parallel
        return defer_logits(hidden_states, weight, self.logprob_chunk, sequence_parallel=sequence_parallel)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, but FP8 scaling factors may be absent: an average of models has none. They then start anew."""
        extra = {name: None for name in self.state_dict() if name.endswith("_extra_state")}
        return super().load_state_dict(extra | dict(state_dict), strict, assign)


@contextmanager
def in_high_precision(config: TransformerConfig) -> Iterator[None]:
    """No FP8 inside: its matrix products take rows by 16s, and a step of decoding has any number of them.

    What is sampled in bf16 and trained in FP8 differs a little; the policy loss takes the ratio of the two.
    """
    fp8, config.fp8 = config.fp8, None
    try:
        yield
    finally:
        config.fp8 = fp8


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
    kernels = run_kernels(config)
    megatron_config = transformer_config(config, kernels)
    stage = vp_stage if config.scale.parallel.virtual_pipeline > 1 else None
    layers: Any = block_spec(
        megatron_config, kernels, stage
    )  # GPTModel's annotation knows the spec of a single layer only
    model = PolicyModel(
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
    settings = DistributedDataParallelConfig(**ddp_settings(config))
    wrapped = [DistributedDataParallel(chunk.config, settings, chunk) for chunk in chunks]
    for module in wrapped:
        _count_padding(module)
    for chunk in chunks:
        assert isinstance(chunk, PolicyModel)
        chunk.logprob_chunk = config.scale.logprob_chunk
    if settings.overlap_grad_reduce:  # gradients leave with the backward pass of the last micro-batch alone
        no_sync = [chunk.no_sync for chunk in wrapped]
        chunks[0].config.no_sync_func = no_sync if len(wrapped) > 1 else no_sync[0]  # pyright: ignore
    return wrapped


def _count_padding(module: DistributedDataParallel) -> None:
    """Have the distributed optimizer's checkpoints keep the padding between buckets.

    Megatron-Core 0.16.1 leaves it out, but takes each parameter's state from where it lies with it: what follows the
    first padded bucket (a tied embedding under pipeline parallelism, all that overlapped reduction puts into further
    buckets) is saved shifted, and a resumed run goes on with wrong weights.
    """
    buffers: Any = module.buffers  # Megatron's list, under the name of a method of torch's modules
    for buffer in (*buffers, *module.expert_parallel_buffers):
        buffer.numel_unpadded = buffer.numel
        for bucket in buffer.buckets:
            bucket.numel_unpadded = bucket.grad_data.numel()


def ddp_settings(config: Config) -> dict[str, Any]:
    """The arguments of Megatron's `DistributedDataParallelConfig`; gradients are reduced in fp32."""
    return {
        "use_distributed_optimizer": config.scale.parallel.distributed_optimizer,
        "grad_reduce_in_fp32": True,
        "overlap_grad_reduce": config.scale.overlap_grad_reduce,
        "overlap_param_gather": config.scale.overlap_param_gather,
    }
