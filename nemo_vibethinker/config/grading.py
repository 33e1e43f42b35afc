"""Rewards and evaluation."""

from dataclasses import dataclass, field

from nemo_vibethinker.config.spectrum import SamplingConfig


@dataclass(kw_only=True)
class RewardConfig:
    """Graders. An ungraded response is never a zero: it is left out, counted, and stops the run past the limit."""

    math_deadline_s: float = 2.0
    code_wall_s: float = 5.0  # of one run: all calls and assertions, or one standard input
    code_memory_mb: int = 256  # of all processes of a program together
    sandbox: str = (
        "auto"  # auto | bubblewrap | landlock | none (none: no isolation, model-written code does as it likes)
    )
    workers: int = 2  # sandboxes at a time in the whole run
    max_ungraded_share: float = 0.02


@dataclass(kw_only=True)
class EvaluateConfig:
    """Held-out scores of every model on the way."""

    samples: int = 4
    ks: list[int] = field(default_factory=lambda: [1, 4])
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
