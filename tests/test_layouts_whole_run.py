"""The same run under other layouts of processes: tensor, pipeline and data parallel against one process."""

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import MINIMAL, Launch, override

from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.run_folder import RunFolder

pytestmark = pytest.mark.e2e

LAYOUTS = {
    "tensor2_pipeline2": ("scale.parallel.tensor=2", "scale.parallel.pipeline=2"),
    "data2": ("scale.parallel.data=2",),
    "tensor2_context2_sequence": (
        "scale.parallel.tensor=2",
        "scale.parallel.context=2",
        "scale.parallel.sequence=true",
        "scale.recompute=full",
    ),
}
FRESH = ("samples_sft_last.jsonl", "samples_mgpo.math_16k.jsonl")  # of the models that the run trains itself


@dataclass(frozen=True)
class Starter:
    """Starts short runs from the finished one: policy updates, three supervised steps, samples of every model."""

    launch: Launch
    root: Path
    source: Path

    def __call__(self, name: str, *settings: str) -> RunFolder:
        given = override(
            ("recipe=signal", *MINIMAL),
            "stages=[mgpo.math_16k,sft,evaluate]",
            "sft.steps=3",
            "sft.first_checkpoint=0",
            "signal.math_16k.steps=2",
            "signal.math_16k.normalisation=token_mean",
            "signal.math_16k.updates_per_rollout=2",
            f"run.from_run={self.source}",
            f"run.root={self.root}",
            f"run.name={name}",
            *settings,
        )
        self.launch(*given, timeout=170)
        return RunFolder.load(self.root / name)


@pytest.fixture(scope="module")
def start(
    finished_run: tuple[Path, subprocess.CompletedProcess[str]],
    launch: Launch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Starter:
    return Starter(launch, tmp_path_factory.mktemp("layouts"), finished_run[0])


@pytest.fixture(scope="module")
def alone(start: Starter) -> RunFolder:
    return start("alone")


@pytest.fixture(scope="module", params=list(LAYOUTS))
def spread(request: pytest.FixtureRequest, start: Starter) -> RunFolder:
    return start(request.param, *LAYOUTS[request.param])


def lines(run: RunFolder, stage: str) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run.path / "run.jsonl") if line["stage"] == stage]


def samples(run: RunFolder) -> dict[str, str]:
    return {file.name: file.read_text() for file in run.stage_folder("evaluate").glob("samples_*.jsonl")}


def assert_close(ours: list[dict[str, Any]], theirs: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    assert len(ours) == len(theirs) > 0
    for name in names:
        assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], abs=1e-4, rel=1e-4), name


def test_supervised_steps_are_the_same(alone: RunFolder, spread: RunFolder) -> None:
    assert_close(lines(spread, "sft"), lines(alone, "sft"), ("loss", "grad_norm"))


def test_policy_updates_are_the_same(alone: RunFolder, spread: RunFolder) -> None:
    ours, theirs = lines(spread, "mgpo.math_16k"), lines(alone, "mgpo.math_16k")
    prompts = [(run.stage_folder("mgpo.math_16k") / "prompts.json").read_text() for run in (alone, spread)]
    assert prompts[0] == prompts[1]
    assert_close(ours, theirs, ("loss", "grad_norm", "entropy", "ratio_mean", "clip_fraction", "mismatch_kl"))
    assert_close(ours, theirs, ("reward", "response_length", "w_me", "pass_at_4", "zero_variance_share"))
    assert all(abs(line["loss"]) > 1e-3 for line in theirs)
    assert all(line["mismatch_kl"] > 1e-7 for line in theirs)  # the second update is off-policy


def test_models_of_one_process_give_the_same_samples(alone: RunFolder, spread: RunFolder) -> None:
    ours, theirs = samples(spread), samples(alone)
    assert ours.keys() == theirs.keys() >= {*FRESH, "samples_fused.jsonl", "samples_mgpo.code.jsonl"}
    for name in ours.keys() - FRESH:
        assert ours[name] == theirs[name], name


def test_checkpoints_of_a_layout_give_the_same_samples_in_one_process(start: Starter, spread: RunFolder) -> None:
    scored = start(f"{spread.path.name}_scored", "stages=[evaluate]", f"run.from_run={spread.path}")
    assert samples(scored) == samples(spread)
