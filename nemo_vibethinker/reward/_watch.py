"""Following a sandbox from outside: what it prints, how long it runs, how much memory all its processes hold."""

import json
import os
import select
import selectors
import signal
import subprocess
import time
from contextlib import suppress

_SAMPLE_S = 0.01  # seconds between two looks at the memory; a process takes some 10 MB between them
_FILES = 1024  # in /tmp
_SMALL = 1 << 30  # bytes; a larger /tmp is the host's, seen before the namespace has its own
_PAGE = os.sysconf("SC_PAGE_SIZE")


def collect(
    process: subprocess.Popen, *, wall_s: float, memory_mb: int, output_kb: int, info_fd: int | None
) -> tuple[bytes, bytes, str]:
    """Read both streams until the process and all it started are gone; returns them and why it was stopped, if so.

    `info_fd` is the file to which bubblewrap writes the number of its namespace's first process.
    """
    assert process.stdout
    assert process.stderr
    streams = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    exit_fd = os.pidfd_open(process.pid)
    try:
        stopped = _follow(streams, exit_fd, process.pid, wall_s, memory_mb, output_kb << 10, info_fd)
    finally:
        _end(process, info_fd)
        os.close(exit_fd)
        process.stdout.close()
        process.stderr.close()
    stdout, stderr = streams.values()
    return bytes(stdout), bytes(stderr), stopped


def _follow(
    streams: dict[int, bytearray],
    exit_fd: int,
    pid: int,
    wall_s: float,
    memory_mb: int,
    output_bytes: int,
    info_fd: int | None,
) -> str:
    deadline = time.monotonic() + wall_s
    with selectors.DefaultSelector() as selector:
        for fd in (*streams, exit_fd):
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(_SAMPLE_S)
            if time.monotonic() > deadline:
                return f"timed out after {wall_s:g} s"
            if not ready and memory_of(pid, memory_mb << 20) > memory_mb << 20:
                return f"more than {memory_mb} MB of memory"
            if not ready and _files_in_tmp(info_fd) > _FILES:
                return f"more than {_FILES} files"
            for key, _ in ready:
                if key.fd == exit_fd:
                    _kill_group(pid)  # what it left behind would hold the streams open
                chunk = b"" if key.fd == exit_fd else os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                    continue
                streams[key.fd] += chunk
                if len(streams[key.fd]) > output_bytes:
                    del streams[key.fd][output_bytes:]
                    return f"more than {output_bytes >> 10} KB of output"
    return ""


def _end(process: subprocess.Popen, info_fd: int | None) -> None:
    """A warden ends what it guards when asked to; with bubblewrap, its namespace's first process takes all with it."""
    process.terminate()
    try:
        process.wait(2)
    except subprocess.TimeoutExpired:
        _kill_group(process.pid)
    process.wait()
    with suppress(ProcessLookupError):
        if first := _first_process(info_fd):
            fd = os.pidfd_open(first)
            select.select([fd], [], [], 5)
            os.close(fd)


def _first_process(info_fd: int | None) -> int | None:
    text = os.pread(info_fd, 4096, 0) if info_fd is not None else b""
    return json.loads(text)["child-pid"] if text.rstrip().endswith(b"}") else None


def _files_in_tmp(info_fd: int | None) -> int:
    """Files in the temporary folder of a namespace, whose size does not bound their number; 0 where it is not seen."""
    with suppress(OSError):
        if first := _first_process(info_fd):
            state = os.statvfs(f"/proc/{first}/root/tmp")
            return state.f_files - state.f_ffree if state.f_blocks * state.f_frsize <= _SMALL else 0
    return 0


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def memory_of(pid: int, enough: int = 0) -> int:
    """Bytes in memory of a process and its descendants.

    Pages that several of them share count once (`Pss`), which is slow to find out: only if more than `enough` when
    each counts them.
    """
    pids = _tree(pid)
    resident = sum(_resident(each) for each in pids)
    return resident if resident <= enough else sum(_proportional(each) for each in pids)


def _tree(pid: int) -> list[int]:
    found, at = [pid], 0
    while at < len(found):
        with suppress(OSError):
            for task in os.listdir(f"/proc/{found[at]}/task"):
                found += map(int, _read(f"/proc/{found[at]}/task/{task}/children").split())
        at += 1
    return found


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(_read(f"/proc/{pid}/statm").split()[1]) * _PAGE
    return 0


def _proportional(pid: int) -> int:
    """Of `smaps_rollup` the line `Pss: N kB`; the resident size where the kernel does not show it."""
    with suppress(OSError):
        for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
            if line.startswith(b"Pss:"):
                return int(line.split()[1]) << 10
    return _resident(pid)


def _read(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)
