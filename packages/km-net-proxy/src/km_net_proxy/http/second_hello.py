"""
Watching a tunnel for a second ClientHello.

A server that answers with a HelloRetryRequest reads another ClientHello, in the clear, and may serve the
name that stands in that one (RFC 8446 section 4.1.4).  Judging the first alone would let a client show
the gate one name and the server another.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from km_net_proxy.http.hello import ClientHello, HelloError, read_client_hello
from km_net_proxy.http.relay import PASS, WATCH

if TYPE_CHECKING:
    from collections.abc import Callable

_CHANGE_CIPHER_SPEC = 20
_ALERT = 21
_HANDSHAKE = 22
_APPLICATION_DATA = 23
_SERVER_HELLO = 2

_MAX_RECORD = 16384 + 2048
"""A protected record is longer by what its cipher may add (RFC 5246 section 6.2.3)."""
_ANSWER = 4 + 2 + 32
"""Bytes of a ServerHello up to the end of its random value."""
_MAX_SEARCH = 4096
"""Bytes of the server's within which the start of its first handshake message must lie."""

RETRY = bytes.fromhex("cf21ad74e59a6111be1d8c021e65b891c2a211167abb8c5e079e09e2c8a8339c")
"""The random value that makes a ServerHello a HelloRetryRequest (RFC 8446 section 4.1.3)."""


class SecondHello:
    """
    Looks at both directions of a tunnel until no further ClientHello can follow.

    The client's records are told by their headers.  A handshake record before the server has answered
    is refused: no client sends one.  After a HelloRetryRequest it must be a ClientHello that passes the
    judge; after any other answer a server takes no further ClientHello in the clear, and the watch is
    over.  It is over too with application data, unless that may be early data, which can stand before a
    second hello.

    Args:
        judge: raises `HelloError` when another ClientHello may not pass.
    """

    def __init__(self, judge: Callable[[ClientHello], None]) -> None:
        self._skip = 0
        self._early_data = False
        self._judge = judge
        self._answer = bytearray()
        self._retry: bool | None = None

    def begin(self, first: ClientHello) -> None:
        """Take the ClientHello that was let through; the client's stream begins with its *size* bytes."""
        self._skip = first.size
        self._early_data = first.early_data

    def up(self, data: bytes) -> int:
        """
        Look at what the client sends (see `relay.Check`).

        Raises:
            HelloError: it may not pass.
        """
        if self._retry is False:
            return PASS
        position, size = self._skip, len(data)
        while position < size:
            if size < position + 5:
                return position + 5
            kind = data[position]
            length = int.from_bytes(data[position + 3 : position + 5], "big")
            if data[position + 1] != 3 or not 0 < length <= _MAX_RECORD:
                raise HelloError("not a TLS record")
            if kind == _HANDSHAKE:
                return self._handshake(data, position)
            if kind == _APPLICATION_DATA and not self._early_data:
                return PASS
            if kind not in (_CHANGE_CIPHER_SPEC, _ALERT, _APPLICATION_DATA):
                raise HelloError("a TLS record of an unknown type")
            position += 5 + length
        self._skip = position - size
        return WATCH

    def _handshake(self, data: bytes, position: int) -> int:
        if self._retry is None:
            raise HelloError("a handshake message before the server's answer")
        found = read_client_hello(data[position:])
        if isinstance(found, int):
            return position + found
        self._judge(found)
        return PASS

    def down(self, data: bytes) -> int:
        """Look at what the server sends, for its first handshake message; nothing is ever held back."""
        self._answer += data
        with contextlib.suppress(HelloError):
            self._retry = self._read_answer()
            if self._retry is None and len(self._answer) < _MAX_SEARCH:
                return WATCH
        # What cannot be understood stays unknown: no handshake message passes then.
        self._answer.clear()
        return PASS

    def _read_answer(self) -> bool | None:
        """Say whether the server asks for another hello; None while that cannot be told."""
        answer, position = self._answer, 0
        message = bytearray()
        while len(answer) >= position + 5:
            kind = answer[position]
            length = int.from_bytes(answer[position + 3 : position + 5], "big")
            if kind == _HANDSHAKE:
                message += answer[position + 5 : position + 5 + length]
            elif kind != _ALERT or message:
                raise HelloError("not a server's handshake")
            if message and message[0] != _SERVER_HELLO:
                raise HelloError("not a ServerHello")
            if len(message) >= _ANSWER:
                return message[6:_ANSWER] == RETRY
            position += 5 + length
        return None
