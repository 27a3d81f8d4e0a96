"""
A network namespace that plays the host, so that end-to-end tests neither use nor disturb the machine's.

`unshare(2)` and `setns(2)` move one thread; threads and processes started afterwards follow.  So the test's
thread enters the namespace, and everything it starts (stand-ins, canary, kmd, supervisors, gates) lives
there, with addresses that a real host could have, the cloud metadata address among them.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
import subprocess
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
ADDRESSES = (
    "192.0.2.10/32",
    "10.99.0.1/32",
    "172.17.0.1/32",
    "169.254.169.254/32",
    "169.254.170.2/32",
    "100.64.0.1/32",
    "203.0.113.5/32",
    "2001:db8::5/128",
    "fd12:3456::1/128",
    "fd00:ec2::254/128",
    "fe80::1/128",
)
"""Private, shared, link-local, metadata and public addresses (documentation ranges of RFC 5737 and 3849)."""


@contextlib.contextmanager
def own_network() -> Iterator[bool]:
    """Enter a new namespace with `ADDRESSES` on its loopback; False where that is not permitted."""
    with _return_to_own() as libc:
        if libc.unshare(_CLONE_NEWNET) != 0:
            yield False
            return
        _add_addresses()
        yield True


@contextlib.contextmanager
def engines_network(socket_path: str) -> Iterator[bool]:
    """
    Enter the namespace of the Docker engine behind *socket_path*, with `ADDRESSES` on its loopback.

    False, and nothing is changed, where the engine lives in this process's own namespace: a machine's
    addresses are left alone.
    """
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(socket_path)
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid = struct.unpack("3i", credentials)[0]
    if os.geteuid() != 0 or os.readlink(f"/proc/{pid}/ns/net") == os.readlink("/proc/self/ns/net"):
        yield False
        return
    with _return_to_own() as libc:
        target = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(target, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(target)
        _add_addresses()
        yield True


@contextlib.contextmanager
def _return_to_own() -> Iterator[ctypes.CDLL]:
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield libc
    finally:
        code = libc.setns(before, _CLONE_NEWNET) if os.geteuid() == 0 else 0
        os.close(before)
        if code != 0:
            raise OSError(ctypes.get_errno(), "setns")


def _add_addresses() -> None:
    _run("link", "set", "lo", "up")
    for address in ADDRESSES:
        _run("addr", "replace", address, "dev", "lo", *(["nodad"] if ":" in address else []))


def _run(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
