"""Starting processes for a program inside the sandbox, out of reach of all that is trusted (see `_harness`)."""

import os
import select
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import NoReturn

from nemo_vibethinker.reward._candidate import Candidate, run_whole
from nemo_vibethinker.reward._examiner import Examiner
from nemo_vibethinker.reward._lockdown import die_with_parent, install_filter

_DESCRIPTORS = 64  # the limit of open files


@dataclass
class Output:
    """What a run of a whole program left: wait status (None if it was stopped), streams, why it was stopped."""

    status: int | None
    stdout: bytes
    stderr: bytes
    stopped: str


def start_candidate(source: str, program_filter: bytes) -> tuple[int, Examiner]:
    """Fork a process that waits for requests about `source`; returns its number and the other end."""
    child_read, write = os.pipe()
    read, child_write = os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            null = os.open("/dev/null", os.O_RDWR)
            _become_program([null, null, null, child_read, child_write], program_filter, parent)
            _serve(Candidate(3, 4, source))
        finally:
            os._exit(1)
    os.close(child_read)
    os.close(child_write)
    return child, Examiner(read, write)


def _serve(candidate: Candidate) -> NoReturn:
    while True:
        candidate.serve(candidate.receive())


def _become_program(descriptors: list[int], program_filter: bytes, parent: int) -> None:
    """Keep only `descriptors`, as 0, 1, ...; then give up what only trusted processes may do."""
    for number, copy in enumerate([os.dup(fd) for fd in descriptors]):
        os.dup2(copy, number)
    os.closerange(len(descriptors), _DESCRIPTORS)
    die_with_parent(signal.SIGKILL, parent)
    install_filter(program_filter)


def run_program(source: str, stdin: bytes, program_filter: bytes, *, wall_s: float, output_bytes: int) -> Output:
    """Run a whole program on `stdin` until its process ends, `wall_s` pass or it prints more than `output_bytes`."""
    (child_in, feed), (out, child_out), (err, child_err) = os.pipe(), os.pipe(), os.pipe()
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _become_program([child_in, child_out, child_err], program_filter, parent)
            run_whole(source)
        finally:
            os._exit(1)
    for fd in (child_in, child_out, child_err):
        os.close(fd)
    exit_fd = os.pidfd_open(child)
    os.set_blocking(feed, False)
    streams, stopped = _exchange({out: bytearray(), err: bytearray()}, feed, stdin, exit_fd, wall_s, output_bytes)
    status = None if stopped else os.waitpid(child, 0)[1]
    for fd in (out, err, exit_fd):
        os.close(fd)
    return Output(status, bytes(streams[out]), bytes(streams[err]), stopped)


def _exchange(
    streams: dict[int, bytearray], feed: int, stdin: bytes, exit_fd: int, wall_s: float, output_bytes: int
) -> tuple[dict[int, bytearray], str]:
    """Feed and read until `exit_fd` shows the end; what the program wrote before it is then in the pipes."""
    deadline = time.monotonic() + wall_s
    rest = _feed(feed, memoryview(stdin))
    poll = select.poll()
    for fd in (*streams, exit_fd):
        poll.register(fd, select.POLLIN)
    if rest:
        poll.register(feed, select.POLLOUT)
    while True:
        ready = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
        if not ready:
            return streams, f"timed out after {wall_s:g} s"
        for fd in streams.keys() & ready.keys():
            chunk = os.read(fd, 65536)
            streams[fd] += chunk
            if not chunk:
                poll.unregister(fd)
            if len(streams[fd]) > output_bytes:
                return streams, f"more than {output_bytes >> 10} KB of output"
        if feed in ready:
            rest = _feed(feed, rest)
            if not rest:
                poll.unregister(feed)
        if exit_fd in ready and not any(ready.get(fd, 0) & select.POLLIN for fd in streams):
            return streams, ""


def _feed(fd: int, rest: memoryview) -> memoryview:
    """Write what fits; closes the pipe at the end of the input, or when the program reads no more."""
    with suppress(BlockingIOError):
        try:
            while rest:
                rest = rest[os.write(fd, rest) :]
        except BrokenPipeError:
            rest = rest[:0]
    if not rest:
        os.close(fd)
    return rest
