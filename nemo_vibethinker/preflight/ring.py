"""An all-reduce over all processes: that it ends, that its sum is right, and how fast it is."""

import datetime
import threading
import time
from typing import Any

from nemo_vibethinker.preflight.meeting import Meeting

CUDA_BYTES, CPU_BYTES = 1 << 28, 1 << 22
REPEATS = 5


def check_ring(meeting: Meeting, seconds: float) -> str:
    """Reduce over NCCL on GPUs, over gloo on CPUs.

    Raises:
        PreflightError: who did not come, whose part failed, or that none finished within `seconds`.
    """
    found: dict[str, Any] = {"fault": ""}
    worker = threading.Thread(target=_reduce, args=(meeting, seconds, found), daemon=True)
    began = time.monotonic()
    worker.start()
    worker.join(seconds)
    if worker.is_alive():
        found = {"fault": "", "stuck": True}
    silence = f"did not come to the all-reduce, or hangs in it, {time.monotonic() - began:.0f} s after the others"

    def judge(answers: list[dict[str, Any]]) -> str:
        return _judge(meeting, answers, seconds)

    return meeting.round("ring", found, judge, seconds=5.0, silence=silence)


def _judge(meeting: Meeting, answers: list[dict[str, Any]], seconds: float) -> str:
    faults = [f"rank {rank} on {meeting.hosts[rank]}: {a['fault']}" for rank, a in enumerate(answers) if a["fault"]]
    if faults:
        raise ValueError(f"the all-reduce failed: {faults[0]}; {_ADVICE}")
    if stuck := [rank for rank, answer in enumerate(answers) if answer.get("stuck")]:
        raise ValueError(
            f"the all-reduce did not end within {seconds:.0f} s on {meeting.name_ranks(stuck)}: traffic between them "
            f"is lost; {_ADVICE}"
        )
    size, rate = answers[0]["bytes"], min(answer["rate"] for answer in answers)
    return f"{len(answers)} processes over {answers[0]['backend']}: {size / 1e6:.0f} MB at {rate:.1f} GB/s (bus)"


_ADVICE = "look at the network between the hosts, NCCL_SOCKET_IFNAME or GLOO_SOCKET_IFNAME, and NCCL_DEBUG=INFO"


def _reduce(meeting: Meeting, seconds: float, found: dict[str, Any]) -> None:
    try:
        found.update(_measure(meeting, seconds))
    except (RuntimeError, ValueError) as error:  # of torch.distributed and of CUDA; all ranks shall hear it
        found["fault"] = str(error).strip().splitlines()[0]


def _measure(meeting: Meeting, seconds: float) -> dict[str, Any]:
    import torch
    from torch import distributed

    place, on_gpu = meeting.place, torch.cuda.is_available()
    if on_gpu:
        torch.cuda.set_device(place.local_rank % torch.cuda.device_count())
    device = torch.device("cuda", torch.cuda.current_device()) if on_gpu else torch.device("cpu")
    backend, size = ("nccl", CUDA_BYTES) if on_gpu else ("gloo", CPU_BYTES)
    wait = datetime.timedelta(seconds=seconds)
    distributed.init_process_group(backend, store=meeting.store(), rank=place.rank, world_size=place.size, timeout=wait)
    data = torch.full((size // 4,), place.rank + 1.0, device=device)
    distributed.all_reduce(data)
    expected = place.size * (place.size + 1) / 2
    if not bool((data == expected).all()):
        raise ValueError(f"the sum is {data.mean().item():g} and not {expected:g}: memory or link is faulty")
    began = time.perf_counter()
    for _ in range(REPEATS):
        distributed.all_reduce(data.fill_(1.0))
    data[0].item()  # waits for the GPU
    elapsed = (time.perf_counter() - began) / REPEATS
    distributed.destroy_process_group()
    return {"backend": backend, "bytes": size, "rate": bus_rate(size, place.size, elapsed)}


def bus_rate(size: int, processes: int, seconds: float) -> float:
    """GB/s over each link of a ring all-reduce, 2(n-1)/n of the data (NVIDIA nccl-tests, PERFORMANCE.md)."""
    return 2 * (processes - 1) / processes * size / seconds / 1e9
