"""What a machine has. Imports no torch: a login node answers in a fraction of a second."""

import hashlib
import importlib.metadata
import os
import platform
import re
import resource
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import nemo_vibethinker

SMI_TIMEOUT_S = 20  # eight GPUs without persistence mode take nvidia-smi several seconds
SMI_FIELDS = ("name", "uuid", "driver_version", "memory.used")
# What decides a run's numbers or whether its processes understand each other.
PACKAGES = (
    "torch",
    "megatron-core",
    "transformers",
    "transformer-engine",
    "transformer-engine-torch",
    "vllm",
    "apex",
)


@dataclass(frozen=True)
class GpuFacts:
    """One GPU, as the driver names it."""

    name: str
    uuid: str
    driver: str
    used_mb: int  # memory that somebody holds now


def find_gpus() -> list[GpuFacts]:
    """The GPUs that nvidia-smi shows; none where it is not installed.

    Raises:
        ValueError: it is installed and fails, or does not answer.
    """
    if shutil.which("nvidia-smi") is None:
        return []
    command = ["nvidia-smi", f"--query-gpu={','.join(SMI_FIELDS)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SMI_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise ValueError(
            f"nvidia-smi does not answer in {SMI_TIMEOUT_S} s: a GPU or its driver hangs; drain the node and reboot it"
        ) from None
    if done.returncode:
        said = (done.stdout + done.stderr).strip().splitlines() or [f"exit {done.returncode}"]
        raise ValueError(f"nvidia-smi fails: {said[0]}; load or reinstall the NVIDIA driver")
    return [_gpu(line) for line in done.stdout.splitlines() if line.strip()]


def _gpu(line: str) -> GpuFacts:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(SMI_FIELDS):
        raise ValueError(f"nvidia-smi shows '{line}' where {', '.join(SMI_FIELDS)} were asked for")
    name, uuid, driver, used = fields
    return GpuFacts(name, uuid, driver, int(used) if used.isdigit() else 0)


def package_versions(names: tuple[str, ...] = PACKAGES) -> dict[str, str]:
    """Package -> its version, "absent" where it is not installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "absent"
    return found


def code_versions() -> dict[str, str]:
    """Versions of Python, of this package by the content of its files, and of the packages it stands on."""
    return {"python": platform.python_version(), "nemo_vibethinker": code_hash()} | package_versions()


def code_hash() -> str:
    """Version and first 12 hex digits of the SHA-256 of this package's Python files."""
    root = Path(nemo_vibethinker.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        digest.update(f"{file.relative_to(root).as_posix()}\0".encode() + file.read_bytes() + b"\0")
    return f"{nemo_vibethinker.__version__}+{digest.hexdigest()[:12]}"


def shared_memory_bytes() -> int | None:
    """Size of /dev/shm; None where there is none."""
    shm = Path("/dev/shm")
    return shutil.disk_usage(shm).total if shm.is_dir() else None


def open_file_limit() -> int:
    """Soft limit of open files of a process; -1 is no limit."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def memory_limits() -> dict[str, int]:
    """Limit -> bytes of what bounds this process's memory: the machine, the control group, ulimits."""
    limits = {"machine": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")}
    for file in (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")):
        text = file.read_text().strip() if file.is_file() else "max"
        if text.isdigit() and int(text) < limits["machine"]:
            limits["control group"] = int(text)
    for name, kind in (("ulimit -v", resource.RLIMIT_AS), ("ulimit -l", resource.RLIMIT_MEMLOCK)):
        soft = resource.getrlimit(kind)[0]
        if soft != resource.RLIM_INFINITY:
            limits[name] = soft
    return limits


def existing_parent(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def version_numbers(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: 2.13.0+cu130 -> (2, 13, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()
