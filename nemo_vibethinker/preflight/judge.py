"""What the answers of all processes mean. A check returns what it found, or raises the line that says why not."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_vibethinker.costs.gpus import find_gpu

CLOCK_LIMIT_S = 5.0  # past it, records of different nodes cannot be put in order
BUSY_MB = 2000  # of a GPU that somebody else holds; a driver's own use is below 1,000
DRIVER_FOR_CUDA = {12: 525, 13: 580}  # CUDA toolkit release notes, minor-version compatibility, Linux


@dataclass(frozen=True)
class Expected:
    """What the run asks of its nodes."""

    gpu: str  # of the table in costs/gpus.py or a driver's name; empty: any, or none
    gpus_per_node: int  # 0: as many as processes on the node


Answers = Sequence[dict[str, Any]]


def hosts_of(answers: Answers) -> dict[str, list[dict[str, Any]]]:
    """Host -> the answers of its ranks."""
    by_host: dict[str, list[dict[str, Any]]] = {}
    for answer in answers:
        by_host.setdefault(answer["host"], []).append(answer)
    return by_host


def check_gpus(answers: Answers, expected: Expected) -> str:
    """GPUs of the named kind and number on every node, seen by torch, and free.

    Raises:
        ValueError: the nodes that lack them.
    """
    if not expected.gpu and not any(answer["torch_gpus"] for answer in answers):
        return "not used: this run is on CPUs"
    faults = [_gpu_fault(host, ranks, expected) for host, ranks in hosts_of(answers).items()]
    if found := [fault for fault in faults if fault]:
        raise ValueError("; ".join(found))
    kinds = sorted({kind(gpu["name"]) for answer in answers for gpu in answer["gpus"]})
    return f"{' and '.join(kinds)}, one a process, driver {answers[0]['gpus'][0]['driver']}"


def _gpu_fault(host: str, ranks: list[dict[str, Any]], expected: Expected) -> str:
    for answer in ranks:
        if answer["smi_fault"]:
            return f"{host}: {answer['smi_fault']}"
    gpus = {gpu["uuid"]: gpu for answer in ranks for gpu in answer["gpus"]}
    if not gpus:
        return f"{host} has no GPU (no nvidia-smi there); cluster.gpu={expected.gpu} is asked for" * bool(expected.gpu)
    wanted = expected.gpus_per_node or len(ranks)
    if len(gpus) < max(wanted, len(ranks)):
        return f"{host} has {len(gpus)} GPUs, {max(wanted, len(ranks))} are asked for: drain the node or ask for fewer"
    return _kind_fault(host, list(gpus.values()), expected.gpu) or _torch_fault(host, ranks) or _busy(host, gpus)


def kind(device_name: str) -> str:
    """Name of a GPU in the table of costs/gpus.py, its own where it is not there."""
    gpu = find_gpu(device_name)
    return gpu.name if gpu else device_name


def _kind_fault(host: str, gpus: list[dict[str, Any]], wanted: str) -> str:
    other = sorted({kind(gpu["name"]) for gpu in gpus if wanted and kind(gpu["name"]) != kind(wanted)})
    fix = "choose the right partition, constraint or GRES, or set cluster.gpu"
    return f"{host} has {', '.join(other)} where cluster.gpu={wanted} is asked for; {fix}" if other else ""


def _torch_fault(host: str, ranks: list[dict[str, Any]]) -> str:
    for answer in ranks:
        if not answer["torch_gpus"]:
            return f"{host}: {driver_fault(answer['gpus'][0]['driver'], answer['versions'].get('cuda', ''))}"
    return ""


def driver_fault(driver: str, cuda: str, seen_by_torch: bool = False) -> str:
    """Why a torch built for `cuda` (empty: for CPUs) cannot use the GPUs of this driver; empty where it can."""
    if not cuda:
        return "torch is a build for CPUs: use the GPU image, or install torch from the CUDA index"
    needed = DRIVER_FOR_CUDA.get(int(cuda.partition(".")[0]))
    if needed and int(driver.partition(".")[0]) < needed:
        return f"driver {driver} is too old for CUDA {cuda}: install {needed} or newer"
    if seen_by_torch:
        return ""
    return "torch sees no GPU though the driver shows them: look at CUDA_VISIBLE_DEVICES and the container's GPU flag"


def _busy(host: str, gpus: dict[str, dict[str, Any]]) -> str:
    busy = [gpu for gpu in gpus.values() if gpu["used_mb"] > BUSY_MB]
    memory = ", ".join(f"{gpu['used_mb']:,} MB" for gpu in busy[:4])
    return f"{host}: {len(busy)} GPUs are in use ({memory}): end what an earlier job left there" if busy else ""


def check_versions(answers: Answers, name_ranks: Callable[[Sequence[int]], str]) -> str:
    """Driver, CUDA, torch, our code and what they stand on are the same everywhere.

    Raises:
        ValueError: what differs, and where.
    """
    faults = []
    for name in answers[0]["versions"]:
        by_version: dict[str, list[int]] = {}
        for rank, answer in enumerate(answers):
            by_version.setdefault(answer["versions"].get(name, "absent"), []).append(rank)
        if len(by_version) > 1:
            common = max(by_version, key=lambda version: len(by_version[version]))
            others = [f"{v} on {name_ranks(ranks)}" for v, ranks in by_version.items() if v != common]
            faults.append(f"{name} is {common} but {' and '.join(others)}")
    if faults:
        raise ValueError(f"{'; '.join(faults)}: start all nodes from the same image or environment")
    present = {name: version for name, version in answers[0]["versions"].items() if version != "absent"}
    return ", ".join(f"{name} {version}" for name, version in present.items())


def check_disk(answers: Answers, needed: int) -> str:
    """The folder of the run has room for its checkpoints.

    Raises:
        ValueError: how much is missing.
    """
    free = min(answer["free_bytes"] for answer in answers)
    if free < needed:
        raise ValueError(
            f"{answers[0]['folder']} has {free / 1e9:,.1f} GB free, the run's checkpoints take {needed / 1e9:,.1f} GB: "
            "free some, set run.root, or a longer sft.checkpoint_interval"
        )
    return f"{free / 1e9:,.0f} GB free, {needed / 1e9:,.1f} GB for checkpoints"


def check_clocks(offsets: Sequence[float], hosts: dict[int, str]) -> str:
    """Clocks agree.

    Args:
        offsets: by rank, seconds ahead of rank 0's clock, the time of an answer included.
        hosts: rank -> host.

    Raises:
        ValueError: the hosts whose clocks are off.
    """
    off = {hosts[rank]: offset for rank, offset in enumerate(offsets) if abs(offset) > CLOCK_LIMIT_S}
    if off:
        named = ", ".join(f"{host} by {offset:+.0f} s" for host, offset in off.items())
        raise ValueError(f"clocks differ from {hosts[0]}'s: {named}; start time synchronisation (chrony, ntpd)")
    return f"within {max(abs(offset) for offset in offsets):.2f} s"
