"""Requests to stop: between two steps, with a resume point, on all ranks at once."""

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.local import worker_commands, worker_environment
from nemo_vibethinker import interruption
from nemo_vibethinker.config import Config, RunConfig
from nemo_vibethinker.interruption import SAVED, Interrupted
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.run_folder import RunFolder, open_run, read_json_lines

WORKER = """
import os, sys, time
from pathlib import Path
from nemo_vibethinker import interruption, pipeline
from nemo_vibethinker.pipeline import StageResult
from nemo_vibethinker.run_folder import RunFolder

STEP_S = float(sys.argv[2])

def prepare(config, inputs, folder, context):
    (folder / "data").write_text("abc")
    return StageResult(outputs={"sft_data": folder / "data"}, metrics={})

def sft(config, inputs, folder, context):
    point = folder / "point"
    first = int(point.read_text()) if point.exists() else 0
    log = context.metrics_log(total_steps=20, start_step=first)
    stop = context.stop_requested()
    for step in range(first + 1, 21):
        if stop:
            raise stop
        log.log(step)
        until = time.monotonic() + STEP_S
        while time.monotonic() < until:
            time.sleep(0.01)
        if step == 5 and "budget" in sys.argv and context.is_main:
            interruption.request("the budget is spent", exit_code=3)
        stop = context.stop_requested()
        if stop and context.is_main:
            point.write_text(str(step))
    (folder / "model").write_text("x")
    return StageResult(outputs={"model.sft_last": folder / "model"}, metrics={})

def export(config, inputs, folder, context):
    context.say("exporting")
    time.sleep(STEP_S * 20)
    (folder / "hf").write_text("x")
    return StageResult(outputs={"hf": folder / "hf"}, metrics={})

def work():
    run = RunFolder.load(Path(sys.argv[1]))
    if run.config.world_size > 1:
        from nemo_vibethinker.megatron.distributed import initialize
        initialize(run.config)
    pipeline.run_stages(run, stage_functions={"prepare": prepare, "sft": sft, "export": export})

sys.exit(pipeline.guarded(work))
"""

Start = Callable[..., subprocess.Popen[str]]


def start_worker(run: RunFolder, step_s: float, *arguments: str) -> subprocess.Popen[str]:
    """The worker of the run's layout, its step lasting `step_s`."""
    script = run.path.parent / "worker.py"
    script.write_text(WORKER)
    command = worker_commands(run.config, run.path, prepared=True)[-1]
    command = [*command[: command.index("nemo_vibethinker.pipeline") - 1], str(script)]
    return subprocess.Popen(
        [*command, str(run.path), str(step_s), *arguments],
        env=worker_environment(run.config),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def make_run(root: Path, ranks: int = 1) -> RunFolder:
    config = Config(run=RunConfig(name="r", root=str(root)), stages=["prepare", "sft", "export"])
    config.scale.parallel.data = ranks
    return open_run(config)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunFolder]:
    opened = make_run(tmp_path)
    yield opened
    opened.unlock()


def wait_for_step(run: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 60
    while not any(line["step"] >= step for line in read_json_lines(run.path / "run.jsonl")):
        assert time.monotonic() < deadline, "the worker made no progress"
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signal_stops_after_the_step_and_the_next_start_goes_on_there(run: RunFolder, number: signal.Signals) -> None:
    worker = start_worker(run, 0.2)
    wait_for_step(run, 2)
    worker.send_signal(number)
    _, err = worker.communicate(timeout=10)
    assert worker.returncode == SAVED
    assert err == (
        f"{number.name}: stopping after this step; once more stops at once\n"
        f"stopped by {number.name}: what was done is saved; the same command resumes\n"
    )
    stopped_at = int((run.stage_folder("sft") / "point").read_text())
    ledger = read_json_lines(run.path / "ledger.jsonl")
    assert (ledger[-1]["event"], ledger[-1]["status"]) == ("end", "interrupted")
    assert start_worker(run, 0).wait(timeout=10) == 0
    attempts = {line["step"]: line["attempt"] for line in read_json_lines(run.path / "run.jsonl")}
    assert attempts == {step: 1 if step <= stopped_at else 2 for step in range(1, 21)}


def test_second_signal_ends_at_once(run: RunFolder) -> None:
    worker = start_worker(run, 60)
    wait_for_step(run, 1)
    worker.terminate()
    worker.terminate()  # the same request, handed on twice
    time.sleep(interruption.SAME_REQUEST_S + 0.2)
    assert worker.poll() is None
    worker.terminate()
    _, err = worker.communicate(timeout=10)
    assert worker.returncode == 128 + signal.SIGTERM
    assert err.endswith("\nstopped by SIGTERM; the same command resumes\n")


def test_stage_that_does_not_poll_ends_at_once(run: RunFolder) -> None:
    worker = start_worker(run, 0.1)
    assert worker.stdout is not None
    while "exporting" not in worker.stdout.readline():
        assert worker.poll() is None
    began = time.monotonic()
    worker.terminate()
    worker.communicate(timeout=10)
    assert worker.returncode == 128 + signal.SIGTERM
    assert time.monotonic() - began < 1.5  # it would sleep for 2 s


def test_request_with_its_own_exit_code(run: RunFolder) -> None:
    worker = start_worker(run, 0.01, "budget")
    _, err = worker.communicate(timeout=10)
    assert worker.returncode == 3
    assert err == "the budget is spent: what was done is saved; the same command resumes\n"
    assert [line["step"] for line in read_metrics(run.path / "run.jsonl")] == [1, 2, 3, 4, 5]


def test_first_request_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "_request", None)
    interruption.request("first", exit_code=3)
    interruption.request("second")
    found = interruption.poll()
    interruption.stop_polling()
    assert isinstance(found, Interrupted)
    assert (found.reason, found.exit_code) == ("first", 3)


@pytest.mark.e2e
@pytest.mark.parametrize("to_one_worker", [False, True])
def test_two_ranks_stop_after_the_same_step(tmp_path: Path, to_one_worker: bool) -> None:
    """Under torchrun the agent hands the signal on; a request of one rank alone stops both."""
    run = make_run(tmp_path, ranks=2)
    agent = start_worker(run, 0.1)
    wait_for_step(run, 3)
    children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()
    os.kill(int(children[-1]) if to_one_worker else agent.pid, signal.SIGTERM)
    _, err = agent.communicate(timeout=60)
    assert agent.returncode == SAVED, err
    assert "stopped by SIGTERM: what was done is saved; the same command resumes\n" in err
    stopped_at = int((run.stage_folder("sft") / "point").read_text())
    assert [line["step"] for line in read_metrics(run.path / "run.jsonl")] == list(range(1, stopped_at + 1))
    run.unlock()
