"""Where a run works: this machine, or a cluster's Slurm and how its jobs are asked for."""

import re
from dataclasses import dataclass, field

SLACK_SECONDS = 60  # Slurm checks time limits, and sends what comes before them, about once a minute
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<first>\d+)(?::(?P<second>\d+))?(?::(?P<third>\d+))?")


@dataclass(kw_only=True)
class ClusterConfig:
    """Where: chosen by `cluster=NAME`. Decides no result: a run may go on somewhere else."""

    name: str = "local"
    processes: int = 1  # that one run may use; a layout that needs more still gets them. Slurm: nodes * gpus_per_node
    async_save: bool = True  # training goes on while a checkpoint is written; costs host memory for a copy of it
    threads_per_process: int = 1  # OMP_NUM_THREADS; small models are fastest with one thread a process
    gpu: str = (
        ""  # of the table in costs/gpus.py, like H800-SXM: layouts that cannot fit it are refused; empty: no check
    )
    efficiency: float = 0.4  # assumed share of the GPU's BF16 peak that its kernels reach; for estimates only
    scheduler: str = "none"  # none: processes on this machine | slurm: a chain of jobs
    nodes: int = 1
    gpus_per_node: int = 1  # processes on a node
    gres: str = "--gres=gpu:{count}"  # how a node's GPUs are asked for, {count} is their number; empty: not at all
    account: str = ""
    partition: str = ""
    cpu_partition: str = ""  # of the job that prepares the data, which needs no GPU; empty: `partition`
    qos: str = ""
    constraint: str = ""
    reservation: str = ""
    time_limit: str = (
        "24:00:00"  # of one attempt of a job: minutes, H:M:S or D-H:M:S; a stage takes as many as it needs
    )
    grace_seconds: int = (
        900  # before the time limit, for the step at work and the save; Slurm's timers are a minute slack
    )
    stalled_requeues: int = 3  # attempts in a row that save nothing, after which a job gives up
    tasks_at_once: int = 4  # of a job array: checkpoints that are probed, models that are evaluated side by side
    sbatch: list[str] = field(default_factory=list)  # more options of sbatch, like --mail-type=FAIL
    setup: list[str] = field(default_factory=list)  # shell lines before the work, like 'module load cuda'
    environment: list[str] = field(default_factory=list)  # NAME=VALUE
    container: str = "none"  # none | pyxis (enroot) | apptainer
    image: str = ""  # of the container: a name, or a file as the container's tool takes it
    mounts: list[str] = field(default_factory=list)  # HOST:INSIDE[:OPTIONS]; the run's folder is always mounted
    cpus_per_process: int = 0  # 0: whole nodes, for this run alone
    python: str = ""  # on the nodes; empty: the launcher's own, in a container python3


def time_limit_seconds(text: str) -> int:
    """Seconds of a time limit as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.

    Raises:
        ValueError: of another form.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"cluster.time_limit={text}: write minutes, H:M:S or D-H:M:S")
    days, first, second, third = (int(match[name] or 0) for name in ("days", "first", "second", "third"))
    if match["days"] is not None:
        return ((days * 24 + first) * 60 + second) * 60 + third
    if match["third"] is not None:
        return (first * 60 + second) * 60 + third
    return first * 60 + second


def check_cluster(cluster: ClusterConfig, world_size: int) -> None:
    """Check what types alone cannot.

    Raises:
        ValueError: one line that names the key and the fix.
    """
    if cluster.scheduler == "none":
        return
    available = cluster.nodes * cluster.gpus_per_node
    if world_size != available:
        raise ValueError(
            f"scale.parallel asks for {world_size} processes, cluster.nodes*cluster.gpus_per_node gives {available}: "
            "set scale.parallel.data=0 to use them all, or cluster.nodes"
        )
    limit = time_limit_seconds(cluster.time_limit)
    if cluster.grace_seconds + SLACK_SECONDS >= limit:
        raise ValueError(
            f"cluster.grace_seconds={cluster.grace_seconds} leaves nothing of cluster.time_limit={cluster.time_limit}"
        )
    if (cluster.container == "none") != (not cluster.image):
        raise ValueError("cluster.image goes with cluster.container=pyxis or apptainer, and they with it")
    for key, form, what in _LISTS:
        for value in getattr(cluster, key):
            if not re.fullmatch(form, value):
                raise ValueError(f"cluster.{key}: '{value}': expected {what}")


_LISTS = (
    ("environment", r"[A-Za-z_]\w*=.*", "NAME=VALUE"),
    ("mounts", r"[^\s:,]+:[^\s:,]+(:\S+)?", "HOST:INSIDE"),
    ("sbatch", r"-.*", "an option of sbatch, like --mail-type=FAIL"),
)
