"""Checkpoints written beside training: what they hold, a writer that fails, a kill in the middle."""

# ruff: noqa: E402  (torch is patched before Megatron binds its names)
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from conftest import REPOSITORY

from nemo_vibethinker.megatron.platform import install_cpu_platform

install_cpu_platform()

from nemo_vibethinker.config import Config
from nemo_vibethinker.megatron import checkpoint
from nemo_vibethinker.megatron.checkpoint_saver import CheckpointSaver
from nemo_vibethinker.model.qwen2 import build_model

VOCAB = 320


def test_a_save_in_the_background_holds_the_state_of_its_beginning(tiny_config: Config, tmp_path: Path) -> None:
    model = build_model(tiny_config, VOCAB)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    done: list[str] = []
    with CheckpointSaver(in_background=True) as saver:
        state = {"model": model.sharded_state_dict()}
        saver.save(state, tmp_path / "model", lambda: done.append("model"))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(1)
        assert not (tmp_path / "model").exists()  # it takes its name when the ranks meet
        assert done == []
    assert done == ["model"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    other = build_model(tiny_config, VOCAB)
    other.load_state_dict(checkpoint._load({"model": other.sharded_state_dict()}, tmp_path / "model")["model"])
    assert all(torch.equal(parameter, before[name]) for name, parameter in other.named_parameters())


def test_saves_are_completed_in_order_and_two_at_most_are_under_way(tiny_config: Config, tmp_path: Path) -> None:
    model = build_model(tiny_config, VOCAB)
    done: list[int] = []
    with CheckpointSaver(in_background=True) as saver:
        for number in range(4):
            checkpoint.save_model([model], tmp_path / str(number), saver)
            saver._under_way[-1].then = lambda number=number: done.append(number)
            assert done == list(range(max(0, number - 1)))
            assert sorted(path.name for path in tmp_path.iterdir() if path.suffix != ".tmp") == [str(n) for n in done]
        deadline = time.monotonic() + 30
        while len(done) < 4 and time.monotonic() < deadline:
            saver.poll()
    assert done == [0, 1, 2, 3]


def test_a_writer_that_fails_is_an_error_with_its_cause(tiny_config: Config, tmp_path: Path) -> None:
    model = build_model(tiny_config, VOCAB)
    checkpoint.save_model([model], tmp_path / "model")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # as a full disk: a real write fails
    saver = CheckpointSaver(in_background=True)
    try:
        checkpoint.save_model([model], tmp_path / "model", saver)
        with pytest.raises(RuntimeError, match=r"checkpoint .*/model could not be written: rank 0: .*File too large"):
            saver.wait()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    checkpoint.load_model([model], tmp_path / "model")  # the former one is whole
    checkpoint.save_model([model], tmp_path / "model", saver)  # and the saver goes on
    saver.wait()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_exception_in_training_leaves_no_checkpoint_that_looks_whole(tiny_config: Config, tmp_path: Path) -> None:
    model = build_model(tiny_config, VOCAB)

    def train() -> None:
        with CheckpointSaver(in_background=True) as saver:
            checkpoint.save_model([model], tmp_path / "model", saver)
            raise KeyError("loss")

    with pytest.raises(KeyError, match="loss"):
        train()
    assert [path.name for path in tmp_path.iterdir()] == ["model.tmp"]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two replicas left that were killed while they saved step 4."""
    folder = tmp_path_factory.mktemp("killed")
    process = subprocess.Popen(worker("die", folder), env=environment(), stderr=subprocess.PIPE, text=True)
    files = folder / "resume" / "step_000004.tmp"
    deadline = time.monotonic() + 120
    while not (files.is_dir() and len(list(files.glob("*.distcp"))) >= 2) and process.poll() is None:
        assert time.monotonic() < deadline, "step 4 was not begun"
        time.sleep(0.01)
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for member in family:
        member.kill()
    psutil.wait_procs(family, timeout=30)
    assert (folder / "failed-1").exists(), process.communicate()[1][-4000:]
    return folder


def worker(task: str, folder: Path) -> list[str]:
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return [*start, str(REPOSITORY / "tests" / "saver_worker.py"), task, str(folder)]


def environment() -> dict[str, str]:
    return dict(os.environ) | {"OMP_NUM_THREADS": "1"}


@pytest.mark.e2e
def test_every_rank_learns_which_writer_failed_and_why(killed: Path) -> None:
    for rank in (0, 1):
        text = (killed / f"failed-{rank}").read_text()
        assert text.startswith(f"checkpoint {killed / 'resume' / 'step_000003'} could not be written: rank 0: ")
        assert "File too large" in text


@pytest.mark.e2e
def test_a_kill_in_the_middle_of_a_save_leaves_the_one_before(killed: Path) -> None:
    left = sorted(path.name for path in (killed / "resume").iterdir())
    assert left == ["step_000002", "step_000003.tmp", "step_000004.tmp"]
    done = subprocess.run(worker("resume", killed), env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-4000:]
    losses = json.loads((killed / "losses.json").read_text())
    assert losses["first"] == 2
    assert losses["resumed"] == losses["whole"][2:]  # to the last bit
    assert [path.name for path in (killed / "resume").iterdir()] == ["step_000002"]
