"""What a sandbox shows of the host, the interpreter and shared libraries; and the command line of bubblewrap."""

import functools
import os
import shutil
import sys
import sysconfig
from pathlib import Path

_PACKAGES = ("site-packages", "dist-packages")
_SYSTEM = ("/lib", "/lib64", "/usr/lib64")


@functools.cache
def interpreter() -> str:
    """The interpreter below a virtual environment, which holds none of the environment's packages."""
    return os.path.realpath(getattr(sys, "_base_executable", sys.executable))


@functools.cache
def readable() -> tuple[str, ...]:
    """Folders and files that the interpreter needs; all exist."""
    multiarch = sysconfig.get_config_var("MULTIARCH")
    libraries = [f"/usr/lib/{multiarch}", f"/lib/{multiarch}"] if multiarch else []
    if not any(map(os.path.isdir, libraries)):
        libraries = ["/lib", "/usr/lib"]
    own = [f"{prefix}/lib" for prefix in (sys.base_prefix, sys.base_exec_prefix) if prefix != "/usr"]
    own += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")] if sys.base_prefix == "/usr" else []
    paths = [*libraries, "/lib64", "/usr/lib64", *own, interpreter()]
    return tuple(dict.fromkeys(os.path.realpath(path) for path in paths if os.path.exists(path)))


@functools.cache
def package_folders() -> tuple[str, ...]:
    """Folders of installed packages within `readable()`, which programs must not see."""
    roots = [Path(path) for path in readable() if os.path.isdir(path)]
    levels = [path for root in roots for pattern in ("*", "python*/*") for path in root.glob(pattern)]
    return tuple(sorted({str(path) for path in levels if path.name in _PACKAGES and path.is_dir()}))


@functools.cache
def readable_but_packages() -> tuple[list[str], list[str]]:
    """`readable()` for Landlock, which can take nothing away: (trees and files, folders of which names are listed)."""
    parts = [_split(path) for path in readable()]
    return [tree for trees, _ in parts for tree in trees], [folder for _, listed in parts for folder in listed]


def _split(path: str) -> tuple[list[str], list[str]]:
    if path in package_folders():
        return [], []
    if not any(folder.startswith(f"{path}/") for folder in package_folders()):
        return [path], []
    parts = [_split(entry.path) for entry in os.scandir(path) if os.path.exists(entry.path)]
    return [tree for trees, _ in parts for tree in trees], [path, *(f for _, listed in parts for f in listed)]


def bubblewrap_command(filter_fd: int | None, info_fd: int, temporary_mb: int) -> list[str]:
    """The command line up to the program. Root needs no user namespace, and keeps what it takes to change the user."""
    size = ["--perms", "1777", "--size", str(temporary_mb << 20), "--tmpfs", "/tmp"]
    seccomp = ["--seccomp", str(filter_fd)] if filter_fd is not None else []
    last = ["--remount-ro", "/", "--chdir", "/tmp", "--info-fd", str(info_fd)]
    return [*_namespaces(), *_mounts(), *size, *last, *seccomp, "--"]


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
    parents = {parent for path in (*readable(), "/dev/null") for parent in Path(path).parents}
    for parent in sorted(parents - {Path("/")}):
        mounts += ["--perms", "0755", "--dir", str(parent)]
    for path in filter(os.path.islink, _SYSTEM):
        mounts += ["--symlink", os.readlink(path), path]
    for path in readable():
        mounts += ["--ro-bind", path, path]
    for path in package_folders():
        mounts += ["--tmpfs", path]
    return (*mounts, "--dev-bind", "/dev/null", "/dev/null")
