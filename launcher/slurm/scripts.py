"""The sbatch scripts of a run, from the templates in launcher/templates."""

import shlex
import signal
from collections.abc import Iterable, Sequence
from pathlib import Path

import jinja2

from launcher.slurm.chain import Job, python_command
from nemo_vibethinker.config import Config
from nemo_vibethinker.interruption import SAVED

TEMPLATES = Path(__file__).resolve().parent.parent / "templates"


def render_scripts(config: Config, jobs: Sequence[Job], run_dir: Path, code: Path) -> dict[str, str]:
    """Job name -> script. `code`: folder with the packages that the jobs run."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    templates = jinja2.Environment(
        loader=loader,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    templates.filters["quote"] = lambda value: shlex.quote(str(value))
    template = templates.get_template("job.sh.j2")
    return {job.name: template.render(_values(config, job, run_dir, code)) for job in jobs}


def _values(config: Config, job: Job, run_dir: Path, code: Path) -> dict[str, object]:
    cluster = config.cluster
    pairs = (pair.partition("=") for pair in cluster.environment)
    prefix, step_options = _container(config, run_dir, code)
    return {
        "job": job,
        "run": run_dir,
        "script": run_dir / "slurm" / f"{job.name}.sh",
        "options": list(_options(config, job, run_dir)),
        "code": code,
        "threads": cluster.threads_per_process,
        "environment": [f"{name}={shlex.quote(value)}" for name, _, value in pairs],
        "setup": cluster.setup,
        "stalled_requeues": cluster.stalled_requeues,
        "step_options": [*_cpus(config, job), *step_options],
        "command": prefix + python_command(config, job, run_dir),
        "saved": SAVED,
        "signalled": [128 + number for number in (signal.SIGTERM, signal.SIGUSR1)],
    }


def _options(config: Config, job: Job, run_dir: Path) -> Iterable[str]:
    """sbatch's options. What a job waits for is not among them: it is known when the jobs before have numbers."""
    cluster = config.cluster
    number = "%A_%a" if job.parts else "%j"
    yield f"--job-name={run_dir.name}.{job.name}"
    yield f"--output={shlex.quote(f'{run_dir}/slurm/logs/{job.name}.{number}.out')}"
    yield "--open-mode=append"
    yield "--requeue"
    yield f"--time={cluster.time_limit}"
    yield f"--signal=B:USR1@{cluster.grace_seconds}"
    yield f"--nodes={job.nodes}"
    yield "--ntasks-per-node=1"
    yield from _cpus(config, job)
    if not cluster.cpus_per_process and job.gpus_per_node:
        yield "--exclusive"
        yield "--mem=0"
    if job.gpus_per_node and cluster.gres:
        yield cluster.gres.format(count=job.gpus_per_node)
    if job.parts:
        yield f"--array=1-{job.parts}%{cluster.tasks_at_once}"
    partition = cluster.cpu_partition if job.gpus_per_node == 0 and cluster.cpu_partition else cluster.partition
    named = {"account": cluster.account, "partition": partition, "qos": cluster.qos}
    named |= {"constraint": cluster.constraint, "reservation": cluster.reservation}
    yield from (f"--{name}={value}" for name, value in named.items() if value)
    yield from cluster.sbatch


def _cpus(config: Config, job: Job) -> list[str]:
    """CPUs of the one task on each node, which holds all of the node's processes."""
    each = config.cluster.cpus_per_process
    return [f"--cpus-per-task={each * job.processes_per_node}"] if each else []


def _container(config: Config, run_dir: Path, code: Path) -> tuple[str, list[str]]:
    """(text before the command, options of srun) that put a step into the container."""
    cluster = config.cluster
    mounts = [*dict.fromkeys([f"{run_dir}:{run_dir}", *cluster.mounts])]
    if cluster.container == "pyxis":
        return "", [
            f"--container-image={shlex.quote(cluster.image)}",
            f"--container-mounts={shlex.quote(','.join(mounts))}",
        ]
    if cluster.container == "apptainer":
        binds = " ".join(f"--bind {shlex.quote(mount)}" for mount in mounts)
        return f"apptainer exec --nv {binds} {shlex.quote(cluster.image)} ", []
    return "", []
