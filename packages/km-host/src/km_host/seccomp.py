"""
The system calls a sandbox may make: one table, two forms.

`program` gives classic BPF for bubblewrap's ``--seccomp``, `docker_profile` the same rules as a Docker
profile.  A call that is not in `km_host.syscalls` is answered with ``ENOSYS``, so that C libraries fall
back; a call that is denied gets ``EPERM``.  What is denied would open a way around the network namespace
(io_uring, vsock and other socket families), reach the operator's keys, make new namespaces or mounts,
or expose large parts of the kernel that no agent needs (recipes/no_device_gate, FINDINGS 4).
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Any

from km_core.errors import ProvisionError
from km_host.syscalls import NUMBERS

DENIED = frozenset(  # one line a family is easier to review
    """
    io_uring_setup io_uring_enter io_uring_register
    add_key request_key keyctl
    bpf perf_event_open userfaultfd fanotify_init fanotify_mark
    unshare setns
    mount umount2 pivot_root open_tree open_tree_attr move_mount fsopen fsconfig fsmount fspick mount_setattr
    kexec_load kexec_file_load init_module finit_module delete_module
    name_to_handle_at open_by_handle_at pidfd_getfd
    quotactl quotactl_fd acct swapon swapoff reboot syslog vhangup
    settimeofday clock_settime adjtimex clock_adjtime
    iopl ioperm sysfs ustat
    """.split()  # noqa: SIM905 - as above
)
"""Calls answered with ``EPERM``."""

ABSENT = frozenset({"clone3"})
"""Calls answered with ``ENOSYS``: clone3 hides its flags from a filter, and libraries fall back to clone."""

NEW_NAMESPACES = 0x7E020000
"""``CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET`` (linux/sched.h)."""

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
SOCKET_TYPES = (1, 2, 5)
"""``SOCK_STREAM``, ``SOCK_DGRAM``, ``SOCK_SEQPACKET``; no ``SOCK_RAW``, no ``SOCK_PACKET``."""
INET_PROTOCOLS = (0, 6, 17)
"""The family's default, TCP and UDP: others load kernel modules on demand."""
SOCKET_TYPE_MASK = 0xF
IOCTL_DENIED = (0x5412, 0x541C)
"""``TIOCSTI`` and ``TIOCLINUX``: pushing input into a terminal."""

_ARCHITECTURES = {"x86_64": (0xC000003E, "SCMP_ARCH_X86_64"), "aarch64": (0xC00000B7, "SCMP_ARCH_AARCH64")}
_X32_BIT = 0x40000000

_LD, _JEQ, _JGE, _JSET, _JA, _AND, _RET = 0x20, 0x15, 0x35, 0x45, 0x05, 0x54, 0x06
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_OFFSET_NUMBER, _OFFSET_ARCHITECTURE, _OFFSET_ARGUMENTS = 0, 4, 16

Instruction = tuple[int, int, int, int]
"""``struct sock_filter``: code, jump if true, jump if false, operand."""


