# ruff: noqa: E501 - programs are easier to read on one line
"""Attempts to get out of the sandbox, or at a verdict; every one in every kind of sandbox that works here.

An attempt prints ESCAPED where it got something it must not have. Those in `CONTROLS` do print it without a sandbox,
which shows that they are real.
"""

import os
import secrets
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_vibethinker.reward.sandbox import Execution, Limits, Sandbox, SandboxError, find_sandbox

pytestmark = pytest.mark.e2e

KINDS = ("bubblewrap", "landlock")
LIMITS = Limits(wall_s=10, cpu_s=1, memory_mb=128, processes=8, file_mb=2, output_kb=8)
PRELUDE = """
import ctypes, os, signal, socket, sys, time
LIBC = ctypes.CDLL(None, use_errno=True)
def syscall(*numbers):
    if LIBC.syscall(*[ctypes.c_long(n) if isinstance(n, int) else n for n in numbers]) != -1: print("ESCAPED", numbers)
    elif ctypes.get_errno() != 1: print("not denied:", os.strerror(ctypes.get_errno()))
def attempt(function, *arguments):
    try: function(*arguments)
    except (OSError, ValueError, AttributeError): return
    print("ESCAPED", function)
"""

# Each as a program; @NAME@ stands for something of the host.
ATTEMPTS = {
    "TCP": "attempt(socket.create_connection, ('127.0.0.1', @PORT@), 2)",
    "UDP": "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', @PORT@)))",
    "IPv6": "attempt(lambda: socket.socket(socket.AF_INET6).connect(('::1', @PORT@)))",
    "DNS": "attempt(socket.getaddrinfo, 'localhost.localdomain', 80)\n"
    "attempt(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 53)))",
    "unix socket": "attempt(lambda: socket.socket(socket.AF_UNIX).connect('@UNIX@'))",
    "abstract unix socket": "attempt(lambda: socket.socket(socket.AF_UNIX).connect('\\0@ABSTRACT@'))",
    "netlink": "attempt(socket.socket, socket.AF_NETLINK, socket.SOCK_RAW, 0)",
    "vsock": "attempt(socket.socket, socket.AF_VSOCK)",
    "kernel crypto": "attempt(socket.socket, socket.AF_ALG, socket.SOCK_SEQPACKET)",
    "packet socket": "attempt(socket.socket, socket.AF_PACKET, socket.SOCK_RAW, 768)",
    "read a host file": "attempt(open, '@SECRET@')",
    "write a host file": "attempt(open, '@SECRET@', 'a')",
    "host file by /proc/self/root": "attempt(open, '/proc/self/root@SECRET@')",
    "host file by a link": "try: os.symlink('@SECRET@', '/tmp/link')\nexcept OSError: pass\nattempt(open, '/tmp/link')",
    "host file by a hard link": "attempt(os.link, '@SECRET@', '/tmp/hard')",
    "host file by ..": "attempt(open, '/tmp/' + '../' * 40 + '@SECRET@')",
    "passwords": "attempt(open, '/etc/passwd')\nattempt(open, '/etc/shadow')",
    "list a host folder": "attempt(os.listdir, '@FOLDER@')",
    "delete a host file": "attempt(os.unlink, '@SECRET@')",
    "rename a host file": "attempt(os.rename, '@SECRET@', '/tmp/mine')",
    "new file in a host folder": "attempt(open, '@FOLDER@/new', 'w')",
    "set-user-id programs": "for path in ('/bin/su', '/usr/bin/sudo', '/usr/bin/passwd'): attempt(os.execv, path, ['x'])",
    "shell": "if os.fork() == 0:\n    attempt(os.execv, '/bin/sh', ['sh', '-c', 'echo ESCAPED'])\nelse: os.wait()",
    "process list": "try: pids = [n for n in os.listdir('/proc') if n.isdigit()]\nexcept OSError: pids = []\n"
    "if pids: print('ESCAPED', pids)",
    "environment of others": "for pid in ('self', '1', @PID@, os.getppid()): attempt(open, f'/proc/{pid}/environ')",
    "memory of others": "for pid in ('self', '1', @PID@, os.getppid()): attempt(open, f'/proc/{pid}/mem', 'rb')",
    "command lines of others": "for pid in (1, @PID@, os.getppid()): attempt(open, f'/proc/{pid}/cmdline')",
    "environment": "ctypes.c_char_p.in_dll(LIBC, 'environ').value and print('ESCAPED')\nif os.environ: print('ESCAPED')",
    "ptrace": "for pid in (@PID@, os.getppid()): syscall(101, 16, pid, 0, 0)",
    "read a parent's memory": "b = ctypes.create_string_buffer(8)\nv = (ctypes.c_long * 2)(ctypes.addressof(b), 8)\n"
    "for pid in (@PID@, os.getppid()): syscall(310, pid, v, 1, v, 1, 0)",
    "write a parent's memory": "b = ctypes.create_string_buffer(8)\nv = (ctypes.c_long * 2)(ctypes.addressof(b), 8)\n"
    "for pid in (@PID@, os.getppid()): syscall(311, pid, v, 1, v, 1, 0)",
    "steal a parent's file": "syscall(438, 3, 0, 0)",
    "signal the host": "attempt(os.kill, @PID@, 0)\nattempt(os.kill, @PID@, 9)",
    "signal the parent": "attempt(os.kill, os.getppid(), 0)\nattempt(os.kill, -1, 0)\nattempt(os.killpg, 0, 0)",
    "signal by a pidfd": "attempt(lambda: signal.pidfd_send_signal(os.pidfd_open(@PID@), 0))",
    "signal by an owner of a pipe": "import fcntl\nr, w = os.pipe()\nattempt(fcntl.fcntl, r, fcntl.F_SETOWN, @PID@)\n"
    "attempt(fcntl.fcntl, r, 10, 9)",
    "limits of the parent": "import resource\n"
    "for pid in (@PID@, os.getppid()): attempt(resource.prlimit, pid, resource.RLIMIT_CPU, (1, 1))",
    "more than its limits": "import resource\nfor kind in (resource.RLIMIT_AS, resource.RLIMIT_NPROC, resource.RLIMIT_FSIZE):\n"
    "    attempt(resource.setrlimit, kind, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))",
    "priority": "attempt(os.setpriority, os.PRIO_PROCESS, 0, -5)\nattempt(os.sched_setscheduler, 0, 1, os.sched_param(9))",
    "root user": "attempt(os.setuid, 0)\nattempt(os.setresuid, 0, 0, 0)\nattempt(os.setgroups, [0])",
    "new session": "if os.fork() == 0: attempt(os.setsid)\nelse: os.wait(); attempt(os.setpgid, 0, os.getppid())",
    "user namespace": "syscall(272, 0x10000000)",
    "user namespace by clone": "syscall(56, 0x10000000 | 17, 0, 0, 0, 0)",
    "user namespace by clone3": "a = (ctypes.c_ulong * 8)(0x10000000)\nLIBC.syscall(435, a, 64) != -1 and print('ESCAPED')",
    "join a namespace": "attempt(open, '/proc/1/ns/mnt')\nsyscall(308, 3, 0)",
    "mount": "syscall(165, b'none', b'/tmp', b'tmpfs', 0, 0)",
    "new mount interface": "syscall(428, -100, b'/', 1)\nsyscall(430, b'tmpfs', 0)",
    "unmount": "syscall(166, b'/tmp', 2)",
    "chroot": "attempt(os.chroot, '/tmp')",
    "pivot_root": "syscall(155, b'/tmp', b'/tmp')",
    "keyring": "syscall(250, 0, -3, 0)\nsyscall(248, b'user', b'x', b'y', 1, -3)",
    "BPF": "syscall(321, 0, ctypes.create_string_buffer(72), 72)",
    "io_uring": "syscall(425, 4, ctypes.create_string_buffer(120))",
    "personality": "syscall(135, 0x0040000)",
    "performance counters": "syscall(298, ctypes.create_string_buffer(112), 0, -1, -1, 0)",
    "userfaultfd": "syscall(323, 1)",
    "file handles": "syscall(303, -100, b'/', ctypes.create_string_buffer(b'\\x80', 136), ctypes.create_string_buffer(8), 0)",
    "kernel module": "syscall(313, 0, b'', 0)",
    "reboot": "syscall(169, 0xfee1dead, 672274793, 0, 0)",
    "clock": "attempt(time.clock_settime, time.CLOCK_REALTIME, 0.0)",
    "host name": "attempt(socket.sethostname, 'x')",
    "System V memory": "syscall(29, 0, 1 << 20, 0o1600)",
    "message queue": "syscall(240, b'x', 0o102, 0o600, 0)",
    "secret memory": "syscall(447, 0)",
    "memory file": "attempt(os.memfd_create, 'x')",
    "system call of another convention": "if os.fork() == 0:\n"
    "    LIBC.syscall(ctypes.c_long(0x40000000 | 39)) > 0 and print('ESCAPED', flush=True)\n    os._exit(0)\nos.wait()",
    "type into the terminal": "import fcntl\nfor fd in (0, 1, 2):\n    attempt(fcntl.ioctl, fd, 0x5412, b'x')\n"
    "attempt(open, '/dev/tty', 'w')",
    "devices": "for name in ('mem', 'kmsg', 'sda', 'vda', 'shm/x', 'fuse', 'kvm', 'ptmx'): attempt(open, f'/dev/{name}', 'r+b')",
    "sysfs": "for path in ('/sys/kernel', '/sys/class', '/sys/fs/cgroup'): attempt(os.listdir, path)",
    "kernel settings": "for path in ('/proc/sys/kernel/core_pattern', '/proc/self/oom_score_adj'): attempt(open, path, 'w')",
    "interpreter's files": "for path in (os.__file__, sys.executable, ctypes.__file__): attempt(open, path, 'r+b')\n"
    "attempt(os.rename, os.__file__, os.__file__ + 'x')",
    "attributes of interpreter's files": "attempt(os.chmod, os.__file__, 0o777)\nattempt(os.utime, os.__file__, (0, 0))\n"
    "attempt(os.truncate, os.__file__, 0)",
    "start-up hooks": "folder = os.path.dirname(os.__file__)\n"
    "for name in ('sitecustomize.py', 'site-packages/x.pth', '__pycache__/os.cpython-311.pyc'):\n"
    "    attempt(open, os.path.join(folder, name), 'w')",
    "installed packages": "folder = os.path.join(os.path.dirname(os.__file__), 'site-packages')\n"
    "names = os.listdir(folder) if os.path.isdir(folder) and os.access(folder, 4) else []\n"
    "for name in names: attempt(os.listdir, os.path.join(folder, name))",
    "project's own files": "attempt(open, '@MODULE@')",
    "inherited descriptors": "found = []\nfor fd in range(3, 64):\n    try: os.fstat(fd)\n    except OSError: continue\n"
    "    found.append(fd)\nif found: print('ESCAPED', found)",
}  # fmt: skip
CONTROLS = ("TCP", "unix socket", "abstract unix socket", "read a host file", "write a host file", "shell", "process list",
            "memory of others", "signal the host", "sysfs", "memory file", "project's own files", "new session")  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return find_sandbox(request.param)
    except SandboxError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A file that all may read and write, sockets that listen, and a process to attack."""
    folder = tmp_path_factory.mktemp("host")
    secret = folder / "secret"
    secret.write_text("42")
    for path in (folder, *(path for path in folder.parents[:-1] if path.stat().st_uid == os.getuid())):
        path.chmod(path.stat().st_mode | 0o755)
    secret.chmod(0o666)
    abstract = f"nvt-{os.getpid()}-{secrets.token_hex(4)}"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as unnamed,
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) as victim,
    ):
        named.bind(str(folder / "socket"))
        (folder / "socket").chmod(0o777)
        unnamed.bind(f"\0{abstract}")
        named.listen()
        unnamed.listen()
        yield {
            "PORT": str(server.getsockname()[1]),
            "UNIX": str(folder / "socket"),
            "ABSTRACT": abstract,
            "SECRET": str(secret),
            "FOLDER": str(folder),
            "PID": str(victim.pid),
            "MODULE": os.path.abspath(__file__),
        }
        victim.kill()


def run_attempt(sandbox: Sandbox, name: str, host: dict[str, str]) -> Execution:
    program = ATTEMPTS[name]
    for key, value in host.items():
        program = program.replace(f"@{key}@", value)
    return sandbox.run(PRELUDE + program + "\nprint('done')", limits=LIMITS)


@pytest.mark.parametrize("name", ATTEMPTS)
def test_attempt_is_contained(sandbox: Sandbox, name: str, host: dict[str, str]) -> None:
    result = run_attempt(sandbox, name, host)
    assert "ESCAPED" not in result.stdout, result
    assert "not denied" not in result.stdout, result
    assert result.stdout.endswith("done\n"), result
    assert Path(host["SECRET"]).read_text() == "42"
    assert sorted(os.listdir(host["FOLDER"])) == ["secret", "socket"]
    os.kill(int(host["PID"]), 0)


@pytest.mark.parametrize("name", CONTROLS)
def test_attempt_succeeds_without_a_sandbox(name: str, host: dict[str, str]) -> None:
    if name == "signal the host":
        name_of_own_victim = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        host = host | {"PID": str(name_of_own_victim.pid)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        assert "ESCAPED" in run_attempt(find_sandbox.__wrapped__("none"), name, host).stdout
    if name == "signal the host":
        assert name_of_own_victim.wait(5) == -9


BOMB = "\nsys.stdout.flush()\ntime.sleep(20)"
ABUSES = {
    "sleep": ("print(1, flush=True)\ntime.sleep(60)", "timed out after 1 s"),
    "infinite loop": ("while True: pass", "processor time used up"),
    "SIGXCPU ignored": ("signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", "signal 9"),
    "all signals blocked": ("signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass", "signal 9"),
    "memory": ("x = []\nwhile True: x.append(bytearray(1 << 20))", "exit 1"),
    "memory of many processes": (
        "for _ in range(5):\n    if os.fork() == 0: break\nx = bytearray(60 << 20)" + BOMB,
        "more than 128 MB of memory",
    ),
    "memory in small pieces of many processes": (
        "for _ in range(5):\n    if os.fork() == 0: break\nx = []\nwhile len(x) < 600000: x.append([0] * 8)" + BOMB,
        "more than 128 MB of memory",
    ),
    "output": ("while True: print('x' * 1000)", "more than 8 KB of output"),
    "errors": ("while True: print('x' * 1000, file=sys.stderr)", "more than 8 KB of output"),
    "output by a thread that goes on": (
        "import threading\nthreading.Thread(target=lambda: [print('x' * 1000) for _ in range(10**6)]).start()",
        "more than 8 KB of output",
    ),
    "stack": (
        "sys.setrecursionlimit(10**9)\nclass A:\n    def __repr__(self): return repr(self)\nrepr(A())",
        "signal 11",
    ),
    "segmentation fault": ("ctypes.string_at(0)", "signal 11"),
    "abort": ("os.abort()", "signal 6"),
    "source that exhausts the compiler": (
        "try: compile('(' * 10**6, 'x', 'exec')\nexcept SyntaxError: sys.exit(1)",
        "exit 1",
    ),
}


@pytest.mark.parametrize("name", ABUSES)
def test_abuse_is_stopped(sandbox: Sandbox, name: str) -> None:
    program, reason = ABUSES[name]
    wall_s = 1 if "timed out" in reason else 10
    limits = Limits(wall_s=wall_s, cpu_s=1, memory_mb=128, processes=8, output_kb=8)
    result = sandbox.run(PRELUDE + program, limits=limits)
    assert result.reason == reason, result


@pytest.mark.parametrize(
    "start", ["if os.fork() == 0: time.sleep(60)", "threading.Thread(target=time.sleep, args=(60,)).start()"]
)
def test_process_and_thread_bombs(sandbox: Sandbox, start: str) -> None:
    program = f"""
