"""The optional loggers: what reaches them, once; what an absent package or a failing one does."""

import importlib.util
import json
import math
import random
import struct
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from conftest import Launch
from report_run import small_config, stage_functions

from nemo_vibethinker.loggers import Mirror, numbers, require_packages
from nemo_vibethinker.pipeline import run_stages
from nemo_vibethinker.run_folder import RunFolder, append_json_line, config_hash, open_run


def needs(module: str) -> pytest.MarkDecorator:
    absent = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(absent, reason=f"{module} is not installed: pip install -e .[{module}]")


class Kept:
    """A sink that keeps what it gets; `broken` raises from that step on."""

    def __init__(self, broken: int = 1000) -> None:
        self.values: list[tuple[str, int, dict[str, float]]] = []
        self.broken, self.closed = broken, False

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if step >= self.broken:
            raise ConnectionError("no route to host\nand more")
        self.values.append((stage, step, dict(values)))

    def close(self) -> None:
        self.closed = True

    @property
    def steps(self) -> list[int]:
        return [step for _, step, _ in self.values]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    run = open_run(small_config(tmp_path, loggers=["tensorboard"]))
    run.begin_stage("sft", {})
    return run


def log_steps(run: RunFolder, sink: Kept, *steps: int) -> Mirror:
    mirror = Mirror(run, {"tensorboard": lambda run, folder: sink})
    for step in steps:
        line: dict[str, Any] = {"time": 0.0, "stage": "sft", "attempt": 1, "step": step, "total": 60}
        line |= {"loss": 1 / step, "checkpoint": "x", "counts": [1, 2], "lr": math.nan, "flag": True}
        append_json_line(run.path / "run.jsonl", line)
        mirror.log(line)
    return mirror


def test_numbers_are_the_finite_scalars() -> None:
    fields = {"loss": 1, "lr": 0.5, "a": math.inf, "b": math.nan, "c": None, "d": "x", "e": [1], "f": True}
    assert numbers(fields) == {"loss": 1.0, "lr": 0.5}


def test_a_logger_gets_each_step_under_the_names_of_run_jsonl(run: RunFolder) -> None:
    sink = Kept()
    log_steps(run, sink, 1, 2, 3).close()
    assert sink.values == [("sft", step, {"loss": 1 / step}) for step in (1, 2, 3)]
    assert sink.closed


def test_a_resumed_run_goes_on_without_a_duplicate(run: RunFolder) -> None:
    first, second = Kept(), Kept()
    log_steps(run, first, 1, 2, 3, 4)  # killed: never closed; its resume point is step 2
    log_steps(run, second, 3, 4, 5)
    assert first.steps + second.steps == [1, 2, 3, 4, 5]


def test_one_that_is_switched_on_late_catches_up(run: RunFolder) -> None:
    run.config.loggers = []
    log_steps(run, Kept(), 1, 2, 3)
    run.config.loggers = ["tensorboard"]
    sink = Kept()
    log_steps(run, sink, 4)
    assert sink.steps == [1, 2, 3, 4]


def test_a_stage_that_runs_again_on_other_inputs_is_sent_again(run: RunFolder) -> None:
    from nemo_vibethinker.run_folder import Artefact

    log_steps(run, Kept(), 1, 2)
    run.begin_stage("sft", {"data": Artefact("x", "another hash")})
    sink = Kept()
    log_steps(run, sink, 1, 2)
    assert sink.steps == [1, 2]


