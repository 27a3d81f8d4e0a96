"""Thin, typed access to the kernel calls that make and enter namespaces."""

from __future__ import annotations

import ctypes
import os
import signal
from pathlib import Path
from typing import Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_PRIVATE: Final = 1 << 18

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38
_LIBC = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    """Move this process into new namespaces (unshare(2)); raises OSError."""
    _check(_LIBC.unshare(ctypes.c_int(flags)), "unshare")


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


def die_with_parent(parent: int) -> None:
    """
    Have the kernel kill this process when the thread that forked it ends.

    A change of uid or gid takes the order back, so it is given after the last one.  *parent* is the pid
    that must still be the parent: it may have died before the order was given.

    Raises:
        OSError: the kernel refuses.
        ProcessLookupError: the parent is gone already.
    """
    _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "PR_SET_PDEATHSIG")
    # In a new pid namespace the parent is 0; nobody calls this there.
    if os.getppid() != parent:
        raise ProcessLookupError(f"process {parent} has ended")


def set_dumpable(value: bool) -> None:
    """Say whether processes of the same uid may look into this one (``PR_SET_DUMPABLE``)."""
    _check(_LIBC.prctl(_PR_SET_DUMPABLE, int(value), 0, 0, 0), "PR_SET_DUMPABLE")


def set_no_new_privileges() -> None:
    """Let no program started from here gain privileges (``PR_SET_NO_NEW_PRIVS``)."""
    _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")


def map_to_root(pid: int, uid: int, gid: int) -> None:
    """
    Make *uid* and *gid* of this namespace the root of process *pid*'s new user namespace.

    Nothing else is mapped.  ``setgroups`` is switched off first, as an unprivileged writer must
    (user_namespaces(7)).

    Raises:
        OSError: the kernel refuses the map.
    """
    process = Path(f"/proc/{pid}")
    (process / "setgroups").write_text("deny", encoding="ascii")
    (process / "uid_map").write_text(f"0 {uid} 1\n", encoding="ascii")
    (process / "gid_map").write_text(f"0 {gid} 1\n", encoding="ascii")


def become_root_inside() -> None:
    """Take uid and gid 0 of a user namespace that `map_to_root` has set up."""
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
