"""A run that stops at its budget and goes on with a larger one, through the launcher."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nemo_vibethinker.ledger import Book, summarise, total
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.run_folder import RunFolder, hash_path

pytestmark = pytest.mark.e2e

Finished = tuple[Path, subprocess.CompletedProcess[str]]


def test_a_run_stops_at_its_budget_and_goes_on_with_a_larger_one(
    finished_run: Finished,
    coin_arguments: tuple[str, ...],
    launch: Callable[..., subprocess.CompletedProcess[str]],
    tmp_path: Path,
) -> None:
    undisturbed = finished_run[0]
    whole = total(summarise(undisturbed / "ledger.jsonl")).process_hours
    budget = f"budget.gpu_hours={0.4 * whole:.6f}"
    # Where the finished run lies, its ledger tells the price: the run is refused.
    refused = launch(*coin_arguments, f"run.root={undisturbed.parent}", "run.name=other", budget, code=2)
    assert "the run would cost" in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert not (undisturbed.parent / "other").exists()
    # Elsewhere nothing has measured it: it stops there, with what it did saved.
    arguments = (*coin_arguments, f"run.root={tmp_path}", "run.name=r")
    stopped = launch(*arguments, budget, code=3)
    assert "is spent" in stopped.stderr
    assert "raise budget.gpu_hours and run the same command" in stopped.stderr
    folder = tmp_path / "r"
    attempts = list(Book(folder / "ledger.jsonl").update().attempts.values())
    assert total(summarise(folder / "ledger.jsonl")).process_hours >= 0.4 * whole
    assert not (folder / "report.html").exists()
    assert {attempt.status for attempt in attempts} <= {"done", "interrupted"}
    again = launch(*arguments, budget, code=2)  # nothing is left to spend
    assert "budget.gpu_hours=" in again.stderr
    launch(*arguments, "budget.gpu_hours=100")
    assert _results(folder) == _results(undisturbed)
    assert len(Book(folder / "ledger.jsonl").update().attempts) >= len(attempts)
    planned = json.loads((folder / "plan.json").read_text())
    assert planned["budget"]["gpu_hours"] == pytest.approx(0.4 * whole, rel=1e-3)


def _results(folder: Path) -> tuple[str, list[tuple[str, int, float | None, float | None]]]:
    """The exported weights' hash; loss and reward of every step."""
    weights = RunFolder.load(folder).stage_folder("export") / "hf" / "model.safetensors"
    lines = read_metrics(folder / "run.jsonl")
    return hash_path(weights), [(line["stage"], line["step"], line.get("loss"), line.get("reward")) for line in lines]
