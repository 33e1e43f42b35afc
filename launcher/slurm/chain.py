"""The jobs of a run and what each waits for."""

import shlex
import sys
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from nemo_vibethinker.config import MATH_DOMAINS, Config
from nemo_vibethinker.costs.work import probed_checkpoints, smallest_whole_nodes

PREFLIGHT = "preflight"
TRAINING = ("sft", "mgpo")  # stages that use all nodes; the others, but for benchmarks, one copy of the model


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job, or with `parts` an array of as many."""

    name: str  # of its script and log: "sft"; "probe.parts" for the array of a stage
    stage: str  # that it works on, or "preflight"
    after: tuple[str, ...]  # jobs that must have succeeded
    nodes: int
    processes_per_node: int
    gpus_per_node: int
    replicas: int  # of the model; 0: no model
    parts: int = 0

    @property
    def processes(self) -> int:
        """Over all nodes."""
        return self.nodes * self.processes_per_node

    @property
    def title(self) -> str:
        """What the queue shows and the user reads."""
        return f"{self.stage}, {self.parts} parts" if self.parts else self.name


def chain(config: Config, done: Collection[str] = ()) -> list[Job]:
    """The jobs of the stages that are not done, in an order in which each comes after what it waits for.

    Probing and evaluation are an array over models, and then a job that puts the results together.
    """
    jobs: list[Job] = []
    todo = [stage for stage in config.stages if stage not in done]
    if any(stage != "prepare" for stage in todo):
        jobs.append(_job(config, PREFLIGHT, (), training=True))
    for stage in todo:
        after = (jobs[-1].name,) if jobs else ()
        training = stage.split(".")[0] in TRAINING or (stage == "evaluate" and bool(config.eval.benchmarks))
        count = _parts(config, stage)
        if count > 1:
            jobs.append(_job(config, stage, after, training=False, parts=count))
            after = (jobs[-1].name,)
        jobs.append(_job(config, stage, after, training))
    return jobs


def _parts(config: Config, stage: str) -> int:
    """Number of models that a stage tries one after the other, as far as the configuration tells; 0: no such stage."""
    if stage == "probe":
        return probed_checkpoints(config)
    if stage == "evaluate":
        specialists = len(config.probe.domains or MATH_DOMAINS) if "probe" in config.stages else 0
        return specialists + sum(s in ("sft", "fuse") or s.startswith("mgpo.") for s in config.stages)
    return 0


def _job(config: Config, stage: str, after: tuple[str, ...], training: bool, parts: int = 0) -> Job:
    cluster, parallel = config.cluster, config.scale.parallel
    name = f"{stage}.parts" if parts else stage
    if stage == "prepare":
        return Job(name=name, stage=stage, after=after, nodes=1, processes_per_node=1, gpus_per_node=0, replicas=0)
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    nodes = cluster.nodes if training else smallest_whole_nodes(model_ranks, cluster.gpus_per_node)
    return Job(
        name=name,
        stage=stage,
        after=after,
        nodes=nodes,
        processes_per_node=cluster.gpus_per_node,
        gpus_per_node=cluster.gpus_per_node,
        replicas=nodes * cluster.gpus_per_node // model_ranks,
        parts=parts,
    )


def python_command(config: Config, job: Job, run_dir: Path) -> str:
    """The command line that a node runs, as shell text; `$part`, `$head` and `$port` are the script's variables."""
    cluster = config.cluster
    python = cluster.python or (sys.executable if cluster.container == "none" else "python3")
    if job.stage == PREFLIGHT:
        work = ["-m", "nemo_vibethinker.preflight", "--run-dir", str(run_dir)]
    else:
        work = ["-m", "nemo_vibethinker.pipeline", "--run-dir", str(run_dir), "--stage", job.stage]
    if job.stage != PREFLIGHT and job.replicas not in (0, config.scale.parallel.data):
        work += ["--replicas", str(job.replicas)]
    text = shlex.join(work) + (' --part "$part"' if job.parts else "")
    if job.processes == 1:
        return f"{shlex.quote(python)} {text}"
    nodes = '--master-addr "$head" --master-port "$port"' if job.nodes > 1 else "--standalone"
    torchrun = f"-m launcher.torchrun --nnodes {job.nodes} --nproc-per-node {job.processes_per_node} {nodes}"
    return f"{shlex.quote(python)} {torchrun} {text}"