def program(machine: str = "") -> bytes:
    """
    Return the filter as an array of ``struct sock_filter``.

    Args:
        machine: ``x86_64`` or ``aarch64``; empty for this machine's.

    Raises:
        ProvisionError: there is no table for the machine.
    """
    machine = machine or os.uname().machine
    architecture, _ = _architecture(machine)
    code = [
        (_LD, 0, 0, _OFFSET_ARCHITECTURE),
        (_JEQ, 1, 0, architecture),
        _ret(_KILL_PROCESS),
        (_LD, 0, 0, _OFFSET_NUMBER),
    ]
    if machine == "x86_64":
        code += [(_JGE, 0, 1, _X32_BIT), _fail(errno.EPERM)]
    code += _search(_intervals(machine))
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def docker_profile(machine: str = "") -> dict[str, Any]:
    """
    Return the same rules as a Docker seccomp profile (JSON data).

    Docker's rules have no "else", so a socket family that is not allowed is named, and an ioctl is
    allowed when it differs from the denied ones in some bit of its low half (the kernel ignores the
    high one, a comparison of 64 bits would not).

    Raises:
        ProvisionError: there is no table for the machine.
    """
    machine = machine or os.uname().machine
    _, name = _architecture(machine)
    names = NUMBERS[machine]
    filtered = {"clone", "socket", "socketpair", "ioctl"}
    plain = sorted(set(names) - DENIED - ABSENT - filtered)
    denied = sorted(DENIED & set(names))
    rules = [
        _rule(plain, "SCMP_ACT_ALLOW"),
        _rule(denied, "SCMP_ACT_ERRNO", code=errno.EPERM),
        _rule(sorted(ABSENT), "SCMP_ACT_ERRNO", code=errno.ENOSYS),
        _rule(["clone"], "SCMP_ACT_ALLOW", _masked(0, NEW_NAMESPACES, 0)),
    ]
    rules += [_rule(["ioctl"], "SCMP_ACT_ALLOW", _masked(1, mask, value)) for mask, value in _ioctl_masks()]
    for kind in SOCKET_TYPES:
        typed = _masked(1, SOCKET_TYPE_MASK, kind)
        rules.append(_rule(["socket", "socketpair"], "SCMP_ACT_ALLOW", _equal(0, AF_UNIX), typed))
        rules += [
            _rule(["socket"], "SCMP_ACT_ALLOW", _equal(0, family), typed, _equal(2, protocol))
            for family in (AF_INET, AF_INET6)
            for protocol in INET_PROTOCOLS
        ]
    rules.append(_rule(["socket"], "SCMP_ACT_ALLOW", _equal(0, AF_NETLINK), _equal(2, 0)))
    refused = [
        _equal(0, family) for family in range(AF_NETLINK) if family not in {AF_UNIX, AF_INET, AF_INET6}
    ]
    refused.append({"index": 0, "value": AF_NETLINK, "valueTwo": 0, "op": "SCMP_CMP_GT"})
    rules += [_rule(["socket"], "SCMP_ACT_ERRNO", family, code=errno.EAFNOSUPPORT) for family in refused]
    return {
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": errno.ENOSYS,
        "architectures": [name],
        "syscalls": rules,
    }


