"""Runs as chains of jobs of a real Slurm: results, time limits, preemption, lost nodes, failures, refusals.

All runs are submitted at once and share two nodes: `n1` is for what must stay undisturbed, `n2` is taken from one run.
"""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from conftest import MINIMAL, launcher_command, override, write_coin_data
from slurm_cluster import Slurm, missing

from nemo_vibethinker.ledger import summarise
from nemo_vibethinker.metrics_log import read_metrics
from nemo_vibethinker.run_folder import read_json_lines

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(bool(missing()), reason=f"no Slurm can be started here: {missing()}"),
]

TIMES = {"time", "attempt", "part", "tokens_per_second", "generate_share", "grade_share", "update_share"}
TIMES |= {"idle_share", "sync_share", "host_memory_mb", "seconds", "generate_seconds", "update_seconds"}
TIMES |= {"spent_hours", "projected_hours"}
CLUSTER = ("cluster.gpu=", "cluster.nodes=1", "cluster.gpus_per_node=1", "cluster.cpus_per_process=1")
CLUSTER += ("cluster.threads_per_process=1", "cluster.time_limit=30", "cluster.grace_seconds=300")
WHOLE = ("probe.domains=[algebra]", "sft.first_checkpoint=75")
WHOLE += tuple(f"signal.{stage}.{key}" for stage in ("math_16k", "math_32k", "code") for key in ("steps=2",))
# One stage that trains for a minute.
LONG = ("stages=prepare,sft", "sft.steps=800", "sft.global_batch_size=32", "sft.checkpoint_interval=200")
LONG += ("sft.first_checkpoint=800",)
WIDE = ("stages=prepare,sft", "scale.parallel.data=4", "sft.micro_batch_size=1", "sft.steps=20")
WIDE += ("sft.checkpoint_interval=10", "sft.first_checkpoint=0", "cluster.nodes=2", "cluster.gpus_per_node=2")
PATIENCE_S = 600


