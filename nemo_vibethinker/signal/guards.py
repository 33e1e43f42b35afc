"""Guards of a reinforcement-learning step: figures that say that something is wrong before it hurts."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, median

from nemo_vibethinker.config import GuardConfig, GuardsConfig
from nemo_vibethinker.config.guards import ACTIONS
from nemo_vibethinker.signal.progress import Progress

ENOUGH = 5  # values that make a running statistic
ROLLOUT_GUARDS = ("reward_jump", "truncation")
UPDATE_GUARDS = ("nonfinite", "gradient_spike", "mismatch_kl", "ratio_outliers", "entropy_collapse")
STEP_GUARDS = ("host_memory",)


@dataclass(frozen=True)
class Alarm:
    """A guard that has fired."""

    guard: str
    value: float
    limit: float
    action: str

    def __str__(self) -> str:
        return f"guard {self.guard}: {self.value:.4g} is past guards.{self.guard}.limit={self.limit:g}"


def alarms(names: tuple[str, ...], figures: Mapping[str, float], config: GuardsConfig, past: Progress) -> list[Alarm]:
    """The guards among `names` that fire on a step's figures (metrics by name), the most severe action first."""
    found = []
    for name in names:
        guard: GuardConfig = getattr(config, name)
        value = guard_value(name, figures, past)
        if guard.action != "off" and value is not None and _is_past(name, value, guard.limit):
            found.append(Alarm(name, value, guard.limit, guard.action))
    return sorted(found, key=lambda alarm: -ACTIONS.index(alarm.action))


def guard_value(name: str, figures: Mapping[str, float], past: Progress) -> float | None:
    """What a guard compares with its limit; None where the step, or the past, has too little to say."""
    if name == "nonfinite":
        watched = [figures[key] for key in ("loss", "grad_norm") if key in figures]
        return float(sum(not math.isfinite(value) for value in watched))
    key, relative = _FIGURES[name]
    if key not in figures or not math.isfinite(figures[key]):
        return None
    if not relative:
        return figures[key]
    recent = past.first_entropy if name == "entropy_collapse" else past.recent.get(key, [])
    if len(recent) < ENOUGH:
        return None
    if name == "reward_jump":
        return abs(figures[key] - fmean(recent[-ENOUGH:]))
    if name == "host_memory":
        return (figures[key] - recent[0]) / len(recent)
    return figures[key] / max(median(recent), 1e-12)


def remember(figures: Mapping[str, float], past: Progress) -> None:
    """Add a step without alarms to the running statistics."""
    for key in ("reward", "grad_norm", "host_memory_mb"):
        if key in figures:
            past.note(key, figures[key])
    if "entropy" in figures and len(past.first_entropy) < ENOUGH:
        past.first_entropy.append(figures["entropy"])


# Guard -> the figure it watches, and whether it compares with earlier steps.
_FIGURES = {
    "gradient_spike": ("grad_norm", True),
    "mismatch_kl": ("mismatch_kl", False),
    "ratio_outliers": ("ratio_outliers", False),
    "entropy_collapse": ("entropy", True),
    "reward_jump": ("reward", True),
    "truncation": ("truncated_share", False),
    "host_memory": ("host_memory_mb", True),
}


def _is_past(name: str, value: float, limit: float) -> bool:
    return value < limit if name == "entropy_collapse" else value > limit
