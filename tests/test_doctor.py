"""`doctor`: the checks of one machine, each made to fail."""

import copy
import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import REPOSITORY, Launch
from test_preflight import fake_smi

from nemo_vibethinker.config import Config, OptimizerConfig
from nemo_vibethinker.costs.storage import run_storage
from nemo_vibethinker.preflight import packages

H800 = "NVIDIA H800"


def doctor(launch: Launch, *arguments: str, code: int = 0) -> dict[str, dict[str, str]]:
    """Name of a check -> what it says."""
    return {check["name"]: check for check in json.loads(launch("doctor", "json=true", *arguments, code=code).stdout)}


def executable(folder: Path, name: str, text: str) -> None:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{text}\n")
    (folder / name).chmod(0o755)


def distribution(folder: Path, name: str, version: str, *requires: str) -> None:
    """An installed package, as far as its metadata goes."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    lines = [
        "Metadata-Version: 2.1",
        f"Name: {name}",
        f"Version: {version}",
        *(f"Requires-Dist: {r}" for r in requires),
    ]
    (info / "METADATA").write_text("\n".join(lines) + "\n")


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in front of PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path / "bin"


def test_this_machine_is_ready(launch: Launch) -> None:
    found = doctor(launch)
    assert {"python", "packages", "psutil", "GPUs", "sandbox", "/dev/shm", "open files", "memory", "disk"} <= set(found)
    assert {check["status"] for check in found.values()} <= {"ok", "warn"}
    assert torch.__version__ in found["packages"]["found"]
    lines = launch("doctor").stdout.splitlines()
    assert lines[-1].startswith("ready, ")
    assert len({line.index(found[line.split()[1]]["found"][:4], 6) for line in lines[:3]}) == 1  # aligned


def test_it_imports_no_torch_and_is_quick() -> None:
    code = "import sys; from launcher import doctor; doctor.main(sys.argv[1:]); print('torch' in sys.modules)"
    before = os.times().children_user
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines()[-1] == "False", done.stderr
    assert os.times().children_user - before < 2.0  # processor time: the machine may be busy


def test_help_names_it(launch: Launch) -> None:
    assert "  doctor " in launch("--help").stdout


def test_mistakes_of_the_command_line(launch: Launch) -> None:
    assert "unknown scale 'huge'" in launch("doctor", "scale=huge", code=2).stderr
    assert "name the scale too" in launch("doctor", "cluster=slurm_h800", code=2).stderr
    assert "full=maybe: expected true or false" in launch("doctor", "full=maybe", code=2).stderr


def test_disk_for_the_checkpoints_of_a_scale(launch: Launch) -> None:
    check = doctor(launch, "scale.model.num_layers=400000", code=2)["disk"]
    assert check["status"] == "FAIL"
    assert "set run.root" in check["fix"]


def test_memory_of_training_on_cpus(launch: Launch) -> None:
    check = doctor(launch, "sft.micro_batch_size=1000000", "sft.global_batch_size=2000000", code=2)["memory"]
    assert check["status"] == "FAIL"
    assert "cluster.gpu" in check["fix"]


def test_gpus(launch: Launch, path: Path) -> None:
    check = doctor(launch, "cluster.gpu=H800-SXM", "scale.precision=bf16", code=2)["GPUs"]
    assert check["status"] == "FAIL"

    fake_smi(path, [H800] * 8)
    found = doctor(launch, "cluster.gpu=A100-SXM-80GB", code=2)
    assert found["GPUs"]["found"] == f"8 x {H800}, driver 580.95.05"
    assert found["GPU kind"]["status"] == "FAIL"

    executable(path, "nvidia-smi", "echo NVIDIA-SMI has failed; exit 9")
    assert "NVIDIA-SMI has failed" in doctor(launch, "cluster.gpu=H800-SXM", code=2)["GPUs"]["found"]


def test_sandbox_that_does_not_work(launch: Launch, path: Path) -> None:
    executable(path, "bwrap", "exit 1")
    check = doctor(launch, "reward.sandbox=bubblewrap", code=2)["sandbox"]
    assert check["status"] == "FAIL"
    assert doctor(launch, "reward.sandbox=none")["sandbox"]["status"] == "warn"


def test_slurm_tools_and_controller(launch: Launch, path: Path) -> None:
    for tool in ("sbatch", "srun", "squeue", "scancel", "sacct"):
        executable(path, tool, "exit 0")
    executable(path, "scontrol", "echo 'Slurmctld(primary) at head is UP'")
    cluster = ("cluster=slurm_h800", "scale=tiny", "cluster.nodes=1", "cluster.gpus_per_node=2")
    big = "scale.model.num_layers=400000"  # the nodes' memory is not this machine's, their disk is
    found = doctor(launch, *cluster, big, code=2)
    assert [name for name, check in found.items() if check["status"] == "FAIL"] == ["disk"]
    assert found["slurm"]["found"] == "Slurmctld(primary) at head is UP"
    assert "preflight job looks at the nodes" in found["GPUs"]["found"]

    executable(path, "scontrol", "echo 'Slurmctld(primary) at head is DOWN'; exit 1")
    check = doctor(launch, *cluster, code=2)["slurm"]
    assert (check["status"], check["found"]) == ("FAIL", "Slurmctld(primary) at head is DOWN")


def test_low_limits_are_warned_of(launch: Launch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        check = doctor(launch)["open files"]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (check["status"], check["fix"]) == ("warn", "ulimit -n 65536")


@pytest.mark.parametrize(
    ("installed", "message"),
    [
        ([("vllm", "0.33.0", "torch==2.14.0")], r"vllm 0.33.0: torch 2.13.0\S* is installed, torch==2.14.0 is needed"),
        ([("transformer-engine", "2.11.0")], r"without its torch extension: importing it fails"),
        ([("transformer-engine", "2.11.0"), ("transformer-engine-torch", "2.9.0")], r"parts of Transformer Engine"),
        ([("apex", "0.9.10dev0")], r"PyPI's is another project"),
    ],
)
def test_packages_that_do_not_fit(
    installed: list[tuple[str, ...]], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert packages.check_companions() == []
    for name, version, *requires in installed:
        distribution(tmp_path, name, version, *requires)
    monkeypatch.syspath_prepend(str(tmp_path))
    (fault,) = packages.check_companions()
    assert re.search(message, fault.text)
    assert fault.fix


def test_other_versions_than_pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert packages.check_project() == []
    distribution(tmp_path, "megatron-core", "0.17.0")
    monkeypatch.syspath_prepend(str(tmp_path))
    (fault,) = packages.check_project()
    assert fault.text == "megatron-core 0.17.0 is installed, megatron-core==0.16.1 is needed"
    assert fault.fix == "pip install 'megatron-core==0.16.1'"


def test_cuda_version_of_torch_without_its_import() -> None:
    assert packages.torch_cuda() == (torch.version.cuda or "")


@pytest.mark.e2e
def test_full_runs_an_all_reduce(launch: Launch) -> None:
    said = launch("doctor", "full=true", "cluster.processes=2").stdout
    assert "preflight  all-reduce" in said
    assert "2 processes, exit code 0" in said


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_storage_is_what_checkpoints_take(megatron_config: Config, tmp_path: Path, precision: str) -> None:
    from nemo_vibethinker.megatron import checkpoint
    from nemo_vibethinker.megatron.optimizer import build_optimizer
    from nemo_vibethinker.model.qwen2 import build_model, wrap_for_training

    config = copy.deepcopy(megatron_config)
    config.scale.precision, config.scale.model.hidden_size, config.data.vocab_size = precision, 128, 20480
    chunks = wrap_for_training(config, [build_model(config, config.data.vocab_size)])
    optimizer = build_optimizer(chunks, OptimizerConfig(lr=1e-2))
    modules = [chunk.module for chunk in chunks]
    checkpoint.save_model(modules, tmp_path / "model")
    checkpoint.save_resume_point(modules, optimizer, 1, tmp_path / "resume")

    def size(folder: Path) -> int:
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    config.stages, config.sft.steps, config.sft.checkpoint_interval = ["sft"], 30, 30
    one = run_storage(config)
    config.sft.checkpoint_interval = 10
    three = run_storage(config)
    weights = (three.kept["sft"] - one.kept["sft"]) / 2
    assert size(tmp_path / "model") == pytest.approx(weights, rel=0.05)
    assert size(tmp_path / "resume") == pytest.approx(one.kept["sft"] - weights, rel=0.05)
    assert one.peak == one.kept["sft"] + (one.kept["sft"] - weights)