class Runs:
    """The launcher under one Slurm, and where its runs stand."""

    def __init__(self, slurm: Slurm, root: Path) -> None:
        self.slurm, self.root = slurm, root
        write_coin_data(root / "coin.jsonl")
        self.arguments: dict[str, list[str]] = {}

    def describe(self, name: str, *settings: str, cluster: str = "slurm_h800") -> list[str]:
        """The command line of a run."""
        base = ("recipe=ssp_full", f"data.sft={self.root}/coin.jsonl", *MINIMAL, f"cluster={cluster}")
        place = (f"run.root={self.root}", f"run.name={name}")
        self.arguments[name] = override((*base, *(CLUSTER if cluster != "local" else ()), *place), *settings)
        return self.arguments[name]

    def launch(self, *arguments: str, code: int = 0, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run the launcher to its end."""
        where = self.slurm.environment | {"OMP_NUM_THREADS": "1"} | environment
        done = subprocess.run(launcher_command(*arguments), env=where, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{done.stdout}{done.stderr}"
        return done

    def command(self, word: str, name: str, *more: str) -> str:
        """The output of `status`, `logs` or `cancel`."""
        return self.launch(word, *more, f"run.name={name}", f"run.root={self.root}").stdout

    def folder(self, name: str) -> Path:
        return self.root / name

    def wait(self, name: str, ready: Callable[[str], bool]) -> str:
        """Wait until the run's status is as wanted; returns it."""
        deadline = time.monotonic() + PATIENCE_S
        while not ready(shown := self.command("status", name)):
            assert "state    stopped" not in shown or ready(shown), f"{shown}\n{self.command('logs', name)}"
            assert time.monotonic() < deadline, shown
            time.sleep(1)
        return shown

    def finish(self, name: str) -> str:
        return self.wait(name, lambda shown: "state    finished" in shown)

    def wait_for_step(self, name: str, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_S
        while not any(line["step"] >= step for line in read_json_lines(self.folder(name) / "run.jsonl")):
            assert time.monotonic() < deadline, self.command("status", name)
            time.sleep(0.2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    """A Slurm with the disturbed run, the one of a short time limit, the whole chain and the wide one submitted.

    Beside them the same chain and the same long training run to their ends without it.
    """
    root = tmp_path_factory.mktemp("slurm")
    slurm = Slurm(root)
    slurm.start()
    made = Runs(slurm, root)
    stay = "cluster.sbatch=[--nodelist=n1]"
    short = "cluster.sbatch=[--nodelist=n1,--time=2,--signal=B:USR1@60]"  # by Slurm's timers after 30 to 60 s
    for name, settings in (
        ("wide", WIDE),
        ("limited", (*LONG, short, "cluster.stalled_requeues=20")),  # slow machines: some end before the first step
        ("disturbed", LONG),
        ("chain", (*WHOLE, stay)),
    ):
        made.launch(*made.describe(name, *settings))
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1"}
    local = [
        subprocess.Popen(launcher_command(*made.describe(name, *settings, cluster="local")), env=environment)
        for name, settings in (("local-chain", WHOLE), ("local-long", LONG))
    ]
    yield made
    for process in local:
        process.terminate()
        process.wait(timeout=60)
    slurm.stop()


def figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of run.jsonl without what the clock decides."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(folder / "run.jsonl")]


def attempts(folder: Path, stage: str = "sft") -> list[list[int]]:
    """The steps of each attempt of a stage."""
    found: dict[int, list[int]] = {}
    for line in read_json_lines(folder / "run.jsonl"):
        if line["stage"] == stage and "step" in line:
            found.setdefault(line["attempt"], []).append(line["step"])
    return [found[number] for number in sorted(found)]


def test_second_launch_of_a_run_in_flight_submits_nothing(runs: Runs) -> None:
    before = runs.slurm.run("squeue", "-h", "-o", "%i", "-n", ",".join(["chain.export", "chain.sft"]))
    again = runs.launch(*runs.arguments["chain"])
    assert "is in flight" in again.stdout
    assert "nothing was submitted" in again.stdout
    assert runs.slurm.run("squeue", "-h", "-o", "%i", "-n", "chain.export,chain.sft") == before


def test_stage_on_two_nodes_with_two_processes_each(runs: Runs) -> None:
    runs.finish("wide")
    folder = runs.folder("wide")
    starts = [line for line in read_json_lines(folder / "ledger.jsonl") if line["event"] == "start"]
    assert {line["stage"]: line["processes"] for line in starts} == {"prepare": 1, "sft": 4}
    preflight = runs.command("logs", "wide", "preflight")
    assert "processes       ok  4 on" in preflight
    assert "all-reduce      ok" in preflight
    script = (folder / "slurm" / "sft.sh").read_text()
    assert "--nnodes 2 --nproc-per-node 2" in script
    assert "#SBATCH --gres=gpu:2" in script
    assert len(figures(folder)) == 20


def test_preempted_job_saves_and_one_whose_node_dies_resumes(runs: Runs) -> None:
    runs.wait_for_step("disturbed", 20)
    assert " on n2" in runs.command("status", "disturbed")
    submit = ["sbatch", "--parsable", "-p", "high", "--nodelist=n2", "--exclusive", "--output=/dev/null"]
    runs.slurm.run(*submit, "--wrap", "sleep 1")
    runs.wait("disturbed", lambda shown: len(attempts(runs.folder("disturbed"))) == 2)
    first, second = attempts(runs.folder("disturbed"))[:2]
    assert second[0] == first[-1] + 1, "the preempted attempt did not save"
    node = "n1" if " on n1" in runs.command("status", "disturbed") else "n2"
    if node == "n2":
        runs.wait_for_step("disturbed", 260)  # that of step 200 is written beside training
        runs.slurm.crash_node("n2")
    runs.finish("disturbed")
    runs.wait("local-long", lambda shown: "state    finished" in shown)
    assert figures(runs.folder("disturbed")) == figures(runs.folder("local-long"))
    tries = attempts(runs.folder("disturbed"))
    assert node == "n1" or (len(tries) == 3 and tries[2][0] % 200 == 1), "it did not go on from its last save"


def test_job_at_its_time_limit_requeues_itself_and_ends_like_an_undisturbed_one(runs: Runs) -> None:
    runs.finish("limited")
    folder = runs.folder("limited")
    tries = attempts(folder)
    assert len(tries) > 1, "it was done before its time limit"
    for before, after in pairwise(tries):
        assert after[0] == before[-1] + 1, "an attempt did not save"
    numbers = json.loads((folder / "slurm" / "submitted.json").read_text())["jobs"]
    noted = folder / "slurm" / "jobs" / f"{numbers['sft']}.jsonl"
    # A signal between the end of the stage and that of its process costs one more attempt, which finds it done.
    runs.wait("limited", lambda shown: read_json_lines(noted)[-1]["event"] == "end")
    notes = read_json_lines(noted)
    events = [note["event"] for note in notes]
    assert events == ["start", "requeue"] * (len(events) // 2 - 1) + ["start", "end"]
    codes = [note["code"] for note in notes if note["event"] == "requeue"]
    assert codes.count(75) == len(tries) - 1
    assert set(codes) <= {75, 128 + signal.SIGUSR1}  # the latter before the first step
    number = codes.index(75) + 1
    log = folder / "slurm" / "logs" / f"sft.{numbers['sft']}.{number}.log"  # one for each attempt
    assert "stopped by SIGUSR1: what was done is saved" in log.read_text()
    runs.wait("local-long", lambda shown: "state    finished" in shown)
    assert figures(folder) == figures(runs.folder("local-long"))


def test_chain_of_jobs_ends_like_a_local_run(runs: Runs) -> None:
    runs.finish("chain")
    runs.finish("local-chain")
    chain, local = runs.folder("chain"), runs.folder("local-chain")
    for name in ("02-probe/probe_table.json", "06-mgpo.code/prompts.json", "07-evaluate/scores.json"):
        assert (chain / "stages" / name).read_bytes() == (local / "stages" / name).read_bytes(), name
    weights = "hf/model.safetensors"
    assert (chain / weights).read_bytes() == (local / weights).read_bytes()
    assert (chain / "report.html").is_file()
    assert [line for line in figures(chain) if line["stage"] not in ("probe", "evaluate")] == [
        line for line in figures(local) if line["stage"] not in ("probe", "evaluate")
    ]
    assert [line["step"] for line in figures(chain) if line["stage"] == "probe"] == [1, 2]
    costs = {cost.stage: cost.attempts for cost in summarise(chain / "ledger.jsonl")}
    assert costs["probe"] == 3  # an array of two, and the job that puts them together
    shown = runs.launch(*runs.arguments["chain"]).stdout
    assert "done earlier" in shown
    assert f"report: {chain / 'report.html'}" in shown


def test_failed_job_cancels_its_followers_and_says_why(runs: Runs) -> None:
    """The nodes have no H800: the preflight says so."""
    runs.launch(*runs.describe("failed", *WIDE, "cluster.gpu=H800-SXM", "cluster.nodes=1", "scale.parallel.data=2"))
    shown = runs.wait("failed", lambda shown: "2 stages after it cancelled" in shown)
    assert "state    stopped, 0 of 2 stages done, preflight failed, 2 stages after it cancelled" in shown
    assert "exit 2: " in shown
    assert "cluster.gpu=H800-SXM" in shown
    again = runs.launch(*override(runs.arguments["failed"], "cluster.gpu=")).stdout
    assert "prepare" in again  # what is left is submitted
    assert "cancelled jobs" in runs.command("cancel", "failed")
    runs.wait("failed", lambda shown: "running" not in shown and "pending" not in shown)


def test_refused_job_leaves_nothing_behind(runs: Runs) -> None:
    given = runs.describe("refused", *WIDE, "cluster.cpu_partition=nosuch", "cluster.nodes=1", "scale.parallel.data=2")
    refused = runs.launch(*given, code=2).stderr
    assert refused.startswith("error: prepare: sbatch: error: ")
    assert "invalid partition specified: nosuch" in refused
    assert refused.endswith("; nothing was submitted\n")
    assert refused.count("\n") == 1
    assert runs.slurm.run("squeue", "-h", "-n", "refused.preflight") == ""


def test_without_sbatch_it_is_one_line(runs: Runs) -> None:
    path = os.pathsep.join(p for p in os.environ["PATH"].split(os.pathsep) if not (Path(p) / "sbatch").exists())
    refused = runs.launch(*runs.describe("nowhere", *WIDE), code=2, PATH=path).stderr
    assert (
        refused == "error: there is no sbatch on PATH: start it on a login node of the cluster, or set cluster=local\n"
    )
