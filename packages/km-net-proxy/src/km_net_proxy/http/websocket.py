"""
WebSockets where the gate reads HTTP: the handshake is judged as a request, then bytes move (RFC 6455).

A server has switched only when it proves that it read this very handshake.  Anything else that calls
itself 101 would make the gate pass on bytes that the server takes for further requests.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import time
from typing import TYPE_CHECKING

from km_core.errors import AuditError
from km_net_proxy.http.connections import IDLE_TIMEOUT_S
from km_net_proxy.http.head import HeadError, connection_options

if TYPE_CHECKING:
    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.exchange import Tap
    from km_net_proxy.http.head import RequestHead, ResponseHead
    from km_net_proxy.http.scope import Target
    from km_net_proxy.http.session import Session
    from km_net_proxy.http.stream import Stream
    from km_net_proxy.http.upstream import Upstream

SWITCH = ((b"Connection", b"Upgrade"), (b"Upgrade", b"websocket"))
"""The fields of a handshake that concern one connection; the gate sends its own."""

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_HELD_S = 0.05
_LAST_S = 1.0
"""How long one side may still talk when the other has ended."""


def accept_for(request: RequestHead) -> bytes:
    """
    Return the ``Sec-WebSocket-Accept`` that answers a handshake (RFC 6455 section 4.2).

    Raises:
        HeadError: it is none.
    """
    index = request.index
    key = index.get(b"sec-websocket-key", b"")
    try:
        nonce = base64.b64decode(key, validate=True)
    except binascii.Error:
        nonce = b""
    if (
        request.method != "GET"
        or not request.minor
        or request.length
        or b"upgrade" not in connection_options(index)
        or index.get(b"sec-websocket-version") != b"13"
        or len(nonce) != 16
    ):
        raise HeadError("an upgrade to websocket that is no handshake of RFC 6455")
    # SHA-1 is what the protocol says; it shows that the handshake was read and protects nothing.
    return base64.b64encode(hashlib.sha1(key + _GUID, usedforsecurity=False).digest())


def accepted(response: ResponseHead, accept: bytes) -> bool:
    """Say whether a 101 is the answer to the handshake that *accept* belongs to."""
    index = response.index
    return (
        response.minor == 1
        and index.get(b"upgrade", b"").lower() == b"websocket"
        and b"upgrade" in connection_options(index)
        and index.get(b"sec-websocket-accept") == accept
    )


class _Half:
    """One direction; *tap* sees what moves."""

    def __init__(self, source: Stream, sink: Stream, connection: Connection, tap: Tap | None = None) -> None:
        self._source = source
        self._sink = sink
        self._connection = connection
        self._tap = tap
        self._held = 0
        self.moved = 0

    async def run(self) -> None:
        sink = self._sink
        while data := await self._source.read():
            self._connection.extend(IDLE_TIMEOUT_S)
            self.moved += len(data)
            while data:
                data = await self._pass(data)
                if sink.full:
                    await sink.drain()
        self._release()
        if not sink.lost and sink.transport.can_write_eof():
            sink.transport.write_eof()

    async def _pass(self, data: bytes) -> bytes:
        """Send what the tap lets go on; returns what came while it held something back."""
        if self._tap is None:
            self._sink.write(data)
            return b""
        out = self._tap.feed(data)
        self._held += len(data) - len(out)
        if out:
            self._sink.write(out)
        if not self._held:
            return b""
        # The end of a message may look like the start of what the tap is after: it waits a moment only.
        try:
            async with asyncio.timeout(_HELD_S):
                more = await self._source.read()
        except TimeoutError:
            more = b""
        if more:
            self.moved += len(more)
        else:
            self._release()
        return more

    def _release(self) -> None:
        if self._tap is not None and self._held:
            self._sink.write(self._tap.end())
            self._held = 0


async def carry(session: Session, upstream: Upstream, target: Target, tap: Tap | None = None) -> None:
    """
    Move bytes both ways until one side ends, and record what it came to; both streams are closed.

    Args:
        session: the client's.
        upstream: the server that has switched.
        target: where it is.
        tap: sees what the server sends, its head already.
    """
    began = time.monotonic()
    client, server, connection = session.client, upstream.stream, session.connection
    connection.extend(IDLE_TIMEOUT_S)
    # What `still_allowed` goes by when the policy changes.
    connection.peer = "" if " via " in upstream.address else upstream.address
    connection.unopened = not session.scope.tls
    up, down = _Half(client, server, connection), _Half(server, client, connection, tap)
    tasks = [asyncio.ensure_future(up.run()), asyncio.ensure_future(down.run())]
    error = ""
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait(tasks, timeout=_LAST_S)
        lost = client.error or server.error
        if lost is None:
            server.close()
            client.close()
        else:
            error = type(lost).__name__
    except asyncio.CancelledError:
        error = "cut"
        raise
    finally:
        for task in tasks:
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks, return_exceptions=True)
        if error:
            server.abort()
            client.reset()
        try:
            session.gate.evidence.event(
                "tunnel_closed",
                layer="http",
                name="" if target.authority.address is not None else target.authority.host,
                address=upstream.address,
                port=target.authority.port,
                bytes_up=up.moved,
                bytes_down=down.moved,
                duration_ms=int((time.monotonic() - began) * 1000),
                error=error,
            )
        except AuditError:
            client.reset()
