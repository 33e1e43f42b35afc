"""Seccomp filters of the sandbox, as classic BPF for x86-64 (kernel documentation: userspace-api/seccomp_filter)."""

import os
import struct
from collections.abc import Iterable

SUPPORTED = os.uname().machine == "x86_64"
OWN_PID = 0x7F5EED1D  # stands for the process number in a filter, until `_lockdown.install_filter` puts it there

# Ways to other processes, to the network, to the kernel's own configuration, to a new namespace with rights of its own,
# or to memory that no limit counts (System V objects, secret memory).
_ALWAYS = {
    "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101, "kcmp": 312, "pidfd_getfd": 438,
    "process_madvise": 440, "process_mrelease": 448, "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161,
    "unshare": 272, "setns": 308, "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432,
    "fspick": 433, "mount_setattr": 442, "statmount": 457, "listmount": 458, "bpf": 321, "perf_event_open": 298,
    "userfaultfd": 323, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427, "fanotify_init": 300,
    "add_key": 248, "request_key": 249, "keyctl": 250, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "kexec_load": 246, "kexec_file_load": 320, "init_module": 175, "finit_module": 313, "delete_module": 176,
    "reboot": 169, "swapon": 167, "swapoff": 168, "quotactl": 179, "quotactl_fd": 443, "acct": 163, "settimeofday": 164,
    "clock_settime": 227, "adjtimex": 159, "clock_adjtime": 305, "syslog": 103, "personality": 135, "iopl": 172,
    "ioperm": 173, "modify_ldt": 154, "vhangup": 153, "sethostname": 170, "setdomainname": 171, "socket": 41,
    "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240, "memfd_secret": 447,
}  # fmt: skip

# Ways of a program to what shares its process group or its user: signals, sessions, priorities; and memory files, which
# no process's size shows.
_PROCESSES = {
    "tkill": 200, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "pidfd_send_signal": 424, "setsid": 112,
    "setpgid": 109, "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
    "sched_setattr": 314, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279, "memfd_create": 319,
}  # fmt: skip
_KILL, _TGKILL, _PRLIMIT, _FCNTL, _IOCTL, _PRCTL = 62, 234, 302, 72, 16, 157
_ONLY = [(_KILL, 0, OWN_PID), (_TGKILL, 0, OWN_PID), (_PRLIMIT, 0, 0)]  # the call, an argument, its only value
_NEVER = [
    *((_FCNTL, 1, command) for command in (8, 10, 15)),  # F_SETOWN, F_SETSIG, F_SETOWN_EX: signals by the kernel
    *((_IOCTL, 1, request) for request in (0x8901, 0x8902)),  # FIOSETOWN, SIOCSPGRP: the same
    *((_IOCTL, 1, request) for request in (0x5412, 0x541C, 0x540E)),  # TIOCSTI, TIOCLINUX, TIOCSCTTY: terminals
    (_PRCTL, 0, 1),  # PR_SET_PDEATHSIG, which the examiner has set
]

# What Landlock does not see: attributes of files.
_ATTRIBUTES = {
    "truncate": 76, "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93,
    "lchown": 94, "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
    "setxattrat": 463, "removexattrat": 466, "file_setattr": 469,
}  # fmt: skip

_CLONE, _CLONE3 = 56, 435
_NAMESPACE_FLAGS = 0x7E020000 | 0x00000080
_ARCH_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000, 1, 38
_Step = tuple[int, int, int, int]


def base_filter() -> bytes:
    """For every process of a sandbox, the trusted ones as well; an array of `struct sock_filter`.

    Denied calls fail with EPERM; `clone3`, whose flags a filter can't read, with ENOSYS, so that libc uses `clone`.
    """
    namespaces = [(_EQUAL, 0, 3, _CLONE), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS), _denial(_EPERM)]
    return _filter([*_deny(_ALWAYS.values(), _EPERM), *_deny([_CLONE3], _ENOSYS), *namespaces])


def program_filter(*, attributes: bool) -> bytes:
    """For an untrusted program, on top of `base_filter`; `attributes` denies changing those of files, too.

    It holds `OWN_PID` in place of the number of the process, which alone may get signals.
    """
    steps = _deny([*_PROCESSES.values(), *(_ATTRIBUTES.values() if attributes else ())], _EPERM)
    for call, argument, value in _ONLY:
        steps += _compare(call, argument, (_EQUAL, 1, 0, value))
    for call, argument, value in _NEVER:
        steps += _compare(call, argument, (_EQUAL, 0, 1, value))
    return _filter(steps)


def _filter(steps: list[_Step]) -> bytes:
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _KILL_PROCESS)]
    code += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL_PROCESS)]
    code += [*steps, (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *step) for step in code)


def _denial(errno: int) -> _Step:
    return _RETURN, 0, 0, _ERRNO | errno


def _deny(numbers: Iterable[int], errno: int) -> list[_Step]:
    return [step for number in numbers for step in ((_EQUAL, 0, 1, number), _denial(errno))]


def _compare(call: int, argument: int, test: _Step) -> list[_Step]:
    """Deny `call` where `test` of the low half of an argument runs into the next step; then load the number again."""
    return [(_EQUAL, 0, 4, call), (_LOAD, 0, 0, 16 + 8 * argument), test, _denial(_EPERM), (_LOAD, 0, 0, 0)]
