"""Running untrusted Python programs, each in its own fresh and isolated process.

Three ways, chosen by `find_sandbox`:

- `bubblewrap`: own pid, network, IPC, host-name and (unless started by root) user namespaces; a file system that holds
  the interpreter, the system's shared libraries, /dev/null and a small writable /tmp; a seccomp filter; rlimits.
- `landlock`, for containers that forbid namespaces (x86-64): Landlock leaves the same files readable and none writable,
  seccomp takes away sockets, signals and new sessions, a warden ends what is left behind; rlimits. Weaker: metadata of
  the host's files stays visible, a started file is not hidden from other users' process lists, nothing can be written.
- `none`, only if asked for: rlimits, the warden and an empty environment. A program can do what this user can do.

When started by root, programs run as an own unprivileged user each (not with `none`), because RLIMIT_NPROC does not
hold for root. Memory is limited twice: each process by RLIMIT_AS, and all together by a look at their sizes every
10 ms, so that they can pass the limit by what they take in that time, and never reach more than
`memory_mb * processes`. What sizes do not show (pipes, files in /tmp, socket pairs) is bounded by `file_mb`, 1,024
files and 64 descriptors a process.
"""

import functools
import marshal
import os
import random
import shutil
import signal
import subprocess
import warnings
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import CodeType
from typing import Any, Literal, get_args

from nemo_vibethinker.reward import _mounts, _seccomp
from nemo_vibethinker.reward._watch import collect

SandboxKind = Literal["bubblewrap", "landlock", "none"]
SandboxChoice = Literal["auto", "bubblewrap", "landlock", "none"]

# systemd's range of users for transient services: unprivileged, in no password file, and the root user of a container
# has them too. Each run draws its own, so that RLIMIT_NPROC counts that run alone.
_UIDS = range(61184, 65520)
_LOADER = "import marshal, os; f = open({fd}, 'rb'); j = marshal.load(f); f.close(); exec(j.pop('code'), {{'job': j}})"
_PROBE = """
import socket
try:
    open("/etc/passwd").close()
    print("host files are readable")
except OSError:
    try:
        socket.socket().connect(("192.0.2.1", 9))
        print("the network is reachable")
    except OSError:
        print("isolated")
"""


class SandboxError(RuntimeError):
    """The sandbox itself failed; nothing is known about the program."""


@dataclass(frozen=True)
class Limits:
    """Limits of one run. `wall_s` covers the start of the sandbox too; `cpu_s` holds per process.

    `memory_mb` bounds each process's address space and the memory of all together, `processes` their number, threads
    included; `file_mb` each file and the whole of /tmp; `output_kb` standard output and standard error each.
    Raises ValueError for a limit that is not positive.
    """

    wall_s: float = 10.0
    cpu_s: int = 5
    memory_mb: int = 512
    processes: int = 8
    file_mb: int = 8
    output_kb: int = 64

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) <= 0:
                raise ValueError(f"limit {field.name} must be positive, not {getattr(self, field.name)}")


@dataclass(frozen=True)
class Execution:
    """Result of one run. `returncode` follows the shell: 128 + n for signal n. `reason` is empty after exit 0."""

    returncode: int
    stdout: str
    stderr: str
    timed_out: bool
    reason: str


