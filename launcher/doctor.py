"""`doctor [scale=NAME] [cluster=NAME] [key=value ...]`: whether this machine can do a run, and the fix where it cannot.

Imports no torch and starts nothing that lasts: it answers on a login node. `full=true` also runs a small all-reduce.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from launcher import cli
from launcher.local import run_process, worker_environment
from nemo_vibethinker.config import Config
from nemo_vibethinker.costs.memory import peak_memory, training_rows
from nemo_vibethinker.costs.storage import run_storage
from nemo_vibethinker.preflight import facts, judge, packages
from nemo_vibethinker.reward.sandbox import SandboxError, find_sandbox
from nemo_vibethinker.run_folder import open_run

OK, WARN, FAIL = "ok", "warn", "FAIL"
TESTED_PYTHON = (3, 11)
OPEN_FILES = 4096  # a node's graders, shards of checkpoints and sockets together
SHARED_MEMORY = 10**9  # NCCL and vLLM exchange data there; containers get 64 MB by default
SLURM_TOOLS = ("sbatch", "srun", "squeue", "scontrol", "scancel")
CONTROLLER_TIMEOUT_S = 5


@dataclass(frozen=True)
class Check:
    """A line of the output. `fix` is empty where nothing is to be done."""

    name: str
    status: str  # ok | warn | FAIL
    found: str
    fix: str = ""


def main(arguments: list[str]) -> int:
    """Print the checks. Returns 0, or 2 if something that the run needs is missing.

    Raises:
        ValueError: the command line or the configuration it makes is wrong.
    """
    words = dict(recipe="ssp_full") | cli.split_arguments(arguments)
    if words.get("cluster", "local") != "local" and "scale" not in words:
        raise ValueError(
            f"doctor: name the scale too, it decides disk and layout: doctor scale=NAME cluster={words['cluster']}"
        )
    full, as_json = (
        cli.parse_value(bool, words.pop(name, "false"), f"command line: {name}") for name in ("full", "json")
    )
    config = cli.parse([f"{key}={value}" for key, value in words.items()]).config
    checks = [check for group in GROUPS for check in group(config)]
    if full:
        checks.append(_all_reduce(config, quiet=as_json))
    print(json.dumps([dataclasses.asdict(check) for check in checks], indent=1) if as_json else render(checks))
    return 2 if any(check.status == FAIL for check in checks) else 0


def render(checks: list[Check]) -> str:
    """One aligned line a check, with its fix, and the verdict."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.found}" + f" -> {check.fix}" * bool(check.fix))
    failed, warned = (sum(check.status == status for check in checks) for status in (FAIL, WARN))
    verdict = f"{failed} to fix before a run" if failed else "ready"
    return "\n".join([*lines, f"\n{verdict}, {warned} warnings, {len(checks)} checks"])


def _python(config: Config) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == TESTED_PYTHON:
        yield Check("python", OK, version)
    else:
        yield Check("python", WARN, f"{version}, tested with 3.11", "python3.11 -m venv .venv")


def _packages(config: Config) -> Iterator[Check]:
    faults = packages.check_project()
    for fault in faults:
        yield Check("packages", FAIL, fault.text, fault.fix)
    if not faults:
        named = ("torch", "megatron-core", "transformers")
        count = len(packages.project_requirements())
        versions = ", ".join(f"{name} {packages.installed(name)}" for name in named)
        yield Check("packages", OK, f"{versions}; all {count} as pinned")
    psutil = packages.installed("psutil")
    without = "missing: Megatron's checkpoint writer dies without it, and its parent waits for ever"
    yield Check("psutil", OK if psutil else FAIL, psutil or without, "" if psutil else "pip install psutil")
    companions = packages.check_companions()
    for fault in companions:
        yield Check("GPU packages", FAIL if fault.required else WARN, fault.text, fault.fix)
    present = {n: v for n, v in facts.package_versions().items() if v != "absent" and n not in packages.pinned_names()}
    if present and not companions:
        yield Check("GPU packages", OK, ", ".join(f"{name} {version}" for name, version in present.items()))


def _gpus(config: Config) -> Iterator[Check]:
    wanted, here = config.cluster.gpu, _on_slurm(config)
    try:
        gpus = facts.find_gpus()
    except ValueError as error:
        yield Check("GPUs", WARN if here or not wanted else FAIL, str(error))
        return
    if not gpus:
        found = "none here; the preflight job looks at the nodes" if here else "none: runs on CPUs"
        missing = bool(wanted) and not here
        yield Check("GPUs", FAIL if missing else OK, found, f"cluster.gpu={wanted} needs one" if missing else "")
        return
    seen = dict.fromkeys(gpu.name for gpu in gpus)
    found, cuda = f"{len(gpus)} x {', '.join(seen)}, driver {gpus[0].driver}", packages.torch_cuda()
    fault = judge.driver_fault(gpus[0].driver, cuda, seen_by_torch=True)
    yield Check("GPUs", (FAIL if wanted and not here else WARN) if fault else OK, found, fault)
    if wanted and not here and any(judge.kind(name) != judge.kind(wanted) for name in seen):
        yield Check("GPU kind", FAIL, f"cluster.gpu={wanted} is asked for", "set cluster.gpu to what is here")


def _on_slurm(config: Config) -> bool:
    return config.cluster.scheduler == "slurm"


