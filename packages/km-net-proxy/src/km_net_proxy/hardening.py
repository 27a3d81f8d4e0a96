"""What a gate gives up before it touches traffic: privileges, core dumps, being traced, its parent's death."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from typing import TYPE_CHECKING

from km_core.errors import KmError

if TYPE_CHECKING:
    from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NO_NEW_PRIVS = 38


def harden(*, parent: int | None = None) -> None:
    """
    Restrict this process (prctl(2), setrlimit(2)).

    It gains no privileges by exec, cannot be traced or read by other processes of its user, leaves no
    core file, dies with its parent, and may open as many files as the hard limit allows.

    Args:
        parent: the parent's process id when it is known; a parent that died before the signal was
            asked for ends this process at once.

    Raises:
        KmError: the kernel refuses; the gate must not run unrestricted.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for option, value in (
        (_PR_SET_NO_NEW_PRIVS, 1),
        (_PR_SET_DUMPABLE, 0),
        (_PR_SET_PDEATHSIG, int(signal.SIGKILL)),
    ):
        if libc.prctl(option, value, 0, 0, 0) != 0:
            code = ctypes.get_errno()
            raise KmError("the gate cannot restrict itself", why=f"prctl({option}): {os.strerror(code)}")
    if parent is not None and os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    raise_descriptors()


def memory_trimmer() -> Callable[[], object]:
    """Return what gives freed memory back to the system (malloc_trim(3)), where the C library can."""
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except AttributeError:
        return lambda: None
    return lambda: trim(0)


def raise_descriptors() -> int:
    """Raise the soft limit of open files to the hard one; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
