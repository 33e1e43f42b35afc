"""The chain of jobs and their scripts, without a Slurm."""

import re
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from launcher import cli, run
from launcher.slurm.chain import chain, smallest_whole_nodes
from launcher.slurm.scripts import render_scripts
from launcher.slurm.snapshot import take_snapshot
from nemo_vibethinker.config import Config
from nemo_vibethinker.config.cluster import time_limit_seconds
from nemo_vibethinker.pipeline import Part

PAPER = ("recipe=ssp_full", "scale=vibethinker_1p5b", "cluster=slurm_h800")
ODD = Path("/tmp/my runs/o'brien")


def config(*words: str) -> Config:
    return cli.parse([*PAPER, *words]).config


def test_chain_of_the_paper() -> None:
    jobs = {job.name: job for job in chain(config())}
    assert list(jobs) == [
        "preflight",
        "prepare",
        "sft",
        "probe.parts",
        "probe",
        "fuse",
        "mgpo.math_16k",
        "mgpo.math_32k",
        "mgpo.code",
        "evaluate.parts",
        "evaluate",
        "export",
    ]
    for before, after in pairwise(jobs):
        assert jobs[after].after == (before,)
    assert (jobs["sft"].nodes, jobs["sft"].processes_per_node, jobs["sft"].replicas) == (8, 8, 32)
    assert (jobs["probe.parts"].nodes, jobs["probe.parts"].replicas, jobs["probe.parts"].parts) == (1, 4, 11)
    assert (jobs["prepare"].nodes, jobs["prepare"].gpus_per_node) == (1, 0)


def test_chain_of_what_is_left() -> None:
    left = chain(config(), done=["prepare", "sft", "probe", "fuse"])
    assert [job.name for job in left][:2] == ["preflight", "mgpo.math_16k"]
    assert chain(config(), done=config().stages) == []


@pytest.mark.parametrize(("ranks", "gpus", "nodes"), [(1, 8, 1), (2, 8, 1), (16, 8, 2), (3, 8, 3), (8, 1, 8)])
def test_copy_of_a_model_gets_whole_nodes(ranks: int, gpus: int, nodes: int) -> None:
    assert smallest_whole_nodes(ranks, gpus) == nodes


SITES = (
    (),
    (
        "cluster.account=a",
        "cluster.partition=gpu",
        "cluster.qos=q",
        "cluster.constraint=h800&ib",
        "cluster.reservation=r",
    ),
    ("cluster.container=pyxis", "cluster.image=reg#team/image:1", "cluster.mounts=[/data:/data:ro]"),
    ("cluster.container=apptainer", "cluster.image=/images/my image.sif", "cluster.mounts=[/data:/data]"),
    ("cluster.setup=[module load cuda]", "cluster.environment=[NCCL_SOCKET_IFNAME=ib0,WORDS=two words]"),
    ("cluster.gres=--gpus-per-node=h800:{count}", "cluster.sbatch=[--mail-type=FAIL]", "cluster.cpus_per_process=12"),
)


