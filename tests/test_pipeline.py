"""Order, skipping, invalidation and resume of stages, with real small stages and real kills."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from launcher import cli
from launcher.local import run_process, worker_commands, worker_environment
from nemo_vibethinker.config import Config, RunConfig
from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.pipeline import (
    StageContext,
    StageResult,
    _policy_from,
    guarded,
    run_stages,
    starting_artefacts,
    survey,
)
from nemo_vibethinker.run_folder import Artefact, RunFolder, open_run, read_json_lines

REPOSITORY = Path(__file__).resolve().parent.parent


def untimed(text: str) -> list[str]:
    """The lines of an output with every duration as `N s`."""
    return re.sub(r"\d+\.\d s", "N s", text).splitlines()


class Stages:
    """Three small stages: prepare writes `text`, sft doubles it, export joins both. Counts its calls."""

    def __init__(self, text: str = "a") -> None:
        self.text = text
        self.calls: list[str] = []
        self.contexts: list[StageContext] = []
        self.functions = {"prepare": self.prepare, "sft": self.sft, "export": self.export}

    def _write(self, context: StageContext, name: str, path: Path, text: str) -> StageResult:
        self.calls.append(context.stage)
        self.contexts.append(context)
        path.write_text(text)
        return StageResult(outputs={name: path}, metrics={"length": len(text)})

    def prepare(self, config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        sources = "".join(path.read_text() for path in inputs.values())
        return self._write(context, "sft_data", folder / "data", self.text + sources)

    def sft(self, config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        context.metrics_log(total_steps=1).log(1, loss=0.5)
        return self._write(context, "model.sft_last", folder / "model", inputs["sft_data"].read_text() * 2)

    def export(self, config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        return self._write(context, "hf", folder / "hf", "".join(inputs[name].read_text() for name in sorted(inputs)))


def small_config(root: Path, name: str = "r", stages: tuple[str, ...] = ("prepare", "sft", "export")) -> Config:
    return Config(run=RunConfig(name=name, root=str(root)), stages=list(stages))


@pytest.fixture
def run(tmp_path: Path):
    opened = open_run(small_config(tmp_path))
    yield opened
    opened.unlock()


def again(run: RunFolder, text: str = "a") -> list[str]:
    """Run the stages; the names of those that really ran."""
    stages = Stages(text)
    run_stages(run, stage_functions=stages.functions)
    return stages.calls


def test_stages_run_in_order_and_hand_on_their_outputs(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert again(run) == ["prepare", "sft", "export"]
    assert (run.stage_folder("export") / "hf").read_text() == "aaa"
    manifest = run.read_manifest("export")
    assert manifest is not None
    assert manifest.inputs["model.sft_last"].path == "stages/01-sft/model"
    assert manifest.outputs["hf"].path == "stages/02-export/hf"
    assert manifest.metrics == {"length": 3}
    assert set(manifest.versions) == {"nemo_vibethinker", "python", "torch", "megatron-core", "transformers", "commit"}
    assert [cost.attempts for cost in summarise(run.path / "ledger.jsonl")] == [1, 1, 1]
    assert [(line["stage"], line["loss"]) for line in read_metrics(run.path / "run.jsonl")] == [("sft", 0.5)]
    lines = untimed(capsys.readouterr().out)
    assert lines[0] == "prepare        done in N s"
    assert lines[1].startswith("sft            step 1/1 100% | loss 0.5000 | ")
    assert lines[2:] == ["sft            done in N s", "export         done in N s"]


def test_finished_run_does_nothing(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    again(run)
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    capsys.readouterr()
    assert again(run, "other") == []
    assert {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before
    assert untimed(capsys.readouterr().out) == [
        f"{stage:<13}  done earlier (N s)" for stage in ("prepare", "sft", "export")
    ]
    assert all(survey(run).values())


def test_changed_output_makes_its_stage_and_those_after_it_run_again(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    again(run)
    (run.stage_folder("prepare") / "data").write_text("tampered")
    assert list(survey(run, report=lambda _: None).values()) == [None, None, None]
    assert again(run, "b") == ["prepare", "sft", "export"]
    assert (run.stage_folder("export") / "hf").read_text() == "bbb"
    out = capsys.readouterr().out
    assert "prepare: its output sft_data has changed (stages/00-prepare/data); the stage runs again" in out
    assert "sft: its input sft_data changed; the stage runs again" in out


def test_output_that_comes_back_the_same_saves_the_stages_after_it(run: RunFolder) -> None:
    again(run)
    (run.stage_folder("prepare") / "data").unlink()
    assert again(run) == ["prepare"]


def test_lost_output_in_the_middle(run: RunFolder) -> None:
    again(run)
    (run.stage_folder("sft") / "model").unlink()
    found = survey(run, report=lambda _: None)
    assert [stage for stage, manifest in found.items() if manifest] == ["prepare"]
    assert again(run) == ["sft"]
    costs = {cost.stage: cost for cost in summarise(run.path / "ledger.jsonl")}
    assert costs["sft"].attempts == 2
    assert costs["sft"].lost_hours > 0


def test_changed_data_file_of_the_user_runs_prepare_again(tmp_path: Path) -> None:
    source = tmp_path / "mine.jsonl"
    source.write_text("1")
    config = small_config(tmp_path)
    config.data.sft = str(source)
    run = open_run(config)
    assert again(run) == ["prepare", "sft", "export"]
    assert again(run) == []
    source.write_text("2")
    assert again(run) == ["prepare", "sft", "export"]
    assert (run.stage_folder("sft") / "model").read_text() == "a2a2"
    source.unlink()
    with pytest.raises(ValueError, match=r"data\.sft=.*mine\.jsonl: no such file"):
        again(run)
    run.unlock()


def test_failed_stage_leaves_no_manifest_and_is_tried_again(run: RunFolder) -> None:
    stages = Stages()

    def broken(*_: object) -> StageResult:
        raise RuntimeError("fault")

    with pytest.raises(RuntimeError, match="fault"):
        run_stages(run, stage_functions=stages.functions | {"sft": broken})
    assert [run.read_manifest(stage) is not None for stage in run.config.stages] == [True, False, False]
    second = Stages()
    run_stages(run, stage_functions=second.functions)
    assert second.calls == ["sft", "export"]
    assert [context.attempt for context in second.contexts] == [2, 1]


def test_output_may_not_be_the_whole_stage_folder(run: RunFolder) -> None:
    def careless(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        return StageResult(outputs={"sft_data": folder}, metrics={})

    with pytest.raises(AssertionError, match="prepare: its whole folder would hold its own manifest"):
        run_stages(run, stage_functions=Stages().functions | {"prepare": careless})


def test_missing_output_is_a_fault_not_a_result(run: RunFolder) -> None:
    def forgetful(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        return StageResult(outputs={"sft_data": folder / "never-written"}, metrics={})

    with pytest.raises(FileNotFoundError):
        run_stages(run, stage_functions=Stages().functions | {"prepare": forgetful})
    assert run.read_manifest("prepare") is None


def test_single_stage(run: RunFolder) -> None:
    stages = Stages()
    with pytest.raises(ValueError, match=r"stage prepare of .* is not done; run it first: --stage prepare"):
        run_stages(run, "sft", stages.functions)
    with pytest.raises(ValueError, match="has no stage 'fuse'; it has: prepare, sft, export"):
        run_stages(run, "fuse", stages.functions)
    run_stages(run, "prepare", stages.functions)
    run_stages(run, "sft", stages.functions)
    run_stages(run, "sft", stages.functions)
    assert stages.calls == ["prepare", "sft"]


def test_single_stage_does_not_disturb_what_an_earlier_one_left(run: RunFolder) -> None:
    again(run)
    (run.stage_folder("prepare") / "data").write_text("tampered")
    with pytest.raises(ValueError, match="stage prepare"):
        run_stages(run, "export", Stages().functions)
    assert (run.stage_folder("prepare") / "manifest.json").exists()


def test_run_starts_from_another_run(run: RunFolder, tmp_path: Path) -> None:
    config = small_config(tmp_path, "second", stages=("export",))
    config.run.from_run = str(run.path)
    with pytest.raises(ValueError, match="its stage prepare is not done; finish that run first"):
        starting_artefacts(config)
    again(run)
    second = open_run(config)
    assert again(second) == ["export"]
    assert (second.stage_folder("export") / "hf").read_text() == "aaa" + "aaa"  # hf, model.sft_last, sft_data
    third = small_config(tmp_path, "third", stages=("export",))
    third.run.from_run = str(second.path)
    found = starting_artefacts(third)
    assert found["sft_data"].path == str(run.path / "stages" / "00-prepare" / "data")
    assert found["hf"].path == str(second.path / "stages" / "00-export" / "hf")
    third.run.from_model = "fused"
    with pytest.raises(ValueError, match="that run has sft_last"):
        starting_artefacts(third)
    third.run.from_model = "sft_last"
    found = starting_artefacts(third)
    assert found["policy"] == found["model.sft_last"]
    third.scale.model.num_layers = 8
    with pytest.raises(ValueError, match=r"has another scale\.model"):
        starting_artefacts(third)
    second.unlock()


def test_starting_model_hides_the_later_ones() -> None:
    labels = ("sft_last", "fused", "mgpo.math_16k", "mgpo.code")
    artefacts = {f"model.{label}": Artefact(label, label) for label in labels} | {"scores": Artefact("s", "s")}
    found = _policy_from("fused", artefacts)
    assert set(found) == {"model.sft_last", "model.fused", "scores", "policy"}
    assert found["policy"] == artefacts["model.fused"]


SLOW_WORKER = """
import sys, time
from pathlib import Path
from nemo_vibethinker import pipeline
from nemo_vibethinker.pipeline import StageResult
from nemo_vibethinker.atomic_files import atomic_write_text
from nemo_vibethinker.run_folder import Artefact, RunFolder

