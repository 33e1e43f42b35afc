"""Running untrusted Python programs, each in its own fresh and isolated process.

Two ways, chosen by `find_sandbox`:

- `bubblewrap`: own pid, network, IPC, host-name and (unless started by root) user namespaces; a file system that holds
  the interpreter, the system's shared libraries, /dev/null and a small writable /tmp; a seccomp filter; rlimits.
- `landlock`, for containers that forbid namespaces (x86-64): Landlock leaves the same files readable and none writable,
  seccomp takes away sockets, signals and everything that outlives the process group; rlimits. Weaker: file metadata
  stays visible, the directory of installed packages of the interpreter is readable, and nothing can be written.

When started by root, programs run as an own unprivileged user each, because RLIMIT_NPROC does not hold for root.
Memory is limited per process, so a run can reach `memory_mb * processes`.
"""

import functools
import marshal
import os
import random
import selectors
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import CodeType
from typing import Literal

from nemo_vibethinker.reward._seccomp import SUPPORTED as SECCOMP_SUPPORTED
from nemo_vibethinker.reward._seccomp import seccomp_filter

SandboxKind = Literal["bubblewrap", "landlock"]

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
    """Limits of one run. `wall_s` covers the start of the sandbox too; `memory_mb` and `cpu_s` hold per process.

    `processes` counts threads as well; `file_mb` bounds each file and the whole of /tmp; `output_kb` bounds standard
    output and standard error each. Raises ValueError for a limit that is not positive.
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

    def run(self, program: str | CodeType, *, stdin: str | bytes = "", limits: Limits) -> Execution:
        """Run `program` (source, or trusted code compiled by this interpreter) as `__main__` of a new process.

        Raises SandboxError if the program was never reached.
        """
        with ExitStack() as stack:
            ready_read, ready_write = os.pipe()
            stack.callback(os.close, ready_read)
            closing_write = stack.enter_context(open(ready_write, "wb", buffering=0))
            job_fd = _memory_file(stack, marshal.dumps(self._job(program, limits, ready_write)))
            filter_fd = _memory_file(stack, _filter(self.kind))
            text = stdin.encode() if isinstance(stdin, str) else stdin
            process = self._start(job_fd, filter_fd, ready_write, _memory_file(stack, text), limits)
            closing_write.close()
            stdout, stderr, stopped = _collect(process, limits)
            if not os.read(ready_read, 1):
                detail = stderr.decode(errors="replace").strip() or stopped or f"exit {process.returncode}"
                raise SandboxError(f"{self.kind} sandbox did not start: {detail[-500:]}")
        return _execution(process.returncode, stdout, stderr, stopped)

    def _job(self, program: str | CodeType, limits: Limits, ready_fd: int) -> dict[str, object]:
        bare = self.kind == "landlock"
        return {
            "code": trusted_code("_bootstrap"),
            "lockdown": trusted_code("_lockdown") if bare else None,
            "program": program,
            "limits": asdict(limits),
            "uid": random.choice(_UIDS) if os.geteuid() == 0 else 0,
            "readable": [path for path in _readable() if os.path.exists(path)],
            "filter": _filter(self.kind),
            "ready_fd": ready_fd,
        }

    def _start(self, job_fd: int, filter_fd: int, ready_fd: int, stdin_fd: int, limits: Limits) -> subprocess.Popen:
        prefix = _bubblewrap(filter_fd, limits) if self.kind == "bubblewrap" else []
        # -I -S: no environment, no user's or installed packages; utf8 because the environment has no locale.
        argv = [*prefix, _interpreter(), "-I", "-S", "-B", "-X", "utf8", "-c", _LOADER.format(fd=job_fd)]
        return subprocess.Popen(
            argv,
            stdin=stdin_fd,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={},
            cwd="/",
            pass_fds=(job_fd, filter_fd, ready_fd),
            start_new_session=True,
        )


@functools.cache
def find_sandbox(kind: SandboxKind | None = None) -> Sandbox:
    """The strongest sandbox that works on this machine (or the one named), established by running it once.

    Raises SandboxError with the reasons and the fix if there is none.
    """
    reasons = []
    candidates: tuple[SandboxKind, ...] = (kind,) if kind else ("bubblewrap", "landlock")
    for candidate in candidates:
        reason = _probe(Sandbox(candidate))
        if not reason:
            return Sandbox(candidate)
        reasons.append(f"{candidate}: {reason}")
    raise SandboxError(
        "no sandbox for programs works here; install bubblewrap (apt-get install bubblewrap) and allow user "
        f"namespaces, or use a kernel with Landlock. {'; '.join(reasons)}"
    )


def _probe(sandbox: Sandbox) -> str:
    """Why `sandbox` can't be used, or an empty string."""
    if sandbox.kind == "bubblewrap" and not shutil.which("bwrap"):
        return "bwrap is not installed"
    if sandbox.kind == "landlock" and not SECCOMP_SUPPORTED:
        return "implemented for x86-64 only"
    try:
        result = sandbox.run(_PROBE, limits=Limits())
    except SandboxError as error:
        return str(error)
    return "" if result.stdout == "isolated\n" else result.stdout or result.reason


