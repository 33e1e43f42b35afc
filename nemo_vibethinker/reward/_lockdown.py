"""System calls by which a sandboxed process gives up its rights, and by which a warden keeps hold of it.

Structures and numbers: kernel documentation, userspace-api/landlock, capset(2) and prctl(2). Landlock, capabilities and
filters are for x86-64 only.
"""

import ctypes
import os
import signal
import stat
import struct

from nemo_vibethinker.reward._seccomp import OWN_PID

_LIBC = ctypes.CDLL(None, use_errno=True)
_CAPSET, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 126, 444, 445, 446
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_GET_KEEPCAPS, _PR_SET_KEEPCAPS, _PR_SET_SECCOMP = 1, 4, 7, 8, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_CAP_DAC_READ_SEARCH = 1 << 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}  # by version of Landlock: how many it knows
_TCP_RIGHTS, _SCOPES = 3, 3  # bind and connect from version 4; abstract sockets and signals from version 6


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _syscall(number: int, *arguments: object) -> int:
    return _check(_LIBC.syscall(ctypes.c_long(number), *arguments))


def _prctl(option: int, *arguments: object) -> int:
    return _check(_LIBC.prctl(option, *(ctypes.c_ulong(argument) if isinstance(argument, int) else argument
                                        for argument in arguments)))  # fmt: skip


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent ends."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def die_with_parent(number: signal.Signals, parent: int) -> None:
    """Get signal `number` when the thread that started this process ends; at once if `parent` has ended already."""
    _prctl(_PR_SET_PDEATHSIG, int(number), 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def hide_from_proc() -> None:
    """Let no other process of the same user open this one's files and memory in /proc; children inherit that."""
    _prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)


def keep_reading() -> None:
    """Let root's capabilities outlive the change of user; `restrict_files` keeps the one that reads an interpreter
    in a private home."""
    _prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)


def restrict_files(readable: list[str], listed: list[str]) -> None:
    """Leave `readable` paths and the names in `listed` folders in reach, no writable file, no TCP, no way back."""
    if os.getuid() and _prctl(_PR_GET_KEEPCAPS, 0, 0, 0, 0):
        _keep_one_capability()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    ruleset = _ruleset()
    for path in readable:
        _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
    for path in listed:
        _allow(ruleset, path, _READ_DIR)
    _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
    _syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def install_filter(seccomp: bytes) -> None:
    """Put a filter of `_seccomp` on this process and what it starts; an empty one does nothing."""
    if seccomp:
        seccomp = seccomp.replace(struct.pack("I", OWN_PID), struct.pack("I", os.getpid()))
        code = ctypes.create_string_buffer(seccomp, len(seccomp))
        program = struct.pack("HxxxxxxP", len(seccomp) // 8, ctypes.addressof(code))
        _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _prctl(_PR_SET_SECCOMP, 2, program, 0, 0)


def _keep_one_capability() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    low = (_CAP_DAC_READ_SEARCH, _CAP_DAC_READ_SEARCH, 0)
    _syscall(_CAPSET, header, struct.pack("6I", *low, 0, 0, 0))


def _ruleset() -> int:
    version = _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    rights = (1 << _FILE_RIGHTS[min(version, max(_FILE_RIGHTS))]) - 1
    attributes = struct.pack("Q", rights)
    if version >= 4:
        attributes += struct.pack("Q", _TCP_RIGHTS)
    if version >= 6:
        attributes += struct.pack("Q", _SCOPES)
    return _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)


def _allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= ~_READ_DIR
    _syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, fd), 0)
    os.close(fd)
