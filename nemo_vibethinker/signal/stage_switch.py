"""When a reinforcement-learning stage has given what it can: truncation and validation have levelled off."""

from collections.abc import Sequence
from statistics import fmean

from nemo_vibethinker.config import MgpoConfig
from nemo_vibethinker.signal.progress import Progress


def validation_plateau(scores: Sequence[float], *, patience: int, min_gain: float) -> bool:
    """Whether the best of the last `patience` scores is no `min_gain` above the best before them."""
    if patience <= 0 or len(scores) <= patience:
        return False
    return max(scores[-patience:]) < max(scores[:-patience]) + min_gain


def truncation_plateau(shares: Sequence[float], *, window: int, tolerance: float) -> bool:
    """Whether the mean truncated share of the last `window` steps is within `tolerance` of that of the window before.

    While the policy still learns to end in time the share falls; what is left then needs a longer window, not steps.
    """
    if window <= 0 or len(shares) < 2 * window:
        return False
    return abs(fmean(shares[-window:]) - fmean(shares[-2 * window : -window])) <= tolerance


def has_levelled_off(stage: MgpoConfig, progress: Progress) -> bool:
    """Whether truncation and validation both say that the stage has given what it can."""
    scores = [score for _, score in progress.validation]
    window = stage.patience * stage.validate_interval
    return validation_plateau(scores, patience=stage.patience, min_gain=stage.min_gain) and truncation_plateau(
        progress.truncated, window=window, tolerance=stage.truncation_tolerance
    )
