"""Seccomp filters of the sandbox, as classic BPF for x86-64 (kernel documentation: userspace-api/seccomp_filter)."""

import platform
import struct
from collections.abc import Iterable

SUPPORTED = platform.machine() == "x86_64"

# Ways to other processes, to the kernel's own configuration, to a new namespace with rights of its own, or to memory
# that no limit counts (System V objects).
_ALWAYS = {
    "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101, "kcmp": 312, "pidfd_getfd": 438,
    "mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "mount_setattr": 442, "bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "io_uring_setup": 425,
    "io_uring_enter": 426, "io_uring_register": 427, "add_key": 248, "request_key": 249, "keyctl": 250,
    "name_to_handle_at": 303, "open_by_handle_at": 304, "kexec_load": 246, "kexec_file_load": 320,
    "init_module": 175, "finit_module": 313, "delete_module": 176, "reboot": 169, "swapon": 167, "swapoff": 168,
    "quotactl": 179, "acct": 163, "settimeofday": 164, "clock_settime": 227, "adjtimex": 159, "syslog": 103,
    "personality": 135, "iopl": 172, "ioperm": 173, "shmget": 29, "semget": 64, "msgget": 68, "mq_open": 240,
}  # fmt: skip

# What namespaces would have contained, and what Landlock does not see (attributes, signals).
_WITHOUT_NAMESPACES = {
    "socket": 41, "kill": 62, "tkill": 200, "tgkill": 234, "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297,
    "pidfd_send_signal": 424, "setsid": 112, "setpgid": 109, "prlimit64": 302,
    "setpriority": 141, "sched_setparam": 142, "sched_setscheduler": 144, "sched_setaffinity": 203,
    "sched_setattr": 314, "ioprio_set": 251, "migrate_pages": 256, "move_pages": 279, "truncate": 76,
    "chmod": 90, "fchmod": 91, "fchmodat": 268, "fchmodat2": 452, "chown": 92, "fchown": 93, "lchown": 94,
    "fchownat": 260, "utime": 132, "utimes": 235, "futimesat": 261, "utimensat": 280, "setxattr": 188,
    "lsetxattr": 189, "fsetxattr": 190, "removexattr": 197, "lremovexattr": 198, "fremovexattr": 199,
}  # fmt: skip

_CLONE, _CLONE3 = 56, 435
_NAMESPACE_FLAGS = 0x7E020000 | 0x00000080
_ARCH_X86_64, _X32_BIT = 0xC000003E, 0x40000000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL, _ERRNO, _EPERM, _ENOSYS = 0x7FFF0000, 0x80000000, 0x00050000, 1, 38


def seccomp_filter(*, namespaces: bool) -> bytes:
    """The filter as an array of `struct sock_filter`; `namespaces` says whether namespaces contain the process already.

    Denied calls fail with EPERM; `clone3`, whose flags a filter can't read, with ENOSYS, so that libc uses `clone`.
    """
    denied = _ALWAYS if namespaces else _ALWAYS | _WITHOUT_NAMESPACES
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCH_X86_64), (_RETURN, 0, 0, _KILL)]
    code += [(_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, _X32_BIT), (_RETURN, 0, 0, _KILL)]
    code += _deny(denied.values(), _EPERM) + _deny([_CLONE3], _ENOSYS)
    code += [(_EQUAL, 0, 3, _CLONE), (_LOAD, 0, 0, 16), (_ANY_BIT, 0, 1, _NAMESPACE_FLAGS)]
    code += [(_RETURN, 0, 0, _ERRNO | _EPERM), (_RETURN, 0, 0, _ALLOW)]
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)


def _deny(numbers: Iterable[int], errno: int) -> list[tuple[int, int, int, int]]:
    return [step for number in numbers for step in ((_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ERRNO | errno))]
