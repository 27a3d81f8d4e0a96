"""A session keyring of its own for each sandbox, so that the operator's keys stay with the operator."""

from __future__ import annotations

import ctypes
import errno
import os

from km_host.syscalls import NUMBERS

_JOIN_SESSION_KEYRING = 1


def join_fresh_session_keyring() -> None:
    """
    Replace this process's session keyring by a new, empty one (keyctl(2)).

    A process inherits the session keyring of the login it came from, through every namespace; without
    this a sandbox could read keys of the operator and use the keyring as a channel to other sandboxes.
    A kernel without keyrings is fine.

    Raises:
        OSError: the kernel refuses.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    number = ctypes.c_long(NUMBERS[os.uname().machine]["keyctl"])
    if libc.syscall(number, ctypes.c_long(_JOIN_SESSION_KEYRING), None) < 0:
        code = ctypes.get_errno()
        if code != errno.ENOSYS:
            raise OSError(code, os.strerror(code), "keyctl")
