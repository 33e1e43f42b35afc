"""Memory that this process holds, read without importing torch."""

import os
import sys
from pathlib import Path

_STATM = Path("/proc/self/statm")


def memory_fields() -> dict[str, float]:
    """`host_memory_mb`, resident, and `gpu_memory_mb`, the most that torch has held on the GPU; each 10^6 bytes."""
    found = {"host_memory_mb": rss_bytes() / 1e6, "gpu_memory_mb": peak_gpu_bytes() / 1e6}
    return {name: round(value, 1) for name, value in found.items() if value}


def rss_bytes() -> int:
    """Resident memory of this process; 0 where the system does not tell."""
    if not _STATM.is_file():
        return 0
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_gpu_bytes() -> int:
    """The most that torch's allocator has reserved on this process's GPU; 0 without one."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return 0
    return torch.cuda.max_memory_reserved()
