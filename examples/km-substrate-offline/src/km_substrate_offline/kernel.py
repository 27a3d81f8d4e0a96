"""Thin, typed access to the kernel calls that make, enter and confine a sandbox."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import platform
import signal
import socket
import struct
from contextlib import closing
from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000
NAMESPACES: Final = 0x7E020000
"""``CLONE_NEWNS|NEWCGROUP|NEWUTS|NEWIPC|NEWUSER|NEWPID|NEWNET`` (linux/sched.h)."""

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_BIND, MS_REC, MS_PRIVATE = 4096, 16384, 1 << 18
MNT_DETACH: Final = 2

_LIBC = ctypes.CDLL(None, use_errno=True)
_PDEATHSIG, _DUMPABLE, _SECCOMP, _CAPBSET_DROP, _SUBREAPER, _NO_NEW_PRIVS = 1, 4, 22, 24, 36, 38
_MOUNT_SETATTR = 442  # one number on every architecture, as all calls since 424
_AT_RECURSIVE, _AT_FDCWD = 0x8000, -100
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1

_MACHINES: Final[dict[str, dict[str, Any]]] = {
    # audit architecture (linux/audit.h) and call numbers (asm/unistd.h)
    "x86_64": {
        "arch": 0xC000003E,
        "pivot_root": 155,
        "socket": 41,
        "keys": (248, 249, 250),
        "bpf": 321,
        "perf_event_open": 298,
        "userfaultfd": 323,
        "open_by_handle_at": 304,
    },
    "aarch64": {
        "arch": 0xC00000B7,
        "pivot_root": 41,
        "socket": 198,
        "keys": (217, 218, 219),
        "bpf": 280,
        "perf_event_open": 241,
        "userfaultfd": 282,
        "open_by_handle_at": 265,
    },
}
_IO_URING = (425, 426, 427)
_X32_BIT = 0x40000000
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_ALLOW, _ERRNO, _KILL_PROCESS = 0x7FFF0000, 0x00050000, 0x80000000
_LD, _JEQ, _JGE, _RET = 0x20, 0x15, 0x35, 0x06


def supported() -> bool:
    """Say whether this is a system that the tables above know."""
    return platform.system() == "Linux" and platform.machine() in _MACHINES


def unshare(flags: int) -> None:
    """Move this process into new namespaces (unshare(2)); raises OSError."""
    _check(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


def enter_namespaces(descriptor: int) -> None:
    """Join all namespaces of the process behind a pidfd (setns(2)); raises OSError."""
    _check(_LIBC.setns(ctypes.c_int(descriptor), ctypes.c_int(NAMESPACES)), "setns")


def mount(source: str, target: str, kind: str = "", flags: int = 0, data: str = "") -> None:
    """Mount (mount(2)); raises OSError with the target."""
    result = _LIBC.mount(
        os.fsencode(source),
        os.fsencode(target),
        os.fsencode(kind) or None,
        ctypes.c_ulong(flags),
        os.fsencode(data) or None,
    )
    _check(result, target)


def restrict_mount(target: str, flags: int, *, recursive: bool = True) -> None:
    """
    Add ``MS_RDONLY``, ``MS_NOSUID``, ``MS_NODEV`` or ``MS_NOEXEC`` to a mount (mount_setattr(2)).

    Unlike a remount it reaches the mounts below, in one step.  Raises OSError.
    """
    attributes = struct.pack("=4Q", flags, 0, 0, 0)
    result = _LIBC.syscall(
        ctypes.c_long(_MOUNT_SETATTR),
        ctypes.c_int(_AT_FDCWD),
        ctypes.c_char_p(os.fsencode(target)),
        ctypes.c_uint(_AT_RECURSIVE if recursive else 0),
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(len(attributes)),
    )
    _check(result, target)


def make_root(directory: str) -> None:
    """Make a mount the root of this mount namespace and let go of the old one (pivot_root(2))."""
    os.chdir(directory)
    number = _MACHINES[platform.machine()]["pivot_root"]
    here = ctypes.c_char_p(b".")
    _check(_LIBC.syscall(ctypes.c_long(number), here, here), directory)
    _check(_LIBC.umount2(b".", ctypes.c_int(MNT_DETACH)), "the old root")
    os.chdir("/")


def raise_loopback() -> None:
    """Switch on ``lo``, the one device of a new network namespace; raises OSError."""
    with closing(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)) as sock:
        request = struct.pack("16sh14x", b"lo", 0)
        (flags,) = struct.unpack_from("h", fcntl.ioctl(sock, _SIOCGIFFLAGS, request), 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags | _IFF_UP))


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends; a change of ids takes the order back."""
    _prctl(_PDEATHSIG, signal.SIGKILL)


def become_subreaper() -> None:
    """Become the parent of what descendants leave behind."""
    _prctl(_SUBREAPER, 1)


def set_dumpable(value: bool) -> None:
    """Say whether processes of the same uid may look into this one."""
    _prctl(_DUMPABLE, int(value))


def confine() -> None:
    """
    Give up every capability and every way to new ones, and what leads around a network namespace.

    There is no way back, for this process and for all it starts.  What the filter closes: families of
    sockets that no network namespace holds (vsock reaches the hypervisor), io_uring, which makes sockets
    without ``socket``, the operator's keyrings, and large parts of the kernel that no agent needs.

    Raises:
        OSError: the kernel refuses; the process must end.
    """
    for number in range(64):
        if _LIBC.prctl(_CAPBSET_DROP, number, 0, 0, 0) != 0:
            if ctypes.get_errno() == errno.EINVAL:
                break
            _check(-1, "PR_CAPBSET_DROP")
    _prctl(_NO_NEW_PRIVS, 1)
    _load_filter(_program(_MACHINES[platform.machine()]))
    version_3 = struct.pack("=Ii", 0x20080522, 0)
    _check(_LIBC.capset(ctypes.c_char_p(version_3), ctypes.c_char_p(bytes(24))), "capset")


def _program(machine: dict[str, Any]) -> bytes:
    """Return the filter as an array of ``struct sock_filter`` (seccomp(2))."""
    denied = (
        *_IO_URING,
        *machine["keys"],
        machine["bpf"],
        machine["perf_event_open"],
        machine["userfaultfd"],
        machine["open_by_handle_at"],
    )
    refuse = (_RET, 0, 0, _ERRNO | errno.EPERM)
    code = [
        (_LD, 0, 0, 4),  # the architecture: another one's numbers mean other calls
        (_JEQ, 1, 0, machine["arch"]),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LD, 0, 0, 0),  # the call's number
        (_JGE, 0, 1, _X32_BIT),
        refuse,
    ]
    for number in denied:
        code += [(_JEQ, 0, 1, number), refuse]
    code += [(_JEQ, 1, 0, machine["socket"]), (_RET, 0, 0, _ALLOW), (_LD, 0, 0, 16)]
    code += [(_JEQ, len(_FAMILIES) - index, 0, family) for index, family in enumerate(_FAMILIES)]
    code += [(_RET, 0, 0, _ERRNO | errno.EAFNOSUPPORT), (_RET, 0, 0, _ALLOW)]
    return b"".join(struct.pack("=HBBI", *instruction) for instruction in code)


def _load_filter(code: bytes) -> None:
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    program = Program(len(code) // 8, ctypes.addressof(buffer))
    filter_mode = 2
    _check(_LIBC.prctl(_SECCOMP, filter_mode, ctypes.byref(program), 0, 0), "PR_SET_SECCOMP")


def _prctl(option: int, value: int) -> None:
    _check(_LIBC.prctl(option, value, 0, 0, 0), f"prctl {option}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