@dataclass(frozen=True)
class Sandbox:
    """Runs programs in isolation; thread-safe and without state. Get one from `find_sandbox`."""

    kind: SandboxKind

    def run(self, source: str, *, stdin: str | bytes = "", limits: Limits) -> Execution:
        """Run `source`, untrusted, as `__main__` of a new process. Raises SandboxError if it was never reached."""
        return self._run({"source": source, "modules": _trusted_modules("_lockdown")}, stdin, limits)

    def run_trusted(self, modules: Sequence[str], *, stdin: bytes, limits: Limits) -> Execution:
        """Run `main()` of the last of this package's `modules`, given in the order of their imports.

        It may send signals within the sandbox, and puts `program_filter` on the processes in which it runs programs.
        Raises SandboxError if it was never reached.
        """
        return self._run({"source": None, "modules": _trusted_modules("_lockdown", *modules)}, stdin, limits)

    @property
    def program_filter(self) -> bytes:
        """What `_lockdown.install_filter` puts on an untrusted program; empty where there is no seccomp filter."""
        return _program_filter(self.kind)

    def _run(self, task: dict[str, Any], stdin: str | bytes, limits: Limits) -> Execution:
        with ExitStack() as stack:
            ready_read, ready_write = os.pipe()
            stack.callback(os.close, ready_read)
            closing_write = stack.enter_context(open(ready_write, "wb", buffering=0))
            job_fd = _memory_file(stack, marshal.dumps(task | self._job(limits, ready_write)))
            text = stdin.encode() if isinstance(stdin, str) else stdin
            info_fd = _memory_file(stack, b"") if self.kind == "bubblewrap" else None
            process = self._start(stack, job_fd, ready_write, _memory_file(stack, text), info_fd, limits)
            closing_write.close()
            stdout, stderr, stopped = collect(
                process,
                wall_s=limits.wall_s,
                memory_mb=limits.memory_mb,
                output_kb=limits.output_kb,
                info_fd=info_fd,
            )
            if not os.read(ready_read, 1):
                detail = stderr.decode(errors="replace").strip() or stopped or f"exit {process.returncode}"
                raise SandboxError(f"{self.kind} sandbox did not start: {detail[-500:]}")
        return _execution(process.returncode, stdout, stderr, stopped)

    def _job(self, limits: Limits, ready_fd: int) -> dict[str, Any]:
        readable, listed = _mounts.readable_but_packages()
        root = os.geteuid() == 0
        return {
            "code": _compiled("_bootstrap"),
            "kind": self.kind,
            "limits": asdict(limits),
            "uid": random.choice(_UIDS) if root and self.kind != "none" else 0,
            "count_tasks": self.kind != "bubblewrap" and not root,
            "readable": readable,
            "listed": listed,
            "base_filter": _base_filter(),
            "program_filter": self.program_filter,
            "parent": os.getpid(),
            "ready_fd": ready_fd,
        }

    def _start(
        self, stack: ExitStack, job_fd: int, ready_fd: int, stdin_fd: int, info_fd: int | None, limits: Limits
    ) -> subprocess.Popen:
        fds, prefix = [job_fd, ready_fd], list[str]()
        if info_fd is not None:
            filter_fd = _memory_file(stack, _base_filter()) if _base_filter() else None
            prefix = _mounts.bubblewrap_command(filter_fd, info_fd, limits.file_mb)
            fds += [fd for fd in (filter_fd, info_fd) if fd is not None]
        # -I -S: no environment, no user's or installed packages; utf8 because the environment has no locale.
        argv = [*prefix, _mounts.interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", _LOADER.format(fd=job_fd)]
        return subprocess.Popen(
            argv,
            stdin=stdin_fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=fds,
            start_new_session=True,
        )


@functools.cache
def find_sandbox(choice: SandboxChoice = "auto") -> Sandbox:
    """The strongest sandbox that works on this machine (`auto`) or the one named, established by running it once.

    `none` isolates nothing and warns so. Raises SandboxError with the reasons and the fix if there is no other, and
    ValueError for an unknown name.
    """
    if choice not in get_args(SandboxChoice):
        raise ValueError(f"unknown sandbox {choice!r}; choose one of {', '.join(get_args(SandboxChoice))}")
    if choice == "none":
        message = (
            "sandbox 'none': programs written by a model run WITHOUT ISOLATION, with this user's files and network"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=2)
        return Sandbox("none")
    reasons = []
    candidates: tuple[SandboxKind, ...] = ("bubblewrap", "landlock") if choice == "auto" else (choice,)
    for candidate in candidates:
        reason = _probe(Sandbox(candidate))
        if not reason:
            return Sandbox(candidate)
        reasons.append(f"{candidate}: {reason}")
    raise SandboxError(
        "no sandbox for programs works here; install bubblewrap (apt-get install bubblewrap) and allow user "
        f"namespaces, or use a kernel with Landlock, or run without isolation (sandbox none). {'; '.join(reasons)}"
    )


def _probe(sandbox: Sandbox) -> str:
    """Why `sandbox` can't be used, or an empty string."""
    if sandbox.kind == "bubblewrap" and not shutil.which("bwrap"):
        return "bwrap is not installed"
    if sandbox.kind == "landlock" and not _seccomp.SUPPORTED:
        return "implemented for x86-64 only"
    try:
        result = sandbox.run(_PROBE, limits=Limits(wall_s=60))  # a busy machine is no reason to isolate less
    except SandboxError as error:
        return str(error)
    return "" if result.stdout == "isolated\n" and not result.reason else f"{result.stdout}{result.reason}"


def _trusted_modules(*names: str) -> list[tuple[str, CodeType]]:
    return [(f"{__package__}.{name}", _compiled(name)) for name in ("_seccomp", *names)]


@functools.cache
def _compiled(name: str) -> CodeType:
    """Code that runs inside the sandbox, compiled once here, since the sandbox runs the same interpreter."""
    path = Path(__file__).with_name(f"{name}.py")
    return compile(path.read_text(), path.name, "exec")


@functools.cache
def _base_filter() -> bytes:
    return _seccomp.base_filter() if _seccomp.SUPPORTED else b""


@functools.cache
def _program_filter(kind: SandboxKind) -> bytes:
    if kind == "none" or not _seccomp.SUPPORTED:
        return b""
    return _seccomp.program_filter(attributes=kind == "landlock")


def _memory_file(stack: ExitStack, content: bytes) -> int:
    """A file in memory, positioned at its start: unlike a pipe, it never has to be fed."""
    fd = os.memfd_create("job")
    stack.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _execution(returncode: int, stdout: bytes, stderr: bytes, stopped: str) -> Execution:
    code = 128 + signal.SIGKILL if stopped else 128 - returncode if returncode < 0 else returncode
    reason = stopped or (_exit_reason(code) if code else "")
    texts = stdout.decode(errors="replace"), stderr.decode(errors="replace")
    return Execution(code, *texts, stopped.startswith("timed out"), reason)


def _exit_reason(code: int) -> str:
    """Words for an exit code; SIGXCPU is the processor-time limit of `Limits.cpu_s`."""
    if code == 128 + signal.SIGXCPU:
        return "processor time used up"
    return f"signal {code - 128}" if 128 < code < 193 else f"exit {code}"
