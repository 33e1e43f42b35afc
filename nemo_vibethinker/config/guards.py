"""What makes a reinforcement-learning step suspicious, and what is done then."""

from dataclasses import dataclass, field

ACTIONS = ("off", "warn", "skip", "rollback", "stop")  # in the order of severity


@dataclass(kw_only=True)
class GuardConfig:
    """One guard. It warns; then skips the update, rolls back to the last resume point, or stops the run."""

    limit: float = 0.0
    action: str = "warn"  # off | warn | skip (this update) | rollback (and on with other prompts) | stop


@dataclass(kw_only=True)
class GuardsConfig:
    """The guards of every reinforcement-learning stage; the ungraded share has reward.max_ungraded_share."""

    # the loss or the gradient is no number
    nonfinite: GuardConfig = field(default_factory=lambda: GuardConfig(limit=0.0, action="rollback"))
    # gradient norm over the median of recent ones
    gradient_spike: GuardConfig = field(default_factory=lambda: GuardConfig(limit=20.0, action="skip"))
    # nats a token between what sampled and what trains
    mismatch_kl: GuardConfig = field(default_factory=lambda: GuardConfig(limit=0.1, action="rollback"))
    # share of tokens that one finds twice as likely as the other
    ratio_outliers: GuardConfig = field(default_factory=lambda: GuardConfig(limit=0.02, action="warn"))
    # entropy over that of the stage's first steps: less than this
    entropy_collapse: GuardConfig = field(default_factory=lambda: GuardConfig(limit=0.1, action="warn"))
    # distance of the mean reward to that of recent steps
    reward_jump: GuardConfig = field(default_factory=lambda: GuardConfig(limit=0.4, action="warn"))
    # share of responses cut off
    truncation: GuardConfig = field(default_factory=lambda: GuardConfig(limit=0.8, action="warn"))
    # MB that a process grows by each step
    host_memory: GuardConfig = field(default_factory=lambda: GuardConfig(limit=200.0, action="warn"))
    max_rollbacks: int = 3  # of a stage; one more stops the run
