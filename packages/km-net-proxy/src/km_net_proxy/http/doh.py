"""
DNS over HTTPS where the gate reads HTTP: a resolver behind an allowed host would answer any name.

Its requests are told by what RFC 8484 and the JSON forms in common use must carry.  A private dialect of
two consenting parties cannot be told from other content, and where the gate does not open TLS it sees no
request at all.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from km_net_proxy.http.head import RequestHead

_TYPES = frozenset(
    {
        b"application/dns-message",
        b"application/dns-json",
        b"application/dns+json",
        b"application/dns-udpwireformat",
        b"application/oblivious-dns-message",
    }
)
_HEADER = 12
_SHORTEST = _HEADER + 1 + 4
"""A DNS message with a question for the root (RFC 1035 section 4.1)."""


def asks_resolver(request: RequestHead, path: str) -> bool:
    """
    Say whether a request is one of DNS over HTTPS.

    Args:
        request: its head.
        path: its target in origin form.
    """
    for name in (b"content-type", b"accept"):
        types = request.index.get(name, b"").split(b",")
        if any(item.partition(b";")[0].strip().lower() in _TYPES for item in types):
            return True
    place, _, query = path.partition("?")
    if not query:
        return False
    place_is_usual = b"dns-query" in unquote_to_bytes(place).lower()
    for pair in query.replace(";", "&").split("&"):
        key, _, value = pair.partition("=")
        if unquote_to_bytes(key).lower() != b"dns":
            continue
        if place_is_usual or _is_question(unquote_to_bytes(value)):
            return True
    return False


def _is_question(text: bytes) -> bool:
    """Say whether *text* is a DNS query in base64url (RFC 8484 section 4.1)."""
    text = text.rstrip(b"=")
    try:
        message = base64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        return False
    # A query (QR 0, opcode 0) with one question and no answers.
    return (
        len(message) >= _SHORTEST and not message[2] & 0xF8 and message[4:10] == b"\x00\x01\x00\x00\x00\x00"
    )
