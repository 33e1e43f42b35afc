"""Reinforcement-learning stages through the launcher: replicas, kills, rollbacks, saved and replayed rollouts."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MINIMAL, Launch, override
from test_pipeline_e2e import figures, start_and_kill

from nemo_vibethinker.metrics_log import read_events, read_metrics
from nemo_vibethinker.run_folder import RunFolder

pytestmark = pytest.mark.e2e
STAGE = "mgpo.math_16k"
# Every switch that looks at more than one rank, or at the past.
ALL_SWITCHES = {
    "steps": 4,
    "lambda_me": 2,
    "renormalise_weights": "true",
    "dynamic_sampling": 3,
    "overlong": "soft",
    "updates_per_rollout": 1,
    "packing": "balanced",
    "tokens_per_micro_batch": 100,
    "kl_coef": 0.1,
    "reference_interval": 2,
    "entropy_target": 3.0,
    "entropy_rate": 0.01,
    "entropy_ceiling": 0.02,
    "validate_interval": 2,
    "validate_prompts": 8,
    "sampling.max_response_length": 14,
}
Start = Callable[..., list[str]]


@pytest.fixture(scope="module")
def words(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]], tmp_path_factory: pytest.TempPathFactory
) -> Start:
    """The command line of a run of the maths stage alone, from the finished run's fused model, and its root."""
    root = tmp_path_factory.mktemp("signal")

    def command(name: str, *settings: str, **switches: Any) -> list[str]:
        return override(
            ("recipe=signal", *MINIMAL),
            f"stages=[{STAGE}]",
            f"run.from_run={finished_run[0]}",
            "run.from_model=fused",
            f"run.root={root}",
            f"run.name={name}",
            *(f"signal.math_16k.{key}={value}" for key, value in switches.items()),
            *settings,
        )

    return command


def folder_of(arguments: list[str]) -> Path:
    given = dict(word.split("=", 1) for word in arguments)
    return Path(given["run.root"]) / given["run.name"]


@pytest.fixture(scope="module")
def alone(words: Start, launch: Launch) -> Path:
    arguments = words("alone", "debug.save_rollouts=true", **ALL_SWITCHES)
    launch(*arguments)
    return folder_of(arguments)


@pytest.mark.parametrize("replicas", [2, 4])
def test_replicas_do_not_change_the_algorithm(alone: Path, words: Start, launch: Launch, replicas: int) -> None:
    layout = (f"scale.parallel.data={replicas}", "sft.micro_batch_size=1")
    arguments = words(f"data{replicas}", *layout, **ALL_SWITCHES)
    launch(*arguments, timeout=400)
    ours, theirs = (read_metrics(folder / "run.jsonl") for folder in (folder_of(arguments), alone))
    assert [line["step"] for line in ours] == [1, 2, 3, 4]
    exact = ("prompts", "reward", "response_length", "truncated_share", "p_correct_counts", "tokens_trained")
    for line, reference in zip(ours, theirs, strict=True):
        assert {key: line[key] for key in exact} == {key: reference[key] for key in exact}
        for key in ("loss", "grad_norm", "entropy", "w_me", "entropy_coefficient"):
            assert line[key] == pytest.approx(reference[key], abs=1e-4, rel=1e-4), key
        assert line.get("validation_pass_at_1") == reference.get("validation_pass_at_1")
    assert max(line["prompts"] for line in theirs) > 4  # further prompts were drawn
    assert [line["entropy_coefficient"] for line in theirs] == pytest.approx([0, 0.01, 0.02, 0.02])
    assert all(abs(line["loss"]) > 1e-5 for line in theirs[1:])


def test_best_and_last_model_are_kept_and_validation_prompts_are_not_trained_on(alone: Path) -> None:
    run = RunFolder.load(alone)
    manifest = run.read_manifest(STAGE)
    assert manifest is not None
    assert {f"model.{STAGE}", f"model.{STAGE}.best", "policy"} <= manifest.outputs.keys()
    scores = dict(manifest.metrics["validation"])
    assert list(scores) == [2, 4]
    assert manifest.metrics["best_step"] == max(scores, key=lambda step: scores[step])
    chosen = json.loads((run.stage_folder(STAGE) / "prompts.json").read_text())
    assert sum(map(len, chosen.values())) == 12  # of the prefilter; none of those held out
    assert manifest.metrics["updates"] == 4