def load_filter(code: bytes) -> None:
    """
    Put this thread under a filter, with ``no_new_privs``; there is no way back.

    Raises:
        OSError: the kernel refuses it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    fprog = Program(len(code) // 8, ctypes.addressof(buffer))
    set_no_new_privs, set_seccomp, mode_filter = 38, 22, 2
    for call in ((set_no_new_privs, 1, 0, 0, 0), (set_seccomp, mode_filter, ctypes.byref(fprog), 0, 0)):
        if libc.prctl(*call) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def _architecture(machine: str) -> tuple[int, str]:
    if machine not in _ARCHITECTURES:
        raise ProvisionError(
            f"there is no system call table for {machine}", hint="km runs sandboxes on x86_64 and aarch64"
        )
    return _ARCHITECTURES[machine]


def _ret(value: int) -> Instruction:
    return (_RET, 0, 0, value)


def _fail(number: int) -> Instruction:
    return _ret(_ERRNO | number)


def _argument(index: int) -> Instruction:
    # The low half on a little-endian machine: the kernel takes these arguments as 32-bit values.
    return (_LD, 0, 0, _OFFSET_ARGUMENTS + 8 * index)


def _one_of(values: tuple[int, ...], otherwise: Instruction) -> list[Instruction]:
    tests = [(_JEQ, len(values) - index, 0, value) for index, value in enumerate(values)]
    return [*tests, otherwise, _ret(_ALLOW)]


def _typed() -> list[Instruction]:
    return [_argument(1), (_AND, 0, 0, SOCKET_TYPE_MASK), *_one_of(SOCKET_TYPES, _fail(errno.EPERM))]


def _socket() -> list[Instruction]:
    unsupported = _fail(errno.EAFNOSUPPORT)
    netlink = [_argument(2), *_one_of((0,), unsupported)]
    typed = _typed()
    protocol = [
        _argument(2),
        *[(_JEQ, len(INET_PROTOCOLS) - index, 0, value) for index, value in enumerate(INET_PROTOCOLS)],
        _fail(errno.EPROTONOSUPPORT),
    ]
    return [
        _argument(0),
        (_JEQ, 0, len(netlink), AF_NETLINK),
        *netlink,
        (_JEQ, 3 + len(protocol), 0, AF_UNIX),
        (_JEQ, 2, 0, AF_INET),
        (_JEQ, 1, 0, AF_INET6),
        unsupported,
        *protocol,
        *typed,
    ]


def _filtered() -> dict[str, list[Instruction]]:
    typed = _typed()
    return {
        "clone": [_argument(0), (_JSET, 0, 1, NEW_NAMESPACES), _fail(errno.EPERM), _ret(_ALLOW)],
        "ioctl": [
            _argument(1),
            (_JEQ, 1, 0, IOCTL_DENIED[0]),
            (_JEQ, 0, 1, IOCTL_DENIED[1]),
            _fail(errno.EPERM),
            _ret(_ALLOW),
        ],
        "socket": _socket(),
        "socketpair": [_argument(0), (_JEQ, 1, 0, AF_UNIX), _fail(errno.EAFNOSUPPORT), *typed],
    }


def _intervals(machine: str) -> list[tuple[int, list[Instruction]]]:
    """Return (first number, what to do from there on), ascending, neighbours different."""
    filtered = _filtered()
    by_number = {}
    for name, number in NUMBERS[machine].items():
        if name in DENIED:
            by_number[number] = [_fail(errno.EPERM)]
        elif name in ABSENT:
            by_number[number] = [_fail(errno.ENOSYS)]
        else:
            by_number[number] = filtered.get(name, [_ret(_ALLOW)])
    unknown = [_fail(errno.ENOSYS)]
    result: list[tuple[int, list[Instruction]]] = []
    for number in range(max(by_number) + 2):
        action = by_number.get(number, unknown)
        if not result or result[-1][1] != action:
            result.append((number, action))
    return result


def _search(intervals: list[tuple[int, list[Instruction]]]) -> list[Instruction]:
    """Return a binary search over *intervals*."""
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    low, high = _search(intervals[:middle]), _search(intervals[middle:])
    pivot = intervals[middle][0]
    if len(low) <= 255:
        return [(_JGE, len(low), 0, pivot), *low, *high]
    return [(_JGE, 0, 1, pivot), (_JA, 0, 0, len(low)), *low, *high]


def _rule(names: list[str], action: str, *args: dict[str, Any], code: int | None = None) -> dict[str, Any]:
    rule: dict[str, Any] = {"names": names, "action": action, "args": list(args)}
    if code is not None:
        rule["errnoRet"] = code
    return rule


def _equal(index: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": value, "valueTwo": 0, "op": "SCMP_CMP_EQ"}


def _masked(index: int, mask: int, value: int) -> dict[str, Any]:
    return {"index": index, "value": mask, "valueTwo": value, "op": "SCMP_CMP_MASKED_EQ"}


def _ioctl_masks() -> list[tuple[int, int]]:
    """Return (mask, value) pairs that together match every 32-bit number except `IOCTL_DENIED`."""
    first, second = IOCTL_DENIED
    same = ~(first ^ second) & 0xFFFFFFFF
    pairs = [(1 << bit, ~first & (1 << bit)) for bit in range(32) if same & (1 << bit)]
    rest = [bit for bit in range(32) if not same & (1 << bit)]
    mask = sum(1 << bit for bit in rest)
    for choice in range(1 << len(rest)):
        value = sum(1 << bit for place, bit in enumerate(rest) if choice & (1 << place))
        if value not in {first & mask, second & mask}:
            pairs.append((mask, value))
    return pairs
