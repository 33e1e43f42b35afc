"""How big a run is."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class ModelConfig:
    """Qwen2 (or dense Qwen3) architecture: RMSNorm, SwiGLU, grouped-query attention, RoPE."""

    path: str | None = None  # Hugging Face folder or hub name whose weights and tokenizer it starts from
    num_layers: int = 4
    hidden_size: int = 128
    ffn_hidden_size: int = 384
    num_attention_heads: int = 4
    num_query_groups: int = 2
    head_dim: int = 0  # 0: hidden_size / num_attention_heads
    qkv_bias: bool = True  # Qwen2; Qwen3 has none
    qk_norm: bool = False  # Qwen3: RMSNorm over each head's query and key
    tie_embeddings: bool = True
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 1024
    rope_theta: float = 10000.0
    init_std: float = 0.02

    @property
    def kv_channels(self) -> int:
        """Channels of one attention head."""
        return self.head_dim or self.hidden_size // self.num_attention_heads


@dataclass(kw_only=True)
class ParallelConfig:
    """Layout of the processes: world size = tensor * pipeline * context * data."""

    tensor: int = 1
    pipeline: int = 1
    context: int = 1  # ranks that share the tokens of each sample
    data: int = 1  # 0: as many replicas as cluster.processes has room for, at least one
    virtual_pipeline: int = 1  # model chunks per pipeline stage; more than one is the interleaved schedule
    sequence: bool = False  # tensor-parallel ranks also share the activations between their matrix products
    distributed_optimizer: bool = True  # optimizer states sharded over the replicas (ZeRO-1)


@dataclass(kw_only=True)
class ScaleConfig:
    """How big: chosen by `scale=NAME`, overridden by `scale.model.num_layers=6` and the like."""

    name: str = "tiny"
    precision: str = "fp32"  # fp32 | bf16; gradients, master weights and optimizer states are fp32 under both
    fp8: str = "none"  # none | hybrid (gradients in e5m2) | e4m3: the layers' matrix products, by Transformer Engine
    fp8_recipe: str = "tensorwise"  # tensorwise (of the current tensor) | delayed (of past steps) | blockwise
    fp8_bf16_layers: int = 1  # layers at each end of the model that stay in bf16; delayed scaling knows none
    overlap_grad_reduce: bool = False  # gradients are reduced over replicas during the backward pass
    overlap_param_gather: bool = False  # updated weights are gathered from the replicas during the next forward pass
    logprob_chunk: int = 1024  # tokens whose logits exist at one time in training; 0: all of a micro-batch
    recompute: str = "none"  # none | selective (attention) | full (every layer): activations computed again backward
    model: ModelConfig = field(default_factory=ModelConfig)
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
