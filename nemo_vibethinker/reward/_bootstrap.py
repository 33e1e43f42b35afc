"""First code inside a sandbox: it gives up rights, sets limits, reports readiness and runs the program.

The text of this file is executed by the sandboxed interpreter with the dictionary `job` in its globals.
"""

import os
import resource
from types import CodeType
from typing import Any


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
    ):
        resource.setrlimit(what, (soft, hard))


def main(job: dict[str, Any]) -> None:
    os.environ.clear()
    lockdown: dict[str, Any] = {}
    if job["lockdown"]:
        exec(job["lockdown"], lockdown)
        lockdown["keep_reading"](job["uid"])
    count_tasks = job["lockdown"] and not job["uid"]
    _limit(job["limits"], _count_tasks(os.getuid()) if count_tasks else 0)
    if job["uid"]:
        _become(job["uid"])
    if job["lockdown"]:
        lockdown["lock"](job["readable"], job["filter"])
    program = job["program"]
    if not isinstance(program, CodeType):
        program = _compiled(program, job["ready_fd"])
    else:
        _report_ready(job["ready_fd"])
    exec(program, {"__name__": "__main__", "__builtins__": __builtins__})


def _report_ready(fd: int) -> None:
    os.write(fd, b"1")
    os.close(fd)


def _compiled(source: str, ready_fd: int) -> CodeType:
    _report_ready(ready_fd)  # first, since compiling a hostile source may exhaust the limits
    return compile(source, "program.py", "exec")


main(globals().pop("job"))
