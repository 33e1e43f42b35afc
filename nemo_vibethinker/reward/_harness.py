"""The trusted half of code grading, run inside the sandbox: it evaluates the tests, and child processes the program.

For assertions and calls the two talk by values over pipes (`_wire`). The program's process never holds the tests, the
expected values or the channel of the verdict; what it returns is a plain value, decoded into a fresh object here, or a
`Handle`, an opaque reference whose comparison with a plain value is always false. So neither `os._exit(0)`, printed
text, an `__eq__` that is always true, nor replaced builtins can turn a wrong value into a right one. A whole program
gets its standard input, and what it prints is compared here.

A process is forked for the program before the expected values are read, so its memory does not hold them; of the
outputs it may hold those of earlier inputs, which it printed itself.

Several programs run one after the other, each graded by a fresh process; what one leaves running is killed before the
next starts, and if it leaves a file or kills this process, the rest stays without verdict.

Standard input, a file of chunks (20 digits, the length; then the content): marshalled `settings`; then one chunk for
each program, which holds chunks: the program, the numbers of its tests and of those on standard input, input and
output of each of these, and marshalled (other tests, names that they take from the program, modules they use).
Standard output: a line `number<tab>kind<tab>reason`, escaped, for each program that was graded.
"""

import marshal
import os
import select
import signal
import stat
import time
from contextlib import suppress
from typing import Any

from nemo_vibethinker.reward._compare import output_difference
from nemo_vibethinker.reward._examiner import examine
from nemo_vibethinker.reward._lockdown import adopt_orphans, die_with_parent, hide_from_proc
from nemo_vibethinker.reward._runs import Output, run_program, start_candidate
from nemo_vibethinker.reward._wire import REASON_LENGTH, ProgramEnded

_XCPU = 24


class _Chunks:
    """Reads the payload without a buffer, which would hold more than was asked for."""

    def __init__(self, at: int = 0) -> None:
        self.at = at

    def size(self) -> int:
        self.at += 20
        return int(os.pread(0, 20, self.at - 20))

    def next(self) -> bytes:
        parts, size = [], self.size()
        while size:
            parts.append(os.pread(0, size, self.at))
            self.at += len(parts[-1])
            size -= len(parts[-1])
        return b"".join(parts)

    def text(self) -> str:
        return self.next().decode("utf-8", "surrogatepass")


def _end_reason(status: int) -> str:
    """Why the program's process ended, by its wait status."""
    code = os.waitstatus_to_exitcode(status)
    if code == -_XCPU:
        return "processor time used up"
    return f"the program ended itself with {f'signal {-code}' if code < 0 else f'exit {code}'}"


def _grade(chunks: _Chunks, settings: dict[str, Any]) -> tuple[str, str]:
    source, total, whole = chunks.text(), int(chunks.next()), int(chunks.next())
    for number in range(1, whole + 1):
        if problem := _grade_output(source, chunks, settings):
            return "wrong", f"test {number} of {total}: {problem}"
    if whole == total:
        return "right", ""
    child, peer = start_candidate(source, settings["program_filter"])
    tests, names, modules = marshal.loads(chunks.next())
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 0)
    try:
        return examine(peer, tests, names, modules, f"test %d of {total}", first=whole + 1)
    except (ProgramEnded, BrokenPipeError):
        return "wrong", _end_reason(os.waitpid(child, 0)[1])


def _grade_output(source: str, chunks: _Chunks, settings: dict[str, Any]) -> str:
    """Why the next output is not the expected one, or nothing. Its size is read with it, after the run."""
    run = run_program(
        source,
        chunks.next(),
        settings["program_filter"],
        wall_s=settings["wall_s"],
        output_bytes=settings["output_bytes"],
    )
    expected = chunks.text()
    return _failure(run) or output_difference(run.stdout.decode(errors="replace"), expected)


def _failure(run: Output) -> str:
    if run.status is None:
        return run.stopped
    if run.status:
        last = run.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        return f"{_end_reason(run.status)}{last and f': {last}'}"
    return ""


def _write_verdict(fd: int, number: int, kind: str, reason: str) -> None:
    """Escaped, because a reason quotes the program: no character of it may look like the end of a line."""
    escaped = reason[:REASON_LENGTH].encode("unicode_escape").decode("ascii")
    os.write(fd, f"{number}\t{kind}\t{escaped}\n".encode())


def _examiner_process(number: int, at: int, settings: dict[str, Any], parent: int) -> None:
    try:
        os.setpgid(0, 0)
        die_with_parent(signal.SIGKILL, parent)
        channel, null = os.dup(1), os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 1)  # what tests print is no verdict
        _write_verdict(channel, number, *_grade(_Chunks(at), settings))
        os._exit(0)
    except Exception:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(1)


def _grade_apart(number: int, at: int, settings: dict[str, Any], deadline_s: float) -> None:
    """Grade one program in a process of its own, and write its verdict even if that process is killed."""
    parent = os.getpid()
    examiner = os.fork()
    if examiner == 0:
        _examiner_process(number, at, settings, parent)
    watch = select.poll()
    exit_fd = os.pidfd_open(examiner)
    watch.register(exit_fd, select.POLLIN)
    if watch.poll(deadline_s * 1000):
        ended = os.waitid(os.P_PID, examiner, os.WEXITED | os.WNOWAIT)  # not reaped: its number names its group
        assert ended
        if ended.si_code != os.CLD_EXITED:
            _write_verdict(1, number, "wrong", f"the grading ended with signal {ended.si_status}")
        elif ended.si_status:
            os._exit(1)  # a fault of this code, no verdict on the program
    else:
        _write_verdict(1, number, "wrong", f"timed out after {deadline_s:g} s")
    os.close(exit_fd)
    _end_others() if settings["own_namespace"] else _end_group(examiner)


def _end_others() -> None:
    """End every process of this pid namespace but this one and init, and wait until they no longer count."""
    while True:
        try:
            os.kill(-1, signal.SIGKILL)
        except ProcessLookupError:
            return
        try:
            os.waitpid(-1, os.WNOHANG)  # a process that missed its deadline; init takes the others
        except ChildProcessError:
            time.sleep(0.001)


def _end_group(leader: int) -> None:
    """End an examiner and all it started, which can't leave its group; orphans are children of this process."""
    with suppress(ProcessLookupError):
        os.killpg(leader, signal.SIGKILL)
    with suppress(ChildProcessError):
        while True:
            os.waitpid(-leader, 0)


def _is_clean(settings: dict[str, Any]) -> bool:
    """Whether the only folder that programs can write to is as it was at the start."""
    if not settings["own_namespace"]:
        return True
    return stat.S_IMODE(os.stat("/tmp").st_mode) == 0o1777 and not os.listdir("/tmp")


def main() -> None:
    """Grade the programs one after the other; stop early rather than start one where another left something behind."""
    hide_from_proc()  # Landlock lets the program open memory files, such as this process's standard input
    chunks = _Chunks()
    settings = marshal.loads(chunks.next())
    if not settings["own_namespace"]:
        adopt_orphans()
    for number, deadline_s in enumerate(settings["deadlines_s"]):
        size = chunks.size()
        _grade_apart(number, chunks.at, settings, deadline_s)
        chunks.at += size
        if not _is_clean(settings):
            break
    os._exit(0)