def test_replayed_rollouts_give_the_same_losses(alone: Path, words: Start, launch: Launch) -> None:
    arguments = words("replayed", f"debug.replay_rollouts={alone}", **ALL_SWITCHES)
    launch(*arguments)
    ours, theirs = figures(folder_of(arguments)), figures(alone)
    for line in theirs:
        line.pop("validation_pass_at_1", None)  # nothing is sampled
    assert ours == theirs


def test_rollouts_without_training(words: Start, launch: Launch) -> None:
    arguments = words("rollouts", "debug.rollout_only=true", "debug.save_rollouts=true", steps=2)
    launch(*arguments)
    lines = read_metrics(folder_of(arguments) / "run.jsonl")
    assert [("reward" in line, "loss" in line) for line in lines] == [(True, False)] * 2
    run = RunFolder.load(folder_of(arguments))
    manifest = run.read_manifest(STAGE)
    assert manifest is not None
    assert manifest.metrics["updates"] == 0
    assert [path.name[:11] for path in sorted((run.stage_folder(STAGE) / "rollouts").iterdir())] == [
        "step_000001",
        "step_000002",
    ]


def test_killed_run_with_rollbacks_ends_like_an_undisturbed_one(words: Start, launch: Launch) -> None:
    """Guards' statistics, the entropy coefficient, the reference's resets and passed-over prompts survive a kill -9."""
    switches = ALL_SWITCHES | {"steps": 10, "save_interval": 2, "reference_interval": 4, "validate_interval": 4}
    # A limit that every second gradient is past, once there are five to compare it with.
    guards = ["guards.gradient_spike.limit=0.95", "guards.gradient_spike.action=rollback", "guards.max_rollbacks=60"]
    stages = f"stages=[{STAGE},export]"
    undisturbed = words("undisturbed", *guards, stages, **switches)
    killed = words("killed", *guards, stages, **switches)
    launch(*undisturbed)
    events = read_events(folder_of(undisturbed) / "run.jsonl")
    assert [event["event"] for event in events[:2]] == ["guard", "rollback"]
    start_and_kill(killed, folder_of(killed), STAGE, 9, victim=lambda count: 1)
    launch(*killed)
    assert figures(folder_of(killed)) == figures(folder_of(undisturbed))
    ours, theirs = (RunFolder.load(folder_of(arguments)).read_manifest(STAGE) for arguments in (killed, undisturbed))
    assert ours is not None
    assert theirs is not None
    assert ours.metrics == theirs.metrics
    assert ours.metrics["guards"]["gradient_spike rollback"] == sum(event["event"] == "rollback" for event in events)
    weights = "stages/01-export/hf/model.safetensors"
    assert (folder_of(killed) / weights).read_bytes() == (folder_of(undisturbed) / weights).read_bytes()


@pytest.mark.parametrize(("action", "code"), [("skip", 0), ("stop", 1), ("rollback", 1)])
def test_actions_of_a_guard(words: Start, launch: Launch, action: str, code: int) -> None:
    guards = ["guards.mismatch_kl.limit=1e-7", f"guards.mismatch_kl.action={action}", "guards.max_rollbacks=1"]
    arguments = words(f"guard_{action}", *guards, steps=2, updates_per_rollout=2)  # the second update is off-policy
    done = launch(*arguments, code=code)
    events = read_events(folder_of(arguments) / "run.jsonl")
    assert events[0]["guard"] == "mismatch_kl"
    assert events[0]["action"] == action
    assert "guard mismatch_kl" in done.stdout
    if action == "skip":
        manifest = RunFolder.load(folder_of(arguments)).read_manifest(STAGE)
        assert manifest is not None
        assert manifest.metrics["guards"] == {"mismatch_kl skip": len(events)}
        assert 4 - manifest.metrics["updates"] >= len(events)
    else:
        assert "guard mismatch_kl" in done.stderr
    if action == "rollback":
        assert [event["event"] for event in events] == ["guard", "rollback", "guard"]
        assert "guards.max_rollbacks=1 are used up" in done.stderr
