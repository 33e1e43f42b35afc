"""What makes a guard fire, and what a stage keeps of its past."""

import math

import pytest

from nemo_vibethinker.config import GuardsConfig
from nemo_vibethinker.signal.guards import ROLLOUT_GUARDS, STEP_GUARDS, UPDATE_GUARDS, alarms, remember
from nemo_vibethinker.signal.progress import HISTORY, Progress
from nemo_vibethinker.signal.watch import Watch

CALM = {"reward": 0.5, "grad_norm": 1.0, "entropy": 0.6, "mismatch_kl": 1e-3, "ratio_outliers": 0.0, "loss": 0.1}
CALM |= {"truncated_share": 0.1, "host_memory_mb": 1000.0}
ALL = ROLLOUT_GUARDS + UPDATE_GUARDS + STEP_GUARDS


def past(steps: int = 6) -> Progress:
    progress = Progress()
    for _ in range(steps):
        remember(CALM, progress)
    return progress


@pytest.mark.parametrize(
    ("guard", "figures"),
    [
        ("nonfinite", {"loss": math.nan}),
        ("nonfinite", {"grad_norm": math.inf}),
        ("gradient_spike", {"grad_norm": 21.0}),
        ("mismatch_kl", {"mismatch_kl": 0.2}),
        ("ratio_outliers", {"ratio_outliers": 0.03}),
        ("entropy_collapse", {"entropy": 0.05}),
        ("reward_jump", {"reward": 0.95}),
        ("reward_jump", {"reward": 0.05}),
        ("truncation", {"truncated_share": 0.9}),
        ("host_memory", {"host_memory_mb": 1000.0 + 6 * 201}),
    ],
)
def test_each_guard_fires_alone(guard: str, figures: dict[str, float]) -> None:
    (alarm,) = alarms(ALL, CALM | figures, GuardsConfig(), past())
    assert (alarm.guard, alarm.action) == (guard, getattr(GuardsConfig(), guard).action)
    assert f"guards.{guard}.limit" in str(alarm)
    quiet = GuardsConfig()
    getattr(quiet, guard).action = "off"
    assert alarms(ALL, CALM | figures, quiet, past()) == []


def test_no_guard_fires_on_a_calm_step_or_without_a_past() -> None:
    assert alarms(ALL, CALM, GuardsConfig(), past()) == []
    for key, value in {"grad_norm": 99.0, "reward": 0.0, "entropy": 0.0, "host_memory_mb": 1e6}.items():
        assert alarms(ALL, CALM | {key: value}, GuardsConfig(), past(4)) == []
    assert alarms(ALL, {}, GuardsConfig(), past()) == []  # a step without an update


def test_entropy_is_compared_with_the_first_steps() -> None:
    progress = past()
    for step in range(100):  # falls too slowly for any comparison with recent steps
        remember(CALM | {"entropy": 0.6 * 0.97**step}, progress)
    (alarm,) = alarms(ALL, CALM | {"entropy": 0.6 * 0.97**100}, GuardsConfig(), progress)
    assert alarm.guard == "entropy_collapse"
    assert alarm.value == pytest.approx(0.97**100)


def test_the_most_severe_action_is_taken_and_all_are_counted() -> None:
    progress, reported = past(), []
    watch = Watch(GuardsConfig(), progress, reported.append)
    assert (watch.action, watch.forbids_update) == ("off", False)
    watch.look(ROLLOUT_GUARDS, CALM | {"truncated_share": 0.9})
    assert (watch.action, watch.forbids_update) == ("warn", False)
    watch.look(UPDATE_GUARDS, CALM | {"grad_norm": 50.0, "mismatch_kl": 0.2})
    assert (watch.action, watch.forbids_update) == ("rollback", True)
    assert watch.worst is not None
    assert watch.worst.guard == "mismatch_kl"
    assert progress.actions == {"truncation warn": 1, "mismatch_kl rollback": 1, "gradient_spike skip": 1}
    assert [alarm.guard for alarm in reported] == ["truncation", "mismatch_kl", "gradient_spike"]


def test_progress_survives_json_exactly() -> None:
    progress = past(3)
    progress.step, progress.entropy_coefficient = 7, 0.1 + 0.2
    progress.note("reward", 1 / 3)
    progress.validation = [(2, 1 / 7), (4, 2 / 7), (6, 2 / 7)]
    again = Progress.from_json(progress.to_json())
    assert again == progress
    assert again.best == (4, 2 / 7)  # of equals the first


def test_history_is_bounded() -> None:
    progress = Progress()
    for value in range(HISTORY + 5):
        progress.note("reward", float(value))
    assert progress.recent["reward"] == [float(value) for value in range(5, HISTORY + 5)]