@pytest.mark.parametrize("site", SITES)
def test_scripts_are_clean(site: tuple[str, ...], tmp_path: Path) -> None:
    """By shellcheck, and by bash where that is missing; also where the run's path has a blank and a quote."""
    settings = config(*site)
    scripts = render_scripts(settings, chain(settings), ODD, ODD / "slurm" / "code" / "0123")
    files = [tmp_path / f"{name}.sh" for name in scripts]
    for file, text in zip(files, scripts.values(), strict=True):
        file.write_text(text)
        assert subprocess.run(["bash", "-n", file], capture_output=True, text=True).stderr == ""
    if shutil.which("shellcheck") is None:
        pytest.skip("no shellcheck (apt-get install shellcheck)")
    found = subprocess.run(["shellcheck", *files], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


def options(text: str) -> list[str]:
    return re.findall(r"^#SBATCH (.*)$", text, re.MULTILINE)


def test_settings_reach_sbatch_and_srun() -> None:
    settings = config(*SITES[1], *SITES[2], *SITES[5])
    scripts = render_scripts(settings, chain(settings), Path("/runs/x"), Path("/runs/x/slurm/code/0123"))
    training, preparing, array = (scripts[name] for name in ("sft", "prepare", "probe.parts"))
    asked = options(training)
    for option in (
        "--account=a",
        "--partition=gpu",
        "--qos=q",
        "--constraint=h800&ib",
        "--reservation=r",
        "--gpus-per-node=h800:8",
        "--mail-type=FAIL",
        "--nodes=8",
        "--cpus-per-task=96",
        "--time=24:00:00",
        "--signal=B:USR1@1200",
        "--open-mode=append",
        "--requeue",
    ):
        assert option in asked
    assert not any("gpus" in option for option in options(preparing))
    assert "--array=1-11%4" in options(array)
    assert '--part "$part"' in array
    assert "--container-image='reg#team/image:1'" in training
    assert "--container-mounts=/runs/x:/runs/x,/data:/data:ro" in training
    assert "python3 -m launcher.torchrun --nnodes 8 --nproc-per-node 8" in training


def test_plan_shows_the_jobs_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([*PAPER, "plan=true", f"run.root={tmp_path}", "run.name=x", "budget.on_exceed=warn"]) == 0
    out = capsys.readouterr().out
    assert "  probe, 11 parts         1 x 8 GPUs  after sft\n" in out
    assert f"script of sft, one of 12 in {tmp_path}/x/slurm/" in out
    assert "  | #SBATCH --nodes=8\n" in out
    assert "  prepare: sbatch --job-name=x.prepare" in out
    assert not list(tmp_path.iterdir())


def test_snapshot_is_taken_once_for_each_state_of_the_code(tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "code"
    for package in ("nemo_vibethinker", "launcher"):
        (root / package / "__pycache__").mkdir(parents=True)
        (root / package / "a.py").write_text("1")
        (root / package / "__pycache__" / "a.pyc").write_text("")
    first = take_snapshot(root, folder)
    assert take_snapshot(root, folder) == first
    (root / "launcher" / "a.py").write_text("2")
    second = take_snapshot(root, folder)
    assert second != first
    assert (first / "launcher" / "a.py").read_text() == "1"
    assert not list(second.rglob("__pycache__"))
    assert sorted(path.name for path in folder.iterdir()) == sorted([first.name, second.name])


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("cluster.nodes=4 scale.parallel.data=32", "scale.parallel asks for 64 processes"),
        ("cluster.time_limit=12h", "cluster.time_limit=12h: write minutes, H:M:S or D-H:M:S"),
        ("cluster.grace_seconds=90000", "cluster.grace_seconds=90000 leaves nothing of cluster.time_limit"),
        ("cluster.container=pyxis", "cluster.image goes with cluster.container"),
        ("cluster.environment=[1X]", "cluster.environment: '1X': expected NAME=VALUE"),
        ("cluster.mounts=[/data]", "cluster.mounts: '/data': expected HOST:INSIDE"),
        ("cluster.sbatch=[partition]", "cluster.sbatch: 'partition': expected an option of sbatch"),
        ("cluster.scheduler=pbs", "cluster.scheduler=pbs: choose one of none, slurm"),
    ],
)
def test_bad_settings_are_one_line(word: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        config(*word.split())


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 5400), ("1:30", 90), ("2:00:00", 7200), ("1-0", 86400), ("1-2:03", 93780), ("1-02:03:04", 93784)],
)
def test_time_limits(text: str, seconds: int) -> None:
    assert time_limit_seconds(text) == seconds


def test_parts_cover_a_stage_once() -> None:
    parts = [Part.parse(f"{number}/3") for number in (1, 2, 3)]
    taken = [[index for index in range(8) if index % part.count == part.index] for part in parts]
    assert sorted(index for its in taken for index in its) == list(range(8))
    assert [str(part) for part in parts] == ["1/3", "2/3", "3/3"]
    for text in ("0/3", "4/3", "3", "a/b", "1/"):
        with pytest.raises(ValueError, match=f"--part {text}: expected NUMBER/COUNT"):
            Part.parse(text)