def test_a_failing_logger_is_named_once_and_the_run_goes_on(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    sink = Kept(broken=3)
    log_steps(run, sink, 1, 2, 3, 4, 5)
    assert sink.steps == [1, 2]
    assert capsys.readouterr().err.splitlines() == [
        "loggers: tensorboard failed and gets no more: no route to host (run.jsonl has it all)"
    ]
    again = Kept()
    log_steps(run, again, 6)  # the next process tries again, and brings what was missed
    assert again.steps == [3, 4, 5, 6]


def test_loggers_decide_no_result(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    before = config_hash(config)
    config.loggers = ["mlflow"]
    assert config_hash(config) == before


def test_an_absent_package_is_refused_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"^loggers=mlflow: .* pip install mlflow-skinny sqlalchemy alembic$"):
        require_packages(["mlflow"])
    run = open_run(small_config(tmp_path, loggers=["wandb"]))
    with pytest.raises(ValueError, match="pip install wandb"):
        run_stages(run, stage_functions=stage_functions(random.Random(1)))
    assert not (run.path / "ledger.jsonl").exists()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is not None, reason="wandb is installed")
def test_the_launcher_refuses_it_before_anything_starts(launch: Launch, tmp_path: Path) -> None:
    done = launch("recipe=ssp_full", f"run.root={tmp_path}", "loggers=[wandb]", code=2)
    assert done.stderr == "error: loggers=wandb: its package is not installed; pip install wandb\n"
    assert not list(tmp_path.iterdir())


def test_an_unknown_logger_is_refused(launch: Launch, tmp_path: Path) -> None:
    done = launch("recipe=ssp_full", f"run.root={tmp_path}", "loggers=[comet]", code=2)
    assert "tensorboard, wandb, mlflow" in done.stderr


def interrupted_then_finished(root: Path, logger: str) -> RunFolder:
    """The made-up run, killed in the middle of its first RL stage and begun again, with a logger."""
    config = small_config(root, loggers=[logger])
    run = open_run(config)
    with pytest.raises(RuntimeError, match="machine is gone"):
        run_stages(run, stage_functions=stage_functions(random.Random(1), stop_in="mgpo.math_16k"))
    run_stages(run, stage_functions=stage_functions(random.Random(1)))
    return run


def expected_steps(run: RunFolder) -> dict[str, int]:
    return {"sft": run.config.sft.steps} | {f"mgpo.{name}": 20 for name in ("math_16k", "math_32k", "code")}


@needs("tensorboard")
def test_tensorboard_has_every_step_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = interrupted_then_finished(tmp_path, "tensorboard")
    for stage, count in expected_steps(run).items():
        events = EventAccumulator(str(run.path / "loggers" / "tensorboard" / stage)).Reload()
        found = events.Scalars("loss" if stage == "sft" else "reward")
        assert [event.step for event in found] == list(range(1, count + 1)), stage


@needs("mlflow")
def test_mlflow_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = interrupted_then_finished(tmp_path, "mlflow")
    folder = run.path / "loggers"
    client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
    found = client.get_run((folder / "mlflow.id").read_text())
    assert found.info.status == "FINISHED"
    assert found.data.params["seed"] == "0"
    for stage, count in expected_steps(run).items():
        history = client.get_metric_history(found.info.run_id, f"{stage}/{'loss' if stage == 'sft' else 'reward'}")
        assert sorted(metric.step for metric in history) == list(range(1, count + 1)), stage


def wandb_records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: after 7 bytes of its own, LevelDB's log format, blocks of 32 KB."""
    place, record = 7, b""
    while place + 7 <= len(data):
        room = 32768 - place % 32768
        if room < 7:
            place += room
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            yield record
            record = b""


@needs("wandb")
def test_wandb_offline_has_every_step_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from wandb.proto import wandb_internal_pb2

    monkeypatch.setenv("WANDB_MODE", "offline")
    run = interrupted_then_finished(tmp_path, "wandb")
    found: dict[str, Counter[int]] = {}
    for file in sorted((run.path / "loggers").glob("wandb/offline-run-*/*.wandb")):
        for data in wandb_records(file.read_bytes()):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
            for stage in expected_steps(run):
                if f"{stage}/step" in row:
                    assert f"{stage}/{'loss' if stage == 'sft' else 'reward'}" in row
                    found.setdefault(stage, Counter())[row[f"{stage}/step"]] += 1
    for stage, count in expected_steps(run).items():
        assert found[stage] == Counter(range(1, count + 1)), stage
