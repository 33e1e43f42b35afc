"""Finding out what a reinforcement-learning stage does."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class DebugConfig:
    """Rollouts on disk. `rollout_only` with `save_rollouts` makes them, `replay_rollouts` trains from them."""

    save_rollouts: bool = False  # each step's graded responses, in the stage's folder rollouts/
    replay_rollouts: str | None = None  # run folder whose saved rollouts are trained on; nothing is sampled
    rollout_only: bool = False  # sample and grade, never update