def prepare(config, inputs, folder, context):
    (folder / "data").write_text("abc")
    return StageResult(outputs={"sft_data": folder / "data"}, metrics={})

def sft(config, inputs, folder, context):
    checkpoint = folder / "step"
    first = int(checkpoint.read_text()) if checkpoint.exists() else 0
    log = context.metrics_log(total_steps=10, start_step=first)
    for step in range(first + 1, 11):
        time.sleep(60 if step == int(sys.argv[2]) else 0.02)
        log.log(step, attempt_start=first)
        if step % 3 == 0:
            atomic_write_text(checkpoint, str(step))
            context.ledger.saved()
    (folder / "model").write_text(inputs["sft_data"].read_text())
    return StageResult(outputs={"model.sft_last": folder / "model"}, metrics={})

run = RunFolder.load(Path(sys.argv[1]))
functions = {"prepare": prepare, "sft": sft}
sys.exit(pipeline.guarded(lambda: pipeline.run_stages(run, stage_functions=functions)))
"""


@pytest.fixture
def slow(tmp_path: Path):
    """A run whose sft has ten steps and saves every third; starts its worker, which hangs at a given step."""
    run = open_run(small_config(tmp_path, stages=("prepare", "sft")))
    (tmp_path / "worker.py").write_text(SLOW_WORKER)

    def start(hang_at: int) -> subprocess.Popen:
        command = [sys.executable, str(tmp_path / "worker.py"), str(run.path), str(hang_at)]
        environment = worker_environment(run.config)
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    yield run, start
    run.unlock()


def wait_for_step(run: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 20
    while not any(line["step"] == step for line in read_json_lines(run.path / "run.jsonl")):
        assert time.monotonic() < deadline, "the worker made no progress"
        time.sleep(0.02)


def test_kill_9_loses_one_save_interval_and_the_ledger_counts_it(slow) -> None:
    run, start = slow
    victim = start(hang_at=9)
    wait_for_step(run, 8)
    victim.send_signal(signal.SIGKILL)
    victim.communicate()
    assert run.read_manifest("sft") is None
    died = {cost.stage: cost for cost in summarise(run.path / "ledger.jsonl")}["sft"]

    rescuer = start(hang_at=0)
    out, err = rescuer.communicate(timeout=30)
    assert rescuer.returncode == 0, err
    assert "prepare        done earlier" in out
    assert run.read_manifest("sft") is not None
    lines = read_metrics(run.path / "run.jsonl")
    assert [(line["step"], line["attempt"]) for line in lines] == [(s, 1 if s <= 6 else 2) for s in range(1, 11)]
    cost = {cost.stage: cost for cost in summarise(run.path / "ledger.jsonl")}["sft"]
    assert cost.attempts == 2
    assert 6 * 0.02 <= died.useful_hours * 3600 < died.seconds
    assert cost.useful_hours > died.useful_hours > 0
    assert cost.lost_hours == died.lost_hours


def test_sigterm_ends_at_once_and_says_how_to_go_on(slow) -> None:
    run, start = slow
    worker = start(hang_at=5)
    wait_for_step(run, 4)
    worker.terminate()
    _, err = worker.communicate(timeout=10)  # the step it is in would take a minute
    assert worker.returncode == 128 + signal.SIGTERM
    assert err == "stopped by SIGTERM; the same command resumes\n"
    assert read_json_lines(run.path / "ledger.jsonl")[-1]["status"] == "interrupted"


def test_full_disk_is_one_line(slow) -> None:
    run, start = slow
    (run.path / "run.jsonl").symlink_to("/dev/full")
    worker = start(hang_at=0)
    _, err = worker.communicate(timeout=30)
    assert worker.returncode == 2
    assert err == "error: no space left on device; free some, the same command resumes\n"
    assert run.read_manifest("sft") is None


def test_mistake_is_told_apart_from_a_fault(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        assert guarded(lambda: RunFolder.load(tmp_path) and None) == 2
        assert capsys.readouterr().err == f"error: {tmp_path} is not a run folder: it has no config.yaml\n"
        assert guarded(lambda: json.loads("{")) == 1
        assert "Traceback" in capsys.readouterr().err
        assert guarded(lambda: None) == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_worker_refuses_a_run_that_another_process_works_on(run: RunFolder) -> None:
    (command,) = worker_commands(run.config, run.path, prepared=False)
    outcome = subprocess.run(command, env=worker_environment(run.config), capture_output=True, text=True)
    assert outcome.returncode == 2
    assert outcome.stderr.startswith(f"error: {run.path} is in use by process {os.getpid()} on ")


def test_launcher_hands_on_exit_codes_and_signals() -> None:
    environment = dict(os.environ)
    assert run_process([sys.executable, "-c", "raise SystemExit(7)"], environment) == 7
    assert run_process(["sh", "-c", "kill -9 $$"], environment) == 128 + signal.SIGKILL
    code = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)"
    start = time.monotonic()
    assert run_process([sys.executable, "-c", code], environment) == 128 + signal.SIGTERM
    assert time.monotonic() - start < 5


def gone(process: int) -> bool:
    """Whether the process has ended, within five seconds."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":  # waits for init, does not run
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_worker_outlives_the_launcher(tmp_path: Path, number: signal.Signals) -> None:
    code = f"""
import os, sys
from launcher.local import run_process
child = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
sys.exit(run_process([{sys.executable!r}, "-c", child], dict(os.environ)))
"""
    environment = dict(os.environ) | {"PYTHONPATH": str(REPOSITORY)}
    launcher = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    assert launcher.stdout is not None
    worker = int(launcher.stdout.readline())
    launcher.send_signal(number)
    launcher.communicate(timeout=10)
    assert gone(worker)


