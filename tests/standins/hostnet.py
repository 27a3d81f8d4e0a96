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
    """Enter a namespace with `ADDRESSES` on its loopback; False where that is not permitted."""
    libc = ctypes.CDLL(None, use_errno=True)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.unshare(_CLONE_NEWNET) != 0:
            yield False
            return
        try:
            _run("link", "set", "lo", "up")
            for address in ADDRESSES:
                _run("addr", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
            yield True
        finally:
            if libc.setns(before, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
    finally:
        os.close(before)


def _run(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
