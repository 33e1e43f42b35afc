import os
import shutil
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from nemo_vibethinker.reward import _mounts
from nemo_vibethinker.reward import sandbox as module
from nemo_vibethinker.reward.sandbox import Limits, Sandbox, SandboxError, find_sandbox

pytestmark = pytest.mark.e2e

LIMITS = Limits(wall_s=10, cpu_s=1, memory_mb=256, processes=6, file_mb=1, output_kb=8)


@pytest.fixture(scope="module", params=["bubblewrap", "landlock"])
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    try:
        return find_sandbox(request.param)
    except SandboxError as error:
        pytest.skip(str(error))


def output(sandbox: Sandbox, program: str, **keywords: str) -> str:
    result = sandbox.run(program, limits=LIMITS, **keywords)
    assert result.reason == "", result
    return result.stdout


def error(sandbox: Sandbox, program: str) -> str:
    result = sandbox.run(program, limits=LIMITS)
    assert (result.returncode, result.reason) == (1, "exit 1"), result
    return result.stderr.splitlines()[-1]


def test_runs_a_program(sandbox: Sandbox) -> None:
    assert output(sandbox, "print(input() + '!')", stdin="h\u00e9llo\n") == "h\u00e9llo!\n"
    result = sandbox.run("import sys; print('x', file=sys.stderr); sys.exit(3)", limits=LIMITS)
    assert (result.returncode, result.stdout, result.stderr, result.reason) == (3, "", "x\n", "exit 3")
    assert error(sandbox, "(") == "SyntaxError: '(' was never closed"


def test_prints_from_threads(sandbox: Sandbox) -> None:
    assert output(sandbox, "import threading\nthreading.Thread(target=print, args=('hi',)).start()") == "hi\n"


def test_has_no_environment_and_no_rights(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "42")
    assert output(sandbox, "import os\nprint(dict(os.environ), os.getuid() > 0 and os.geteuid() > 0)") == "{} True\n"
    assert output(sandbox, "import ctypes\nprint(ctypes.CDLL(None).unshare(0x10000000))") == "-1\n"


@pytest.mark.parametrize("path", ["/etc/passwd", "/root/.bashrc", "/proc/1/environ", "/proc/self/mem", __file__])
def test_reads_no_host_file(sandbox: Sandbox, path: str) -> None:
    assert error(sandbox, f"open({path!r})").split(":")[0] in ("FileNotFoundError", "PermissionError")


def test_reads_and_writes_nothing_of_a_test_folder(sandbox: Sandbox, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("42")
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        folder.chmod(folder.stat().st_mode | 0o755) if folder.stat().st_uid == os.getuid() else None
    secret.chmod(0o666)
    assert error(sandbox, f"open({str(secret)!r})").split(":")[0] in ("FileNotFoundError", "PermissionError")
    assert error(sandbox, f"open({str(secret)!r}, 'a')").split(":")[0] in ("FileNotFoundError", "PermissionError")
    assert secret.read_text() == "42"


def test_installed_files_are_read_only(sandbox: Sandbox) -> None:
    assert error(sandbox, "import os\nopen(os.__file__, 'a')").startswith(("OSError: [Errno 30]", "PermissionError"))


def test_has_no_network(sandbox: Sandbox) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        last = error(sandbox, f"import socket\nsocket.create_connection({server.getsockname()}, 1)")
        assert last.startswith(("OSError", "PermissionError", "ConnectionRefusedError")), last
    assert error(sandbox, "import socket\nsocket.getaddrinfo('example.com', 80)").startswith("socket.gaierror")


def test_infinite_loop_and_sleep(sandbox: Sandbox) -> None:
    loop = sandbox.run("while True: pass", limits=LIMITS)
    assert (loop.timed_out, loop.reason) == (False, "processor time used up")
    start = time.monotonic()
    sleep = sandbox.run("import time; print(1, flush=True); time.sleep(60)", limits=Limits(wall_s=0.7))
    assert (sleep.timed_out, sleep.reason, sleep.stdout) == (True, "timed out after 0.7 s", "1\n")
    assert time.monotonic() - start < 3


def test_memory_hog(sandbox: Sandbox) -> None:
    assert error(sandbox, "x = bytearray(1 << 30)") == "MemoryError"


def test_huge_output_and_file(sandbox: Sandbox) -> None:
    result = sandbox.run("while True: print('x' * 1000)", limits=LIMITS)
    assert (result.reason, len(result.stdout)) == ("more than 8 KB of output", 8192)
    program = "with open('/tmp/x', 'wb') as f:\n    for _ in range(40): f.write(bytes(100_000)); f.flush()"
    assert error(sandbox, program).startswith(("OSError: [Errno 27]", "OSError: [Errno 28]", "PermissionError"))


def test_fork_bomb(sandbox: Sandbox) -> None:
    program = """
import os, time
n = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        n += 1
except OSError:
    print(n)
"""
    assert int(output(sandbox, program)) < LIMITS.processes


def test_nothing_outlives_the_program(sandbox: Sandbox) -> None:
    program = """
import os, time
if os.fork() == 0:
    try: os.setsid()
    except OSError: pass
    time.sleep(60)
print("parent")
"""
    start = time.monotonic()
    assert output(sandbox, program) == "parent\n"
    assert time.monotonic() - start < 5


def test_kills_nobody_outside(sandbox: Sandbox) -> None:
    program = "import os\nfor p in (os.getppid(), {}, -1):\n    try: os.kill(p, 9)\n    except OSError: pass\nprint(1)"
    result = sandbox.run(program.format(os.getpid()), limits=LIMITS)
    assert result.reason in ("", "signal 9")


def test_runs_from_many_threads(sandbox: Sandbox) -> None:
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda n: output(sandbox, f"print({n})"), range(12)))
    assert results == [f"{n}\n" for n in range(12)]


