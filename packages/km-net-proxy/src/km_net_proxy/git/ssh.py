"""A refusal in SSH's own words (RFC 4253 section 11.1), so that ``ssh`` and ``git`` say why and not just that."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from km_core.policy.github import is_git_host
from km_net_proxy.http.refusal import BLOCKED, printable

if TYPE_CHECKING:
    from km_core.types import Verdict

PORT = 22

_DISCONNECT = 1
_NOT_ALLOWED = 1
"""SSH_DISCONNECT_HOST_NOT_ALLOWED_TO_CONNECT."""
_BLOCK = 8
_MIN_PADDING = 4
_MAX_TEXT = 400
"""What OpenSSH's client prints of a description, in bytes."""


def goodbye(verdict: Verdict, *, sandbox: str, name: str) -> bytes:
    """
    Return a server's identification and its disconnect message, before any key exchange.

    Args:
        verdict: the denial.
        sandbox: id of the sandbox.
        name: the host that was asked for; empty for an address.
    """
    words = f"{BLOCKED}: {verdict.reason}"
    if is_git_host(name):
        words = f"{BLOCKED}: git over SSH cannot be judged by repository; use https://github.com/OWNER/NAME"
    text = printable(
        f"{words} (host {name or 'by address'}, rule {verdict.rule}, sandbox {sandbox})", _MAX_TEXT
    )
    payload = bytes([_DISCONNECT]) + struct.pack(">I", _NOT_ALLOWED) + _string(text.encode()) + _string(b"")
    padding = _BLOCK - (5 + len(payload)) % _BLOCK
    padding += _BLOCK if padding < _MIN_PADDING else 0
    head = struct.pack(">IB", 1 + len(payload) + padding, padding)
    return b"SSH-2.0-km\r\n" + head + payload + bytes(padding)


def _string(value: bytes) -> bytes:
    return struct.pack(">I", len(value)) + value