def test_command_again_on_a_finished_run_only_shows_the_result(tmp_path: Path) -> None:
    arguments = ["recipe=ssp_full", f"run.root={tmp_path}", "run.name=r", "stages=prepare,sft,evaluate"]
    run = open_run(cli.parse(arguments).config)
    stages = Stages()

    def evaluate(config: Config, inputs: dict[str, Path], folder: Path, context: StageContext) -> StageResult:
        (folder / "scores.txt").write_text("fused .50\n")
        return StageResult(outputs={"scores": folder / "scores.txt"}, metrics={})

    run_stages(run, stage_functions=stages.functions | {"evaluate": evaluate})
    (run.path / "report.html").write_text("<html>")
    run.unlock()
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file() and path.name != ".lock"}
    command = [sys.executable, str(REPOSITORY / "launcher" / "run.py"), *arguments]
    outcome = subprocess.run(command, capture_output=True, text=True)
    assert outcome.returncode == 0, outcome.stderr
    shown = [f"{stage:<13}  done earlier (N s)" for stage in ("prepare", "sft", "evaluate")]
    assert untimed(outcome.stdout) == [*shown, "", "fused .50", "", f"report: {run.path / 'report.html'}"]
    assert {path: path.read_bytes() for path in before} == before

    refused = subprocess.run([*command, "seed=5"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert "\n  seed: 0 -> 5\n" in refused.stderr


TWO_RANKS = """
import os, sys
from pathlib import Path
from nemo_vibethinker import pipeline
from nemo_vibethinker.pipeline import StageResult
from nemo_vibethinker.run_folder import Artefact, RunFolder

def prepare(config, inputs, folder, context):
    with open(folder / "data", "a") as file:
        file.write(os.environ["RANK"])
    return StageResult(outputs={"sft_data": folder / "data"}, metrics={})

def sft(config, inputs, folder, context):
    assert inputs["sft_data"].read_text() == "0"
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / os.environ["RANK"]).write_text("here")
    context.metrics_log(1).log(1, loss=0.5)
    return StageResult(outputs={"model.sft_last": folder / "model"}, metrics={})

def work():
    run = RunFolder.load(Path(sys.argv[1]))
    from nemo_vibethinker.megatron.distributed import initialize

    initialize(run.config)
    for _ in range(2):  # the second time all is done
        pipeline.run_stages(run, stage_functions={"prepare": prepare, "sft": sft})

sys.exit(pipeline.guarded(work))
"""


@pytest.mark.e2e
def test_two_ranks_share_one_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("megatron.core")
    config = small_config(tmp_path, stages=("prepare", "sft"))
    config.scale.parallel.data = 2
    run = open_run(config)
    (tmp_path / "worker.py").write_text(textwrap.dedent(TWO_RANKS))
    torchrun = worker_commands(config, run.path, prepared=True)[-1][: -len(["-m", "module", "--run-dir", "path"])]
    command = [*torchrun, str(tmp_path / "worker.py")]
    environment = worker_environment(config)
    assert run_process([*command, str(run.path)], environment) == 0
    assert [line for line in untimed(capfd.readouterr().out) if " done " in line] == [
        "prepare        done in N s",
        "sft            done in N s",
        "prepare        done earlier (N s)",
        "sft            done earlier (N s)",
    ]
    assert {file.name for file in (run.stage_folder("sft") / "model").iterdir()} == {"0", "1"}
    assert [line["step"] for line in read_json_lines(run.path / "run.jsonl")] == [1]
    assert [line["processes"] for line in read_json_lines(run.path / "ledger.jsonl") if "processes" in line] == [2, 2]
    assert run_process([*command, "/nowhere"], environment) == 2
    run.unlock()
