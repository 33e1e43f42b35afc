"""The commands that look at a run which exists: without torch, within a second, from the folder alone."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import launcher_command

from launcher import status
from launcher.run import COMMANDS, main
from nemo_vibethinker.config import Config, RunConfig
from nemo_vibethinker.ledger import Ledger
from nemo_vibethinker.metrics_log import MetricsLog
from nemo_vibethinker.run_folder import Manifest, RunFolder, config_hash, open_run

WORDS = ("status", "logs", "cancel")


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run whose prepare is done and whose sft was stopped at step 12 of 40, then started again."""
    opened = open_run(Config(run=RunConfig(name="mine", root=str(tmp_path)), stages=["prepare", "sft", "export"]))
    opened.unlock()
    ledger = Ledger(opened.path / "ledger.jsonl", 2, "cpu")
    with ledger.attempt("prepare"):
        finish(opened, "prepare")
    with pytest.raises(SystemExit):
        train_and_stop(opened, ledger)
    return opened


def train_and_stop(run: RunFolder, ledger: Ledger) -> None:
    with ledger.attempt("sft"):
        log = MetricsLog(run.path / "run.jsonl", "sft", 40, ledger, quiet=True)
        for step in range(1, 13):
            log.log(step, loss=0.5)
        raise SystemExit


def finish(run: RunFolder, stage: str) -> None:
    run.stage_folder(stage).mkdir(parents=True, exist_ok=True)
    versions = {"torch": "none"}
    fields = {"inputs": {}, "outputs": {}, "metrics": {}, "seconds": 1.0, "gpu_hours": 0.1, "device": "cpu"}
    run.write_manifest(Manifest(stage=stage, config_hash=config_hash(run.config), versions=versions, **fields))


def shown(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["status", f"run.name={run.path.name}", f"run.root={run.path.parent}"]) == 0
    return capsys.readouterr().out


def test_status_of_a_stopped_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    out = shown(run, capsys)
    assert "state    stopped, 1 of 3 stages done, sft interrupted; the same command goes on" in out
    assert "of 3,900 process-hours" in out
    rows = [line.split() for line in out.splitlines()[-3:]]
    assert rows[0][:4] == ["00", "prepare", "done", "1"]
    assert rows[1][:4] == ["01", "sft", "interrupted", "1"]
    assert rows[1][-3:] == ["step", "12/40", "30%"]
    assert rows[2] == ["02", "export", "waiting"]


def test_status_of_a_run_at_work(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    run.lock()
    ledger = Ledger(run.path / "ledger.jsonl", 2, "cpu")
    with ledger.attempt("sft"):
        log = MetricsLog(run.path / "run.jsonl", "sft", 40, ledger, start_step=12, quiet=True)
        for step in range(13, 21):
            time.sleep(0.01)
            log.log(step, loss=0.5)
        out = shown(run, capsys)
    run.unlock()
    assert "state    running, 1 of 3 stages done\n" in out
    row = out.splitlines()[-2]
    assert row.split()[:4] == ["01", "sft", "running", "2"]
    assert "step 20/40 50% | eta " in row


def test_attempt_whose_process_is_gone_was_killed(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    code = (
        "import os, sys; from pathlib import Path; from nemo_vibethinker.run_folder import RunFolder; "
        "from nemo_vibethinker.ledger import Ledger; run = RunFolder.load(Path(sys.argv[1])); run.lock(); "
        "attempt = Ledger(run.path / 'ledger.jsonl', 1, 'cpu').attempt('sft'); attempt.__enter__(); os._exit(9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(run.path)]).returncode == 9
    assert shown(run, capsys).splitlines()[-2].split()[:4] == ["01", "sft", "killed", "2"]


def test_status_of_a_finished_run(run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    for stage in ("sft", "export"):
        finish(run, stage)
    assert "state    finished\n" in shown(run, capsys)


def test_eta_counts_the_latest_attempt_only() -> None:
    lines = [{"step": step, "total": 10, "time": 2.0 * step} for step in range(1, 5)]
    assert status.eta(lines) == pytest.approx(12.0)
    assert status.eta(lines[:1]) is None
    assert status.progress(lines) == "step 4/10 40%"


@pytest.mark.parametrize("word", sorted(set(COMMANDS) - {"doctor"}))  # which asks of no run
def test_wrong_name_is_one_line(
    word: str, run: RunFolder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.path.parent)
    for arguments, message in (
        ([f"run.name=mina&run.root={run.path.parent}"], "did you mean mine"),
        ([f"run.root={run.path.parent}"], "there are: mine"),
        (["run.nam=mine"], f"{word}: unknown key run.nam; it takes run.name=..., run.root=..."),
    ):
        assert main([word, *arguments[0].split("&")]) == 2
        err = capsys.readouterr().err
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("word", WORDS)
def test_commands_need_neither_torch_nor_a_second(word: str, run: RunFolder) -> None:
    code = (
        "import sys; from launcher.run import main; code = main(sys.argv[1:]); "
        "heavy = {'torch', 'transformers', 'numpy', 'megatron'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    command = [sys.executable, "-c", code, word, f"run.name={run.path.name}", f"run.root={run.path.parent}"]
    outcome = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_help_lists_the_commands() -> None:
    out = subprocess.run(launcher_command("--help"), capture_output=True, text=True).stdout
    for word, (_, text) in COMMANDS.items():
        assert f"  {word:<7}  {text}\n" in out
