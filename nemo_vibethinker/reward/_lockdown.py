"""Landlock, seccomp and capabilities for a process that no namespace contains; runs inside the sandboxed interpreter.

Structures and numbers: kernel documentation, userspace-api/landlock, and capset(2). x86-64 only.
"""

import ctypes
import os
import stat
import struct

_LIBC = ctypes.CDLL(None, use_errno=True)
_CAPSET, _CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 126, 444, 445, 446
_PR_SET_KEEPCAPS, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 8, 22, 38
_CAP_DAC_READ_SEARCH = 1 << 2
_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1, 2, 4, 8
_ACCESS_BY_ABI = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}


def _check(result: int) -> int:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _syscall(number: int, *arguments: object) -> int:
    return _check(_LIBC.syscall(ctypes.c_long(number), *arguments))


def _prctl(option: int, *arguments: object) -> None:
    _check(_LIBC.prctl(option, *arguments))


def keep_reading(uid: int) -> None:
    """Let root's capabilities outlive the change of user; `lock` keeps the one that reads a private interpreter."""
    if uid:
        _prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0)


def _keep_one_capability() -> None:
    header = struct.pack("Ii", 0x20080522, 0)
    low = (_CAP_DAC_READ_SEARCH, _CAP_DAC_READ_SEARCH, 0)
    _syscall(_CAPSET, header, struct.pack("6I", *low, 0, 0, 0))


def _allow(ruleset: int, path: str, access: int) -> None:
    fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
    if not stat.S_ISDIR(os.fstat(fd).st_mode):
        access &= ~_READ_DIR
    _syscall(_ADD_RULE, ruleset, 1, struct.pack("=Qi", access, fd), 0)
    os.close(fd)


def _restrict_files(readable: list[str]) -> None:
    abi = _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), 1)
    handled = _ACCESS_BY_ABI[min(abi, max(_ACCESS_BY_ABI))]
    ruleset = _syscall(_CREATE_RULESET, struct.pack("Q", handled), ctypes.c_size_t(8), 0)
    for path in readable:
        _allow(ruleset, path, _EXECUTE | _READ_FILE | _READ_DIR)
    _allow(ruleset, "/dev/null", _READ_FILE | _WRITE_FILE)
    _syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def lock(readable: list[str], seccomp: bytes) -> None:
    """Leave only `readable` paths in reach, no network, no signals to others, and no way back."""
    if os.getuid() and _may_regain():
        _keep_one_capability()
    _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _restrict_files(readable)
    code = ctypes.create_string_buffer(seccomp, len(seccomp))
    program = struct.pack("HxxxxxxP", len(seccomp) // 8, ctypes.addressof(code))
    _prctl(_PR_SET_SECCOMP, 2, program, 0, 0)


def _may_regain() -> bool:
    """Whether capabilities were kept over a change of user (PR_GET_KEEPCAPS)."""
    return _check(_LIBC.prctl(7, 0, 0, 0, 0)) == 1
