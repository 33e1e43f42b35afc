"""First code inside a sandbox: it gives up rights, sets limits, reports readiness and runs the program.

The text of this file is executed by the sandboxed interpreter with the dictionary `job` in its globals. Where no pid
namespace ends everything that a program started, a warden, which keeps its rights, stays outside and does so.
"""

import os
import resource
import signal
import sys
from types import ModuleType
from typing import Any

_PACKAGES = ("nemo_vibethinker", "nemo_vibethinker.reward")


def _count_tasks(uid: int) -> int:
    """Threads of a user on this machine, which RLIMIT_NPROC counts where no user namespace counts apart."""
    total = 0
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{name}").st_uid == uid:
                total += len(os.listdir(f"/proc/{name}/task"))
        except FileNotFoundError:  # the process ended between the listing and this look
            continue
    return total


def _become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _limit(limits: dict[str, Any], tasks_already: int) -> None:
    for what, soft, hard in (
        (resource.RLIMIT_CPU, limits["cpu_s"], limits["cpu_s"] + 1),
        (resource.RLIMIT_AS, limits["memory_mb"] << 20, limits["memory_mb"] << 20),
        (resource.RLIMIT_FSIZE, limits["file_mb"] << 20, limits["file_mb"] << 20),
        (resource.RLIMIT_NPROC, tasks_already + limits["processes"], tasks_already + limits["processes"]),
        (resource.RLIMIT_NOFILE, 64, 64),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


def _load(modules: list[tuple[str, Any]]) -> ModuleType:
    """Put trusted modules, in the order of their imports, where `import` finds them; returns the last."""
    for name in _PACKAGES:
        sys.modules[name] = ModuleType(name)
        sys.modules[name].__path__ = []
    module = ModuleType("none")
    for name, code in modules:
        module = sys.modules[name] = ModuleType(name)
        exec(code, module.__dict__)
    return module


def _start_warden(lockdown: Any, parent: int) -> None:
    """Go on in a child; this process only waits for it, ends all it has left behind, and exits with its code."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    lockdown.die_with_parent(signal.SIGTERM, parent)
    lockdown.adopt_orphans()
    child = os.fork()
    if child:
        try:
            code = _wait_for(child)
        finally:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            _end_descendants()
        os._exit(code)
    os.setpgid(0, 0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _wait_for(child: int) -> int:
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return 128 - code if code < 0 else code


def _end_descendants() -> None:
    """Kill by group, which no fork outruns, until no child is left; orphans become children of this process."""
    while True:
        with open(f"/proc/self/task/{os.getpid()}/children") as file:
            children = [int(pid) for pid in file.read().split()]
        for child in children:
            os.killpg(os.getpgid(child), signal.SIGKILL)
        try:
            os.wait()
        except ChildProcessError:
            return


def main(job: dict[str, Any]) -> None:
    os.environ.clear()
    program = _load(job["modules"])
    lockdown: Any = sys.modules.get("nemo_vibethinker.reward._lockdown")
    if job["kind"] != "bubblewrap":
        _start_warden(lockdown, job["parent"])
        warden = os.getppid()
        if job["uid"]:
            lockdown.keep_reading()
    _limit(job["limits"], _count_tasks(os.getuid()) if job["count_tasks"] else 0)
    if job["uid"]:
        _become(job["uid"])
    if job["kind"] != "bubblewrap":
        lockdown.die_with_parent(signal.SIGKILL, warden)
    if job["kind"] == "landlock":
        lockdown.restrict_files(job["readable"], job["listed"])
        lockdown.install_filter(job["base_filter"])
    os.write(job["ready_fd"], b"1")  # now, since compiling a hostile source may exhaust the limits
    os.close(job["ready_fd"])
    if job["source"] is None:
        program.main()
    else:
        lockdown.install_filter(job["program_filter"])
        exec(compile(job["source"], "program.py", "exec"), {"__name__": "__main__", "__builtins__": __builtins__})


main(globals().pop("job"))
