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
    renormalise_weights: bool = False  # prompt weights divided by their mean over the batch
    std: str = "population"  # population | sample | none (none: Dr.GRPO)
    normalisation: str = "sequence_mean"  # sequence_mean (the paper's) | token_mean | dr_grpo
    surrogate: str = "clip"  # clip (token ratio) | gspo (sequence ratio) | cispo (the clipped ratio as a weight)
    clip_low: float = 0.2
    clip_high: float = 0.2
    updates_per_rollout: int = 1  # optimizer steps per rollout batch; 1 is on-policy
    recompute_logprobs: bool | None = None  # old log-probs by the trainer; none: where another engine samples
    tis_cap: float = 2.0  # of the weights pi_trainer / pi_engine, where log-probs are recomputed; 0: none
    dynamic_sampling: int = 0  # most draws of further prompts in place of groups without variance; 0: none
    overlong: str = (
        "wrong"  # cut-off responses: wrong (reward 0) | mask (and no loss) | soft (penalty before the limit)
    )
    overlong_buffer: float = 0.2  # share of the window before its end where the soft penalty grows from 0 to 1
    long2short: float = 0.0  # what right responses gain or lose by length; 3B report, section 2.2.2: 0.2
    kl_coef: float = 0.0  # of KL(policy || reference), the reference being the stage's first policy
    reference_interval: int = 0  # steps after which the reference is the policy anew; 0: never
    entropy_target: float = 0.0  # nats a token that an entropy bonus holds the policy to; 0: no bonus
    entropy_rate: float = 1e-4  # by which the bonus's coefficient moves a step, up below the target and down above
    entropy_ceiling: float = 0.01  # the coefficient's largest value
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-6))
    warmup_steps: int = 0
    tokens_per_micro_batch: int = 8192
    packing: str = "balanced"  # balanced (equal micro-batches over the replicas) | in_order (as they were sampled)
    prefilter_samples: int = 8  # responses per prompt for dropping always/never solved prompts; 0: no filter
    prefilter_prompts: int = 0  # prompts drawn for the filter to score; 0: all
    save_interval: int = 10  # steps between resume points
    validate_interval: int = 0  # steps between scores on prompts held out of the stage's data; 0: none
    validate_prompts: int = 64
    validate_samples: int = 2
    keep: str = "last"  # the policy that the next stage starts from: last | best (by validation)
    patience: int = 0  # validations without gain after which a stage ends early, once truncation is level; 0: never
    min_gain: float = 0.005  # of the validation score that counts as one
    truncation_tolerance: float = 0.01  # change of the truncated share that counts as level


@dataclass(kw_only=True)
class SignalConfig:
    """The reinforcement-learning stages in the paper's order; window lengths come from the scale.

    `algorithm` names a file of recipes/algorithm/, whose keys lie below those given beside it.
    """

    algorithm: str = "mgpo"
    math_16k: MgpoConfig = field(default_factory=MgpoConfig)
    math_32k: MgpoConfig = field(default_factory=MgpoConfig)
    code: MgpoConfig = field(default_factory=MgpoConfig)
