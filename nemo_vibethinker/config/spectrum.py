"""Supervised training, sampling, probing and fusion."""

from dataclasses import dataclass, field


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW as Megatron-Core runs it (distributed optimizer, fp32 states)."""

    lr: float = 1e-3
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    clip_grad: float = 1.0


@dataclass(kw_only=True)
class SftConfig:
    """One supervised run; its checkpoints are what the probe compares (VibeThinker-1.5B report, section 3.3)."""

    steps: int = 300
    global_batch_size: int = 8  # packed rows per optimizer step, over all ranks
    micro_batch_size: int = 4  # packed rows per forward pass and rank
    seq_length: int = 512  # tokens of one packed row
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    warmup_fraction: float = 0.05
    min_lr: float = 8e-8
    checkpoint_interval: int = 50  # steps between the checkpoints that are probed
    first_checkpoint: int = 0  # earlier ones are kept for resume only, not probed


@dataclass(kw_only=True)
class SamplingConfig:
    """How responses are sampled."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_response_length: int = 128  # tokens


@dataclass(kw_only=True)
class ProbeConfig:
    """Pass@K per domain and checkpoint."""

    samples: int = 16  # n per problem
    ks: list[int] = field(default_factory=lambda: [1, 4, 8, 16])
    select_k: int = 8  # specialists are the argmax of Pass@select_k
    domains: list[str] = field(default_factory=list)  # empty: every maths domain of the probing set
    sampling: SamplingConfig = field(default_factory=SamplingConfig)


@dataclass(kw_only=True)
class FuseConfig:
    """M_merge = sum_i w_i M_i*."""

    weights: dict[str, float] | None = None  # domain -> weight; None: uniform 1/N