def test_a_sandbox_that_does_not_start_is_an_error(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mounts, "interpreter", lambda: "/bin/false")
    with pytest.raises(SandboxError, match="did not start"):
        sandbox.run("print(1)", limits=LIMITS)


def test_without_any_sandbox_the_error_names_the_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    monkeypatch.setattr(module._seccomp, "SUPPORTED", False)
    with pytest.raises(SandboxError, match=r"apt-get install bubblewrap.*bwrap is not installed.*x86-64"):
        find_sandbox.__wrapped__()


def test_limits_are_positive() -> None:
    with pytest.raises(ValueError, match="limit cpu_s must be positive, not 0"):
        Limits(cpu_s=0)


ORDINARY_USER = """
import sys
sys.path.insert(0, sys.argv[1])
from nemo_vibethinker.reward.code import CodeVerifier
from nemo_vibethinker.reward.sandbox import find_sandbox
program = '''
import os
def f(x):
    seen = []
    for pid in (os.getppid(), os.getppid() - 1, 1, 2, 3):
        for name in ("fd/0", "fd/3", "environ"):
            try: seen.append(os.pread(os.open(f"/proc/{pid}/{name}", os.O_NONBLOCK), 1 << 20, 0))
            except OSError: pass
    return "found" if b"need" b"le" in b"".join(seen) else x
'''
for verdict in CodeVerifier(find_sandbox(sys.argv[2])).grade_programs([
    (["assert f('needle') == 'found'"], program), (["assert f(2) == 2"], program),
    ([{"stdin": "2", "stdout": "8"}], "print(int(input()) ** 3)"),
]):
    print(verdict.kind, verdict.reason)
"""


@pytest.mark.parametrize("kind", ["bubblewrap", "landlock"])
def test_for_an_ordinary_user(kind: str) -> None:
    """Without root, programs share the user of the trusted processes, and bubblewrap needs a user namespace."""
    python = shutil.which("python3", path="/usr/local/bin:/usr/bin")
    if os.getuid() or not python or not shutil.which("setpriv"):
        pytest.skip("needs root to become another user, setpriv, and a python3 in /usr")
    version = subprocess.run([python, "-c", "import sys; print(sys.version_info >= (3, 11))"], capture_output=True)
    if version.stdout != b"True\n":
        pytest.skip(f"{python} is older than 3.11")
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shutil.copytree(Path(module.__file__).parents[1], f"{folder}/nemo_vibethinker")
        subprocess.run(["chmod", "-R", "a+rX", folder], check=True)
        command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", python, "-c", ORDINARY_USER]
        done = subprocess.run([*command, folder, kind], capture_output=True, text=True, cwd="/", env={}, timeout=60)
    if "no sandbox for programs works here" in done.stderr:
        pytest.skip(done.stderr.splitlines()[-1])
    assert done.stdout.splitlines() == [
        "wrong test 1 of 1 (assert f('needle') == 'found'): expected 'found', got 'needle'",
        "right ",
        "right ",
    ], done


def test_without_isolation_it_warns() -> None:
    with pytest.warns(RuntimeWarning, match="WITHOUT ISOLATION"):
        bare = find_sandbox.__wrapped__("none")
    assert bare.run("print(1)", limits=LIMITS).stdout == "1\n"
    assert bare.run("import time; time.sleep(60)", limits=Limits(wall_s=0.5)).timed_out
    with pytest.raises(ValueError, match="unknown sandbox 'docker'; choose one of auto, bubblewrap, landlock, none"):
        find_sandbox("docker")  # pyright: ignore[reportArgumentType]


def test_landlock_takes_over_where_namespaces_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        find_sandbox("landlock")
    except SandboxError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("PATH", "/nowhere")
    assert find_sandbox.__wrapped__("auto").kind == "landlock"
    with pytest.raises(SandboxError, match="bubblewrap: bwrap is not installed"):
        find_sandbox.__wrapped__("bubblewrap")
