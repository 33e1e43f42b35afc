"""The preflight of a Slurm chain: two to four processes on this machine, with faults injected into one of them."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from conftest import REPOSITORY

from nemo_vibethinker.config import Config
from nemo_vibethinker.preflight import judge
from nemo_vibethinker.preflight.facts import find_gpus, version_numbers
from nemo_vibethinker.preflight.ring import bus_rate
from nemo_vibethinker.run_folder import open_run

H800 = "NVIDIA H800"


@dataclass
class Rank:
    """How one process differs from the others."""

    environment: dict[str, str] = field(default_factory=dict)
    prefix: list[str] = field(default_factory=list)
    run_dir: Path | None = None
    patch: str = ""  # Python that runs before the preflight


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    return make_run(tmp_path / "runs")


def make_run(root: Path, gpu: str = "", checkpoint_interval: int = 60) -> Path:
    config = Config()
    config.run.root, config.run.name = str(root), "checked"
    config.cluster.gpu = gpu
    config.sft.checkpoint_interval = checkpoint_interval
    run = open_run(config)
    run.unlock()
    return run.path


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def preflight(
    run_dir: Path, size: int = 2, seconds: int = 30, faulty: Rank | None = None, absent: int = 0
) -> tuple[list[int], str, str]:
    """Run `size` processes less the last `absent`, the last of those that run being `faulty`.

    Returns their exit codes, and all output and all errors in rank order.
    """
    port, processes = str(free_port()), []
    for rank in range(size - absent):
        other = faulty if faulty and rank == size - absent - 1 else Rank()
        place = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}
        environment = dict(os.environ) | {name: str(value) for name, value in place.items()}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"} | other.environment
        program = f"import sys; {other.patch or 'pass'}\nfrom nemo_vibethinker.preflight import __main__ as module\n"
        program += "import os; code = module.main(sys.argv[1:]); sys.stdout.flush(); os._exit(code)"
        start = ["-c", program] if other.patch else ["-m", "nemo_vibethinker.preflight"]
        options = ["--run-dir", str(other.run_dir or run_dir), "--timeout-s", str(seconds)]
        command = [*other.prefix, sys.executable, *start, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        processes.append(subprocess.Popen(command, env=environment, cwd=REPOSITORY, **pipes))
    ends = wait_for(processes, limit=3 * seconds + 60)
    codes = [process.returncode for process in processes]
    return codes, "".join(out for out, _ in ends), "".join(errors for _, errors in ends)


def wait_for(processes: list[subprocess.Popen], limit: float) -> list[tuple[str, str]]:
    """Their output; the last is ended when the first has, because a fault may have frozen it."""
    deadline = time.monotonic() + limit
    processes[0].wait(timeout=limit)
    while any(process.poll() is None for process in processes[:-1]) and time.monotonic() < deadline:
        time.sleep(0.05)
    try:
        processes[-1].wait(timeout=2)
    except subprocess.TimeoutExpired:
        processes[-1].kill()
    return [process.communicate(timeout=10) for process in processes]


def fault_line(errors: str) -> str:
    """The one line of a preflight that failed."""
    lines = [line for line in errors.splitlines() if line.startswith("preflight: ")]
    assert len(lines) == 1, errors
    return lines[0]


def fake_smi(folder: Path, names: list[str], uuid: str = "GPU", used_mb: int = 4, before: str = "") -> dict[str, str]:
    """An environment whose nvidia-smi shows these GPUs."""
    folder.mkdir(exist_ok=True)
    rows = "\n".join(f"{name}, {uuid}-{number}, 580.95.05, {used_mb}" for number, name in enumerate(names))
    script = folder / "nvidia-smi"
    script.write_text(f"#!/bin/sh\n{before}\ncat <<'ROWS'\n{rows}\nROWS\n")
    script.chmod(0o755)
    return {"PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"}


@pytest.mark.e2e
def test_processes_of_one_machine_pass(run_dir: Path) -> None:
    codes, output, errors = preflight(run_dir, size=3)
    assert codes == [0, 0, 0], errors
    assert re.findall(r"^preflight  (\S+)", output, re.M) == [
        *("processes", "gpus", "versions", "disk", "folder", "clocks", "all-reduce", "time")
    ]
    assert "3 processes over gloo" in output
    assert not list(run_dir.glob(".preflight*"))


@pytest.mark.e2e
def test_it_runs_under_torchrun(run_dir: Path) -> None:
    options = ["--standalone", "--nproc-per-node=2", "-m", "nemo_vibethinker.preflight", "--run-dir", str(run_dir)]
    command = [sys.executable, "-m", "launcher.torchrun", *options]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 processes over gloo" in done.stdout


@pytest.mark.e2e
def test_rank_that_never_comes_is_named(run_dir: Path) -> None:
    began = time.monotonic()
    codes, _, errors = preflight(run_dir, size=3, seconds=16, absent=1)
    assert codes == [2, 2]
    assert f"rank 2 on {socket.gethostname()}: did not come within 8 s" in fault_line(errors)
    assert time.monotonic() - began < 60


@pytest.mark.e2e
def test_frozen_rank_is_named(run_dir: Path, tmp_path: Path) -> None:
    frozen = Rank(environment=fake_smi(tmp_path / "bin", [], before="kill -STOP $PPID"))
    codes, _, errors = preflight(run_dir, size=3, seconds=20, faulty=frozen)
    assert codes[:2] == [2, 2]
    assert re.search(r"rank 2 on \S+: did not say what it has: nvidia-smi", fault_line(errors))


@pytest.mark.e2e
def test_rank_that_stays_out_of_the_all_reduce_is_named(run_dir: Path) -> None:
    patch = "import time; import nemo_vibethinker.preflight.__main__ as m; m.check_ring = lambda *_: time.sleep(99)"
    codes, _, errors = preflight(run_dir, seconds=20, faulty=Rank(patch=patch))
    assert codes[0] == 2
    assert re.search(r"rank 1 on \S+: did not come to the all-reduce", fault_line(errors))


@pytest.mark.e2e
def test_other_versions_are_named(run_dir: Path, tmp_path: Path) -> None:
    wheel = tmp_path / "site" / "transformer_engine-2.9.0.dist-info"
    wheel.mkdir(parents=True)
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: transformer-engine\nVersion: 2.9.0\n")
    code = tmp_path / "site" / "nemo_vibethinker"
    shutil.copytree(REPOSITORY / "nemo_vibethinker", code, ignore=shutil.ignore_patterns("__pycache__"))
    (code / "model" / "edited.py").write_text("# somebody's change on one node\n")
    other = Rank(environment={"PYTHONPATH": str(tmp_path / "site")}, prefix=["env", "-C", str(tmp_path)])
    codes, _, errors = preflight(run_dir, size=3, faulty=other)
    assert codes == [2, 2, 2]
    line = fault_line(errors)
    assert re.search(r"transformer-engine is absent but 2\.9\.0 on rank 2 on ", line)
    assert re.search(r"nemo_vibethinker is (\S+) but (?!\1)\S+ on rank 2 on ", line)


@pytest.mark.e2e
def test_folder_that_is_not_shared_or_not_writable(run_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(run_dir, tmp_path / "local")
    codes, _, errors = preflight(run_dir, faulty=Rank(run_dir=tmp_path / "local"))
    assert codes == [2, 2]
    assert re.search(r"rank 1 on \S+ does not see \S+ as rank 0 does", fault_line(errors))

    # root may write everywhere, but for want of this capability
    prefix = ["setpriv", "--bounding-set", "-dac_override", "--"] if os.geteuid() == 0 else []
    run_dir.chmod(0o555)
    codes, _, errors = preflight(run_dir, size=1, faulty=Rank(prefix=prefix))
    run_dir.chmod(0o755)
    assert codes == [2]
    assert "Permission denied; set run.root" in fault_line(errors)


@pytest.mark.e2e
def test_disk_too_small_for_the_checkpoints(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path)
    text = (run_dir / "config.yaml").read_text()
    (run_dir / "config.yaml").write_text(text.replace("num_layers: 4", "num_layers: 400000"))
    codes, _, errors = preflight(run_dir)
    assert codes == [2, 2]
    assert re.search(r"GB free, the run's checkpoints take [\d,.]+ GB: free some", fault_line(errors))


@pytest.mark.e2e
def test_wrong_gpus(tmp_path: Path) -> None:
    run_dir = make_run(tmp_path, gpu="H800-SXM")
    other = Rank(environment=fake_smi(tmp_path / "bin", ["NVIDIA A100-SXM4-80GB"] * 2))
    _, _, errors = preflight(run_dir, size=1, faulty=other)
    assert re.search(r"\S+ has A100-SXM-80GB where cluster.gpu=H800-SXM is asked for; choose", fault_line(errors))

    codes, _, errors = preflight(run_dir)
    assert codes == [2, 2]
    assert "has no GPU (no nvidia-smi there); cluster.gpu=H800-SXM is asked for" in fault_line(errors)


@pytest.mark.e2e
def test_clock_that_is_off(run_dir: Path) -> None:
    patch = "import time; real = time.time; time.time = lambda: real() + 60"
    codes, _, errors = preflight(run_dir, faulty=Rank(patch=patch))
    assert codes == [2, 2]
    assert re.search(r"clocks differ from \S+: \S+ by \+60 s; start time synchronisation", fault_line(errors))


@pytest.mark.e2e
def test_port_that_is_taken_and_rank_0_that_is_not_there(run_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        place = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}
        port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(taken.getsockname()[1])}
        command = [sys.executable, "-m", "nemo_vibethinker.preflight", "--run-dir", str(run_dir), "--timeout-s", "8"]
        environment = dict(os.environ) | place | port
        done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert done.returncode == 2
        assert re.search(r"rank 0 on \S+ cannot open port \d+ .*; set MASTER_PORT", fault_line(done.stderr))
    environment |= {"RANK": "1"}
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert re.search(r"rank 1 on \S+: rank 0 at 127.0.0.1:\d+ does not answer within 4 s", fault_line(done.stderr))


def gpu(name: str = H800, uuid: str = "a", used_mb: int = 4, driver: str = "580.95.05") -> dict[str, object]:
    return {"name": name, "uuid": uuid, "driver": driver, "used_mb": used_mb}


def answer(host: str = "node1", gpus: list[dict] | None = None, **other: object) -> dict:
    versions = {"torch": "2.13.0", "cuda": "13.0"}
    plain = {"host": host, "gpus": gpus or [], "smi_fault": "", "torch_gpus": len(gpus or []), "versions": versions}
    return plain | {"folder": "/runs/x", "free_bytes": 10**9} | other


EIGHT = [gpu(uuid=str(number)) for number in range(8)]


def test_gpus_of_the_right_kind_and_number_pass() -> None:
    answers = [answer("node1", EIGHT)] * 8 + [answer("node2", EIGHT)] * 8
    assert judge.check_gpus(answers, judge.Expected("H800-SXM", 8)) == "H800-SXM, one a process, driver 580.95.05"


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ([answer("n1", EIGHT)] * 8 + [answer("n2", EIGHT[:7])] * 8, r"^n2 has 7 GPUs, 8 are asked for"),
        ([answer("n1", [*EIGHT[:7], gpu("NVIDIA H100 80GB HBM3", "9")])] * 8, r"^n1 has H100-SXM where"),
        ([answer("n1", [*EIGHT[:7], gpu(uuid="9", used_mb=70_000)])] * 8, r"1 GPUs are in use \(70,000 MB\)"),
        ([answer("n1", EIGHT, smi_fault="nvidia-smi fails: x")], r"^n1: nvidia-smi fails: x$"),
        ([answer("n1", EIGHT, torch_gpus=0)] * 8, r"torch sees no GPU .*CUDA_VISIBLE_DEVICES"),
        ([answer("n1", [gpu(driver="535.1")], torch_gpus=0)], r"driver 535.1 is too old for CUDA 13.0: install 580"),
        ([answer("n1", [gpu()], torch_gpus=0, versions={})], r"torch is a build for CPUs"),
    ],
)
def test_wrong_gpus_are_named(answers: list[dict], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        judge.check_gpus(answers, judge.Expected("H800-SXM", 0))


def test_each_process_may_see_its_own_gpu_only() -> None:
    answers = [answer("n1", [one], torch_gpus=1) for one in EIGHT]
    judge.check_gpus(answers, judge.Expected("H800-SXM", 8))
    with pytest.raises(ValueError, match="n1 has 1 GPUs, 8 are asked for"):
        judge.check_gpus([answers[0]] * 8, judge.Expected("H800-SXM", 8))


def test_nvidia_smi_that_fails_or_says_something_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", fake_smi(tmp_path / "bin", [H800] * 8)["PATH"])
    assert [gpu.name for gpu in find_gpus()] == [H800] * 8
    fake_smi(tmp_path / "bin", [], before="echo 'NVIDIA-SMI has failed'; exit 9")
    with pytest.raises(ValueError, match="nvidia-smi fails: NVIDIA-SMI has failed; load or reinstall"):
        find_gpus()


def test_figures() -> None:
    assert bus_rate(10**9, 2, 0.5) == 2.0  # 2 * 1/2 * 1 GB in half a second
    assert bus_rate(10**9, 4, 1.0) == 1.5
    assert version_numbers("2.13.0+cu130") == (2, 13, 0)