import threading
n = 0
try:
    while n < 1000:
        {start}
        n += 1
except (OSError, RuntimeError):
    print(n, flush=True)
os._exit(0)
"""
    result = sandbox.run(PRELUDE + program, limits=LIMITS)
    assert 0 < int(result.stdout) < LIMITS.processes, result


def test_a_chain_of_forks_does_not_outrun_the_end(sandbox: Sandbox) -> None:
    program = "while True:\n    try:\n        if os.fork(): os._exit(0)\n    except OSError: pass"
    result = sandbox.run(PRELUDE + program, limits=Limits(wall_s=1))
    assert not result.stdout, result


def test_the_disk_is_not_filled(sandbox: Sandbox) -> None:
    program = """
total, number = 0, 0
try:
    while True:
        with open(f'/tmp/{number}', 'wb') as file:
            for _ in range(10): total += file.write(bytes(1 << 16)); file.flush()
        number += 1
except OSError:
    print(total)
"""
    result = sandbox.run(PRELUDE + program, limits=LIMITS)
    assert int(result.stdout) <= LIMITS.file_mb << 20, result


def test_many_files(sandbox: Sandbox) -> None:
    program = "n = 0\ntry:\n    while True: open(f'/tmp/{n}', 'w').close(); n += 1\nexcept OSError: print(n)"
    result = sandbox.run(PRELUDE + program, limits=Limits(wall_s=10, cpu_s=5))
    assert result.stdout == "0\n" or "files" in result.reason, result


def names_of_processes() -> set[str]:
    names = set()
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            names.add(path.read_text().strip())
        except OSError:
            continue
    return names


@pytest.mark.parametrize("detach", ["os.setsid()", "os.setpgid(0, 0)", "signal.signal(signal.SIGTERM, signal.SIG_IGN)"])
@pytest.mark.parametrize("end", ["", "time.sleep(60)", "os.kill(os.getpid(), 9)"])
def test_no_daemon_survives(sandbox: Sandbox, detach: str, end: str) -> None:
    name = f"nvt{secrets.token_hex(4)}"
    program = f"""
LIBC.prctl(15, b'{name}')
if os.fork() == 0:
    try: {detach}
    except OSError: pass
    if os.fork() == 0:
        print('up', flush=True)
        time.sleep(600)
    os._exit(0)
time.sleep(0.2)
{end}
"""
    result = sandbox.run(PRELUDE + program, limits=Limits(wall_s=2))
    assert result.stdout == "up\n"
    assert name not in names_of_processes()


KILLED = """
import sys
from nemo_vibethinker.reward.sandbox import Limits, find_sandbox
find_sandbox(sys.argv[1]).run(sys.argv[2], limits=Limits(wall_s=60))
"""


def test_nothing_survives_a_killed_parent(sandbox: Sandbox) -> None:
    name = f"nvt{secrets.token_hex(4)}"
    program = f"{PRELUDE}\nLIBC.prctl(15, b'{name}')\nos.fork() or os.fork()\ntime.sleep(600)"
    with subprocess.Popen([sys.executable, "-c", KILLED, sandbox.kind, program]) as parent:
        wait_until(lambda: name in names_of_processes())
        parent.kill()
    wait_until(lambda: name not in names_of_processes())


def wait_until(condition) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
