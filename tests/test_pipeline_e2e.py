"""The whole recipe through the launcher at minimal size: results on disk, kills, repetition, user's data."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from conftest import MINIMAL, REPOSITORY, Launch, launcher_command, override

from nemo_vibethinker.config import STAGES
from nemo_vibethinker.evaluation.scores import scores_from_json
from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.run_folder import RunFolder, read_json_lines

pytestmark = pytest.mark.e2e

DATA = Path(os.environ.get("NVT_DATA_DIR", REPOSITORY.parent / "shared" / "data"))
TIMES = {
    "time",
    "attempt",
    "tokens_per_second",
    "generate_share",
    "grade_share",
    "update_share",
    "sync_share",
    "idle_share",
    "seconds",
    "generate_seconds",
    "update_seconds",
    "spent_hours",
    "projected_hours",
    "host_memory_mb",
}
ROLLOUT_FIELDS = {
    "reward",
    "pass_at_4",
    "w_me",
    "response_length",
    "truncated_share",
    "zero_variance_share",
    "ungraded_share",
    "ungraded_reasons",
}
UPDATE_FIELDS = {"loss", "grad_norm", "entropy", "mismatch_kl", "clip_fraction", "ratio_mean", "tokens_trained"}
Finished = tuple[Path, subprocess.CompletedProcess[str]]


def figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of run.jsonl without what the clock decides."""
    return [
        {key: value for key, value in line.items() if key not in TIMES} for line in read_metrics(folder / "run.jsonl")
    ]


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """Relative path -> (time of last change, size) of every file."""
    files = [file for file in folder.rglob("*") if file.is_file() and file.name != ".lock"]
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


def test_every_stage_left_a_manifest_that_holds(finished_run: Finished) -> None:
    run = RunFolder.load(finished_run[0])
    assert run.config.stages == list(STAGES)
    known: dict[str, str] = {}
    for stage in run.config.stages:
        manifest = run.read_manifest(stage)  # hashes the outputs
        assert manifest is not None, stage
        assert (manifest.stage, manifest.status, manifest.device) == (stage, "done", "cpu")
        assert manifest.seconds > 0
        assert manifest.gpu_hours == pytest.approx(manifest.seconds / 3600, rel=0.01)
        assert manifest.versions["torch"] != "not installed"
        if stage != "prepare":
            assert {name: artefact.sha256 for name, artefact in manifest.inputs.items()} == known
        known |= {name: artefact.sha256 for name, artefact in manifest.outputs.items()}
    assert {"tokenizer", "sft_checkpoints", "probe_table", "model.fused", "policy", "scores", "hf"} <= known.keys()
    assert known["policy"] == known["model.mgpo.code"]


def test_run_log_has_every_step_and_field(finished_run: Finished) -> None:
    lines = read_metrics(finished_run[0] / "run.jsonl")
    by_stage = {stage: [line for line in lines if line["stage"] == stage] for stage in STAGES}
    assert [line["step"] for line in by_stage["sft"]] == list(range(1, 101))
    assert all({"loss", "lr", "grad_norm", "tokens_per_second"} <= line.keys() for line in by_stage["sft"])
    assert by_stage["sft"][-1]["loss"] < 0.3 * by_stage["sft"][0]["loss"]
    assert [line["checkpoint"] for line in by_stage["probe"]] == [50, 75, 100]
    for stage in ("mgpo.math_16k", "mgpo.math_32k", "mgpo.code"):
        assert [line["step"] for line in by_stage[stage]] == list(range(1, 7))
        for line in by_stage[stage]:
            assert line.keys() >= ROLLOUT_FIELDS | TIMES - {"projected_hours"}
            assert (line["zero_variance_share"] < 1) == (line.keys() >= UPDATE_FIELDS)
        trained = [line for line in by_stage[stage] if "loss" in line]
        assert trained, f"{stage}: no group had variance"
        assert all(line["mismatch_kl"] == pytest.approx(0, abs=1e-6) for line in trained)  # on-policy
        assert all(line["ratio_mean"] == pytest.approx(1, abs=1e-4) for line in trained)


def test_scores_are_written_and_shown(finished_run: Finished) -> None:
    folder, done = finished_run
    evaluate = RunFolder.load(folder).stage_folder("evaluate")
    scores = scores_from_json((evaluate / "scores.json").read_text())
    models = {"sft_last", "specialist.algebra", "specialist.geometry", "fused"}
    assert {score.model for score in scores} == models | {f"mgpo.{name}" for name in ("math_16k", "math_32k", "code")}
    for score in scores:
        assert score.domain in ("math", "algebra", "geometry", "code")
        assert score.num_problems == {"math": 8, "algebra": 4, "geometry": 4, "code": 2}[score.domain]
        assert (score.samples_per_problem, set(score.pass_at), score.num_ungraded) == (2, {1, 2}, 0)
        assert all(0 <= e.low <= e.mean <= e.high <= 1 for e in score.pass_at.values())
    # The policy knows the form of an answer and guesses.
    assert max(score.pass_at[2].mean for score in scores if score.domain == "math") > 0.4
    assert (evaluate / "scores.txt").read_text().strip() in done.stdout
    assert f"report: {folder / 'report.html'}" in done.stdout


