"""Reinforcement learning."""

from dataclasses import dataclass, field

from nemo_vibethinker.config.spectrum import OptimizerConfig, SamplingConfig


@dataclass(kw_only=True)
class MgpoConfig:
    """One reinforcement-learning stage: GRPO with the entropy-deviation weight (report, section 3.4)."""

    steps: int = 20
    prompts_per_step: int = 32
    group_size: int = 8  # responses per prompt, G
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    lambda_me: float = 1.0  # 0 is GRPO
    std: str = "population"  # population | sample | none (none: Dr.GRPO)
    normalisation: str = "sequence_mean"  # sequence_mean (the paper's) | token_mean | dr_grpo
    clip_low: float = 0.2
    clip_high: float = 0.2
    updates_per_rollout: int = 1  # optimizer steps per rollout batch; 1 is on-policy
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    warmup_steps: int = 0
    tokens_per_micro_batch: int = 8192
    prefilter_samples: int = 8  # responses per prompt for dropping always/never solved prompts; 0: no filter
    prefilter_prompts: int = 0  # prompts drawn for the filter to score; 0: all
    save_interval: int = 10  # steps between resume points


@dataclass(kw_only=True)
class SignalConfig:
    """The reinforcement-learning stages in the paper's order; window lengths come from the scale."""

    math_16k: MgpoConfig = field(default_factory=MgpoConfig)
    math_32k: MgpoConfig = field(default_factory=MgpoConfig)
    code: MgpoConfig = field(default_factory=MgpoConfig)