def _sandbox(config: Config) -> Iterator[Check]:
    choice = config.reward.sandbox
    if choice == "none":
        yield Check("sandbox", WARN, "reward.sandbox=none: programs run without isolation", "set reward.sandbox=auto")
        return
    try:
        kind = find_sandbox(choice).kind  # type: ignore[arg-type]
    except SandboxError as error:
        needed = any(stage in config.stages for stage in ("mgpo.code", "evaluate"))
        yield Check("sandbox", FAIL if needed and not _on_slurm(config) else WARN, str(error))
        return
    fix = "allow user namespaces" if shutil.which("bwrap") else "apt-get install bubblewrap"
    weaker = "" if kind == "bubblewrap" else f"bubblewrap isolates more: {fix}"
    yield Check("sandbox", WARN if weaker else OK, f"{kind}, a program ran in it", weaker)


def _limits(config: Config) -> Iterator[Check]:
    shm, gpu_run = facts.shared_memory_bytes(), bool(config.cluster.gpu)
    small = gpu_run and (shm or 0) < SHARED_MEMORY
    fix = "start the container with --shm-size=16g or --ipc=host" if small else ""
    yield Check("/dev/shm", WARN if small else OK, "missing" if shm is None else f"{shm / 1e9:.1f} GB", fix)
    files = facts.open_file_limit()
    low = 0 <= files < OPEN_FILES
    yield Check("open files", WARN if low else OK, "no limit" if files < 0 else f"{files:,}", "ulimit -n 65536" * low)
    limits = facts.memory_limits()
    if gpu_run and "ulimit -l" in limits and not _on_slurm(config):
        locked = f"{limits['ulimit -l'] / 1e6:,.1f} MB may be locked; InfiniBand needs more"
        yield Check("locked memory", WARN, locked, "ulimit -l unlimited (limits.conf, or LimitMEMLOCK of slurmd)")
    yield from _memory(config, limits)


def _memory(config: Config, limits: dict[str, int]) -> Iterator[Check]:
    bound = min((name for name in limits if name != "ulimit -l"), key=lambda name: limits[name])
    found = f"{limits[bound] / 1e9:,.1f} GB ({bound})"
    rows = training_rows(config)
    if config.cluster.gpu or _on_slurm(config) or not rows:
        yield Check("memory", OK, found)
        return
    each = max(peak_memory(config.scale, config.data.vocab_size, row, on_gpu=False).total for row in rows.values())
    needed = each * config.world_size
    short = needed > limits[bound]
    text = f"{found}, training takes {needed / 1e9:,.1f} GB and {config.world_size} interpreters"
    yield Check("memory", FAIL if short else OK, text, "use a smaller scale, or GPUs (cluster.gpu)" * short)


def _disk(config: Config) -> Iterator[Check]:
    root = facts.existing_parent(Path(config.run.root))
    free, needed = shutil.disk_usage(root).free, run_storage(config).needed
    text = f"{free / 1e9:,.1f} GB free in {root}, checkpoints of scale={config.scale.name} take {needed / 1e9:,.1f} GB"
    fix = "free some, set run.root, or a longer sft.checkpoint_interval"
    yield Check("disk", FAIL if free < needed else OK, text, fix if free < needed else "")
    if not os.access(root, os.W_OK):
        yield Check("run.root", FAIL, f"{root} is not writable", "set run.root=FOLDER")


def _cores(config: Config) -> Iterator[Check]:
    cores, asked = len(os.sched_getaffinity(0)), config.world_size * config.cluster.threads_per_process
    if not _on_slurm(config) and not config.cluster.gpu:
        many = asked > cores
        fix = f"set cluster.processes={cores}" if many else ""
        yield Check("cores", WARN if many else OK, f"{cores} for {config.world_size} processes", fix)


def _slurm(config: Config) -> Iterator[Check]:
    if not _on_slurm(config):
        return
    missing = [tool for tool in SLURM_TOOLS if shutil.which(tool) is None]
    if missing:
        yield Check("slurm", FAIL, f"{', '.join(missing)} not found", "run this on a login node, or load its module")
        return
    yield _controller()
    if shutil.which("sacct") is None:
        yield Check("sacct", WARN, "not found", "GPU-hours then come from the run's own ledger alone")


def _controller() -> Check:
    fix = "look at SLURM_CONF and munge, or ask the administrator"
    try:
        done = subprocess.run(["scontrol", "ping"], capture_output=True, text=True, timeout=CONTROLLER_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        return Check("slurm", FAIL, f"the controller does not answer in {CONTROLLER_TIMEOUT_S} s", fix)
    said = (done.stdout + done.stderr).strip().splitlines() or ["scontrol ping says nothing"]
    up = any(line.endswith("is UP") for line in said)
    return Check(
        "slurm", OK if up else FAIL, next((line for line in said if line.endswith("is UP")), said[0]), "" if up else fix
    )


def _all_reduce(config: Config, quiet: bool) -> Check:
    """The preflight of this machine's processes, on a run folder that is thrown away."""
    with tempfile.TemporaryDirectory(prefix="doctor-") as folder:
        config.run.root, config.run.name = folder, "doctor"
        run = open_run(config)
        count = max(1, min(config.world_size, len(facts.find_gpus()) or len(os.sched_getaffinity(0))))
        layout = ["-m", "launcher.torchrun", "--standalone", "--nproc-per-node", str(count)]
        command = [sys.executable, *layout, "-m", "nemo_vibethinker.preflight", "--run-dir", str(run.path)]
        if quiet:
            command = ["sh", "-c", 'exec "$@" >&2', "sh", *command]
        code = run_process(command, worker_environment(config))
    return Check(
        "preflight", FAIL if code else OK, f"{count} processes, exit code {code}", "see its line above" * bool(code)
    )


GROUPS: tuple[Callable[[Config], Iterator[Check]], ...] = (
    _python,
    _packages,
    _gpus,
    _sandbox,
    _limits,
    _disk,
    _cores,
    _slurm,
)