def test_report_names_every_stage_and_model(finished_run: Finished) -> None:
    text = (finished_run[0] / "report.html").read_text()
    assert text.lstrip().startswith("<!")
    for word in (*STAGES, "sft_last", "specialist.geometry", "fused"):
        assert word in text, word


def test_exported_model_generates_an_answer(finished_run: Finished) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = RunFolder.load(finished_run[0]).stage_folder("export") / "hf"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "algebra 7?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    out = model.generate(torch.as_tensor(prompt), do_sample=False)
    assert "\\boxed{" in tokenizer.decode(out[0, prompt.shape[1] :])


def test_second_start_does_nothing_and_shows_the_scores(
    finished_run: Finished, coin_arguments: tuple[str, ...], launch: Launch
) -> None:
    folder, first = finished_run
    before, began = snapshot(folder), time.monotonic()
    again = launch(*coin_arguments, f"run.root={folder.parent}", f"run.name={folder.name}")
    assert time.monotonic() - began < 5  # a worker needs that to import torch and Megatron alone
    assert snapshot(folder) == before
    assert [line.split()[0] for line in again.stdout.splitlines()[: len(STAGES)]] == list(STAGES)
    table = first.stdout[first.stdout.index("\nmodel ") :]
    assert again.stdout.endswith(table)


def test_another_configuration_under_the_same_name_is_refused(
    finished_run: Finished, coin_arguments: tuple[str, ...], launch: Launch
) -> None:
    folder, _ = finished_run
    before = snapshot(folder)
    given = override(coin_arguments, f"run.root={folder.parent}", f"run.name={folder.name}", "sft.optimizer.lr=2e-2")
    refused = launch(*given, code=2)
    assert "sft.optimizer.lr: 0.01 -> 0.02" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert snapshot(folder) == before


def start_and_kill(
    arguments: list[str],
    folder: Path,
    stage: str,
    step: int,
    victim: Callable[..., int],
    number: signal.Signals = signal.SIGKILL,
) -> int:
    """Start the launcher and signal a process of it as soon as `step` of `stage` is in run.jsonl.

    Returns the exit code of the launcher.
    """
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        launcher_command(*arguments), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 90
    while not any(line["stage"] == stage and line["step"] >= step for line in read_json_lines(folder / "run.jsonl")):
        assert process.poll() is None, f"ended before step {step} of {stage}"
        assert time.monotonic() < deadline, f"no step {step} of {stage}"
        time.sleep(0.01)
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    family[victim(len(family))].send_signal(number)
    code = process.wait(timeout=30)
    assert code != 0
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not alive, "processes are left behind"
    assert RunFolder.load(folder).read_manifest(stage, verify=False) is None, "killed too late"
    return code