@functools.cache
def trusted_code(name: str) -> CodeType:
    """Code that runs inside the sandbox, compiled once here, since the sandbox runs the same interpreter."""
    path = Path(__file__).with_name(f"{name}.py")
    return compile(path.read_text(), path.name, "exec")


@functools.cache
def _filter(kind: SandboxKind) -> bytes:
    return seccomp_filter(namespaces=kind == "bubblewrap") if SECCOMP_SUPPORTED else b""


@functools.cache
def _interpreter() -> str:
    """The interpreter below a virtual environment, which holds none of the environment's packages."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@functools.cache
def _readable() -> list[str]:
    """What the interpreter needs: itself, its library, and the system's shared libraries."""
    prefixes = {sys.base_prefix, sys.base_exec_prefix} - {"/usr"}
    return ["/lib", "/lib64", "/usr/lib", "/usr/lib64", *(f"{prefix}/lib" for prefix in prefixes), _interpreter()]


def _bubblewrap(filter_fd: int, limits: Limits) -> list[str]:
    """The bubblewrap command line. Root needs no user namespace, and keeps what it takes to become another user."""
    size = ["--perms", "1777", "--size", str(limits.file_mb << 20), "--tmpfs", "/tmp"]
    seccomp = ["--seccomp", str(filter_fd)] if SECCOMP_SUPPORTED else []
    return [*_namespaces(), *_mounts(), *size, "--remount-ro", "/", "--chdir", "/tmp", *seccomp, "--"]


@functools.cache
def _namespaces() -> tuple[str, ...]:
    root = ("--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    spaces = ("pid", "net", "ipc", "uts", "cgroup-try")
    if os.geteuid() != 0:
        spaces, root = (*spaces, "user"), ()
    return (shutil.which("bwrap") or "bwrap", *(f"--unshare-{space}" for space in spaces), *root,
            "--die-with-parent", "--new-session", "--clearenv")  # fmt: skip


@functools.cache
def _mounts() -> tuple[str, ...]:
    mounts: list[str] = []
    # A prefix under a private home (/root) would copy its mode, which keeps the unprivileged user out.
    parents = {parent for path in (*_readable(), "/dev/null") for parent in Path(path).parents}
    for parent in sorted(parents - {Path("/")}):
        mounts += ["--perms", "0755", "--dir", str(parent)]
    for path in _readable():
        if os.path.islink(path):
            mounts += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            mounts += ["--ro-bind", path, path]
    packages = Path(sysconfig.get_path("stdlib"), "site-packages")
    hidden = ["--tmpfs", str(packages)] if packages.is_dir() else []
    return (*mounts, *hidden, "--dev-bind", "/dev/null", "/dev/null")


def _memory_file(stack: ExitStack, content: bytes) -> int:
    """A file in memory, positioned at its start: unlike a pipe, it never has to be fed."""
    fd = os.memfd_create("job")
    stack.callback(os.close, fd)
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _collect(process: subprocess.Popen, limits: Limits) -> tuple[bytes, bytes, str]:
    """Read both streams until the process and all it started are gone; returns them and why it was stopped, if so."""
    deadline = time.monotonic() + limits.wall_s
    assert process.stdout
    assert process.stderr
    streams = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray()}
    exit_fd = os.pidfd_open(process.pid)
    try:
        stopped = _read_streams(streams, exit_fd, process.pid, deadline, limits)
    finally:
        _kill_group(process.pid)
        process.wait()
        os.close(exit_fd)
        process.stdout.close()
        process.stderr.close()
    stdout, stderr = streams.values()
    return bytes(stdout), bytes(stderr), stopped


def _read_streams(streams: dict[int, bytearray], exit_fd: int, pid: int, deadline: float, limits: Limits) -> str:
    with selectors.DefaultSelector() as selector:
        for fd in (*streams, exit_fd):
            selector.register(fd, selectors.EVENT_READ)
        while selector.get_map():
            ready = selector.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return f"timed out after {limits.wall_s:g} s"
            for key, _ in ready:
                if key.fd == exit_fd:
                    _kill_group(pid)  # what it left behind would hold the streams open
                chunk = b"" if key.fd == exit_fd else os.read(key.fd, 65536)
                if not chunk:
                    selector.unregister(key.fd)
                    continue
                streams[key.fd] += chunk
                if len(streams[key.fd]) > limits.output_kb << 10:
                    del streams[key.fd][limits.output_kb << 10 :]
                    return f"more than {limits.output_kb} KB of output"
    return ""


def _kill_group(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def _execution(returncode: int, stdout: bytes, stderr: bytes, stopped: str) -> Execution:
    code = 128 - returncode if returncode < 0 else returncode
    reason = stopped or (_exit_reason(code) if code else "")
    texts = stdout.decode(errors="replace"), stderr.decode(errors="replace")
    return Execution(code, *texts, stopped.startswith("timed out"), reason)


def _exit_reason(code: int) -> str:
    """Words for an exit code; SIGXCPU is the processor-time limit of `Limits.cpu_s`."""
    if code == 128 + signal.SIGXCPU:
        return "processor time used up"
    return f"signal {code - 128}" if 128 < code < 193 else f"exit {code}"
