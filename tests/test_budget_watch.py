"""The budget of a run at work: forecast after three steps, one warning a crossing, a stop that can be resumed."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_vibethinker import interruption
from nemo_vibethinker.budget_watch import BudgetWatch, Spending, write_plan
from nemo_vibethinker.config import Config, RunConfig
from nemo_vibethinker.ledger import Ledger
from nemo_vibethinker.metrics_log import MetricsLog
from nemo_vibethinker.process_memory import memory_fields
from nemo_vibethinker.run_folder import RunFolder, open_run, read_json_lines


class Clock(Ledger):
    """A ledger of one process whose cost the test sets."""

    def __init__(self, path: Path | None) -> None:
        super().__init__(path, 1, "cpu")
        self.hours = 0.0

    def process_hours(self) -> float:
        return self.hours


@pytest.fixture(autouse=True)
def nobody_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_request", None)
    return


def config_of(root: Path, **budget: Any) -> Config:
    """A run of the supervised stage alone."""
    config = Config(stages=["prepare", "sft"], run=RunConfig(root=str(root), name="mine"))
    config.budget = dataclasses.replace(config.budget, **budget)
    return config


def watch_of(config: Config) -> tuple[BudgetWatch, Clock]:
    clock = Clock(None)
    watch = BudgetWatch(config, config.run_folder, clock)
    watch.begin("sft")
    return watch, clock


def finish_prepare(config: Config) -> RunFolder:
    run = open_run(config)
    run.stage_folder("prepare").mkdir(parents=True)
    (run.stage_folder("prepare") / "manifest.json").touch()
    run.unlock()
    return run


def test_forecast_comes_after_three_steps(tmp_path: Path) -> None:
    config = config_of(tmp_path, gpu_hours=10.0)
    finish_prepare(config)
    watch, clock = watch_of(config)
    clock.hours = 1.0
    assert [watch.after_step(7200.0) for _ in range(3)] == [
        Spending(1.0, 10.0),
        Spending(1.0, 10.0),
        Spending(1.0, 10.0, projected=3.0),
    ]


def test_no_forecast_while_a_later_stage_is_unknown(tmp_path: Path) -> None:
    config = config_of(tmp_path, gpu_hours=10.0)
    config.stages.append("probe")
    finish_prepare(config)
    watch, clock = watch_of(config)
    clock.hours = 9.0
    found = [watch.after_step(7200.0) for _ in range(3)][-1]
    assert found.projected is None
    assert found.warning.startswith("warning: the run will cost at least 11.0 process-hours, over budget.gpu_hours=10")


def test_one_warning_for_each_crossing(tmp_path: Path) -> None:
    config = config_of(tmp_path, gpu_hours=10.0, on_exceed="warn")
    finish_prepare(config)
    watch, clock = watch_of(config)
    clock.hours = 1.0
    hours = [5, 5, 5, 12, 12, 5, 12, 12]
    warned = [bool(watch.after_step((h - 1) * 3600.0).warning) for h in hours]
    assert warned == [False, False, False, True, False, False, True, False]


def test_the_run_is_asked_to_stop_at_its_budget(tmp_path: Path) -> None:
    watch, clock = watch_of(config_of(tmp_path, gpu_hours=2.0))
    clock.hours = 1.99
    watch.begin("probe")
    assert interruption.poll() is None
    clock.hours = 2.0
    watch.after_step(60.0)
    stop = interruption.poll()
    assert stop
    assert stop.exit_code == 3
    assert stop.reason == "budget.gpu_hours=2 is spent (2.00 process-hours)"
    assert stop.advice == "raise budget.gpu_hours and run the same command"


def test_a_run_that_only_warns_is_not_stopped(tmp_path: Path) -> None:
    watch, clock = watch_of(config_of(tmp_path, gpu_hours=2.0, on_exceed="warn"))
    clock.hours = 3.0
    watch.begin("probe")
    watch.after_step(60.0)
    assert interruption.poll() is None


def test_the_line_of_a_step_tells_cost_and_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = config_of(tmp_path, gpu_hours=0.5, on_exceed="warn")
    run = finish_prepare(config)
    clock = Clock(run.path / "ledger.jsonl")
    with clock.attempt("sft"):
        watch = BudgetWatch(config, run.path, clock)
        watch.begin("sft")
        log = MetricsLog(run.path / "run.jsonl", "sft", 10**9, clock, watch=watch)
        for step in (1, 2, 3, 4):
            clock.hours = step / 100
            log.log(step, loss=1.0)
    lines = read_json_lines(run.path / "run.jsonl")
    assert [line["spent_hours"] for line in lines] == [0.01, 0.02, 0.03, 0.04]
    assert ["projected_hours" in line for line in lines] == [False, False, True, True]
    assert ["budget_warning" in line for line in lines] == [False, False, True, False]
    assert all(line["seconds"] >= 0 and line["host_memory_mb"] > 0 for line in lines)
    shown = capsys.readouterr().out.splitlines()
    assert "| 0.01/0.5 CPU-h | eta " in shown[0]
    assert " in all | eta" in shown[1]
    assert sum("warning: the run will cost" in line for line in shown) == 1


def test_plan_of_the_beginning_stays(tmp_path: Path) -> None:
    config = config_of(tmp_path, gpu_hours=10.0)
    write_plan(config, finish_prepare(config).path)
    first = (config.run_folder / "plan.json").read_text()
    assert [stage["stage"] for stage in json.loads(first)["stages"]] == ["prepare", "sft"]
    config.budget.gpu_hours = 20.0
    write_plan(config, config.run_folder)
    assert (config.run_folder / "plan.json").read_text() == first


def test_memory_of_this_process() -> None:
    before = memory_fields()["host_memory_mb"]
    block = bytearray(200_000_000)
    block[::4096] = b"x" * len(block[::4096])
    assert memory_fields()["host_memory_mb"] - before == pytest.approx(200, abs=50)