def test_killed_run_ends_like_an_undisturbed_one(
    finished_run: Finished, coin_arguments: tuple[str, ...], launch: Launch, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    given = [*coin_arguments, f"run.root={tmp_path}", "run.name=killed"]
    start_and_kill(given, folder, "sft", 30, victim=lambda count: 1)  # the worker
    start_and_kill(given, folder, "mgpo.math_32k", 3, victim=lambda count: 0)  # the launcher: its worker saves
    code = start_and_kill(given, folder, "mgpo.code", 2, victim=lambda count: 0, number=signal.SIGINT)  # Ctrl-C
    assert code == 128 + signal.SIGINT
    launch(*given)
    undisturbed = finished_run[0]
    raw = read_json_lines(folder / "run.jsonl")
    steps = {
        (stage, attempt): [line["step"] for line in raw if line["stage"] == stage and line["attempt"] == attempt]
        for stage in ("sft", "mgpo.math_32k", "mgpo.code")
        for attempt in (1, 2)
    }
    assert steps["sft", 2][0] > 1, "sft started over"
    assert steps["sft", 2][0] % 25 == 1
    for stage in ("mgpo.math_32k", "mgpo.code"):
        assert steps[stage, 2][0] == steps[stage, 1][-1] + 1, f"{stage} lost a step"
    attempts = {cost.stage: cost.attempts for cost in summarise(folder / "ledger.jsonl")}
    assert attempts == {stage: 2 if stage in ("sft", "mgpo.math_32k", "mgpo.code") else 1 for stage in STAGES}
    assert figures(folder) == figures(undisturbed)
    for name in ("06-mgpo.code/prompts.json", "02-probe/probe_table.json", "07-evaluate/scores.json"):
        assert (folder / "stages" / name).read_bytes() == (undisturbed / "stages" / name).read_bytes(), name
    weights = "stages/08-export/hf/model.safetensors"
    assert (folder / weights).read_bytes() == (undisturbed / weights).read_bytes()


def test_generated_world_with_a_policy_that_solves_nothing(launch: Launch, tmp_path: Path) -> None:
    sizes = ("sft_problems_per_domain=12", "rl_problems_per_domain=6", "probe_problems_per_domain=2")
    given = override(
        ("recipe=ssp_full", *MINIMAL),
        *(f"data.{size}" for size in sizes),
        "sft.steps=4",
        "sft.seq_length=128",
        "sft.checkpoint_interval=2",
        "sft.first_checkpoint=0",
        "sft.optimizer.lr=1e-4",
        # Without the filter the stage runs, and no group of it ever has variance.
        "signal.code.prefilter_samples=0",
        "signal.code.steps=2",
        "signal.code.save_interval=1",
        f"run.root={tmp_path}",
        "run.name=world",
    )
    done = launch(*given)
    run = RunFolder.load(tmp_path / "world")
    assert "nothing to learn from: the policy passes through unchanged" in done.stdout
    manifests = {stage: run.read_manifest(stage) for stage in run.config.stages}
    assert all(manifests.values())
    assert manifests["mgpo.math_16k"].metrics["steps"] == 0  # pyright: ignore[reportOptionalMemberAccess]
    assert manifests["mgpo.code"].metrics["steps"] == 2  # pyright: ignore[reportOptionalMemberAccess]
    code = [line for line in read_metrics(run.path / "run.jsonl") if line["stage"] == "mgpo.code"]
    assert [(line["zero_variance_share"], "loss" in line) for line in code] == [(1.0, False)] * 2
    funnel = json.loads((run.stage_folder("prepare") / "funnel.json").read_text())
    assert funnel["disjoint"] is True


def test_gsm8k_rows_are_all_counted(launch: Launch, tmp_path: Path) -> None:
    source = DATA / "gsm8k" / "train.jsonl"
    if not source.is_file():
        pytest.skip(f"no {source}; set NVT_DATA_DIR to the folder of the datasets")
    rows = source.read_text().splitlines()[:198]
    rows += ['{"question": "No final line?", "answer": "none"}', "{torn"]
    data = tmp_path / "gsm8k.jsonl"
    data.write_text("\n".join(rows) + "\n")
    given = override(
        ("recipe=ssp_full", *MINIMAL),
        f"data.sft={data}",
        f"data.rl={data}",
        "scale.model.max_position_embeddings=320",
        "sft.seq_length=320",
        "sft.steps=4",
        "sft.checkpoint_interval=2",
        "sft.first_checkpoint=0",
        f"run.root={tmp_path}",
        "run.name=gsm8k",
    )
    launch(*given)
    run = RunFolder.load(tmp_path / "gsm8k")
    assert all(run.read_manifest(stage) for stage in run.config.stages)
    prepare = run.stage_folder("prepare")
    funnel = json.loads((prepare / "funnel.json").read_text())
    assert funnel["formats"] == {"sft": "gsm8k", "rl": "gsm8k"}
    assert all(row["reason"] for counts in funnel["sets"].values() for row in counts["dropped"])
    kept = {name: [r["id"] for r in read_json_lines(prepare / f"{name}.jsonl")] for name in funnel["sets"]}
    lost = {name: [row["id"] for row in counts["dropped"]] for name, counts in funnel["sets"].items()}
    for name, counts in funnel["sets"].items():
        overlaps = counts["read"] - counts["kept"] - len(lost[name])
        assert counts["kept"] == len(kept[name])
        assert overlaps >= 0
    assert funnel["sets"]["sft"]["read"] == 200
    assert sum(funnel["sets"][name]["read"] for name in ("rl_math", "rl_code", "probe", "evaluation")) == 200
    removed = sum(c["read"] - c["kept"] - len(lost[name]) for name, c in funnel["sets"].items())
    assert removed == len(funnel["overlaps_removed"])
    # The held-out questions stand in the supervised file too: they are taken out of it.
    assert not set(kept["sft"]) & {*kept["probe"], *kept["evaluation"]}
    every = [*kept["sft"], *lost["sft"], *(o["train_id"] for o in funnel["overlaps_removed"])]
    assert {f"gsm8k:{line}" for line in range(1, 200)} <= set(every)
    reasons = [row["reason"] for row in funnel["sets"]["sft"]["dropped"]]
    assert sum("bad JSON" in reason for reason in reasons) == 1
    assert sum("no answer" in reason for reason in reasons) == 1
