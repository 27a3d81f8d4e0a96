"""
A byte stream over an event-loop transport, with flow control and without per-read timers.

Reading pauses at `HIGH_WATER` bytes held, writing waits above the same mark in the transport, so one
connection holds less than a megabyte however slow its reader is.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, cast

from km_net_proxy.http.head import MAX_HEAD, HeadError

if TYPE_CHECKING:
    from collections.abc import Callable

HIGH_WATER = 64 * 1024
"""Bytes after which reading pauses and writing waits."""


CLOSE_S = 10.0
"""How long a closed connection may take to send what it still holds."""


class Stream(asyncio.Protocol):
    """
    One connection's bytes.

    Attributes:
        lost: the connection is gone; writing does nothing.
        ended: the other side has sent everything.
        error: why it is gone, None when it ended in order.
        on_lost: called once when the connection goes, so that an owner waiting elsewhere can act.
        received: bytes that came, within TLS where there is TLS.
        sent: bytes that were given to the transport.
    """

    __slots__ = (
        "_data",
        "_drained",
        "_more",
        "_paused",
        "_tls",
        "_transport",
        "_writable",
        "ended",
        "error",
        "lost",
        "on_lost",
        "received",
        "sent",
    )

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._data = b""
        self._more: asyncio.Future[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self._paused = False
        self._tls = False
        self._writable = True
        self.ended = False
        self.lost = False
        self.error: Exception | None = None
        self.on_lost: Callable[[], None] | None = None
        self.received = 0
        self.sent = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        self._transport = cast("asyncio.Transport", transport)
        self._transport.set_write_buffer_limits(high=HIGH_WATER)
        self._tls = transport.get_extra_info("sslcontext") is not None
        if self._tls:
            # What a paused reader leaves undecrypted: four times as much unless it is said.
            transport.set_read_buffer_limits(high=HIGH_WATER)  # type: ignore[attr-defined]  # uvloop's own

    def data_received(self, data: bytes) -> None:
        """Keep bytes for the reader, pausing the transport when there are too many."""
        self.received += len(data)
        self._data = self._data + data if self._data else data
        if len(self._data) >= HIGH_WATER and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        """Note the end; without TLS, which has no half-closed state, the sending direction stays open."""
        self.ended = True
        self._wake()
        return not self._tls

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the loss and wake whoever waits."""
        self.lost = True
        self.error = exc
        self.ended = True
        self._wake()
        self.resume_writing()
        if self.on_lost is not None:
            callback, self.on_lost = self.on_lost, None
            callback()

    def pause_writing(self) -> None:
        """Make `drain` wait."""
        self._writable = False

    def resume_writing(self) -> None:
        """Let `drain` go on."""
        self._writable = True
        drained = self._drained
        if drained is not None and not drained.done():
            drained.set_result(None)

    def _wake(self) -> None:
        more = self._more
        if more is not None and not more.done():
            more.set_result(None)

    async def _wait(self) -> None:
        if self._paused and self._transport is not None and not self.lost:
            self._paused = False
            self._transport.resume_reading()
        self._more = asyncio.get_running_loop().create_future()
        try:
            await self._more
        finally:
            self._more = None

    async def read(self) -> bytes:
        """Return what has come, waiting for some; empty at the end."""
        while not self._data:
            if self.ended:
                return b""
            await self._wait()
        data, self._data = self._data, b""
        return data

    def unread(self, data: bytes) -> None:
        """Put bytes back in front."""
        if data:
            self._data = data + self._data

    @property
    def pending(self) -> bool:
        """Whether bytes wait to be read."""
        return bool(self._data)

    async def read_head(self, check: Callable[[bytes], None] | None = None) -> bytes:
        """
        Return a message head with its empty line; empty when the stream ends before any byte.

        Args:
            check: looks at what has come of an incomplete head and may raise.

        Raises:
            HeadError: the head is longer than `MAX_HEAD` or breaks off.
        """
        searched = 0
        while True:
            data = self._data
            end = data.find(b"\r\n\r\n", max(0, searched - 3))
            if end >= 0:
                if end + 4 > MAX_HEAD:
                    raise HeadError("the head is too long")
                self._data = data[end + 4 :]
                return data[: end + 4]
            searched = len(data)
            if searched > MAX_HEAD:
                raise HeadError("the head is too long")
            if self.ended:
                if not data:
                    return b""
                raise HeadError("the head breaks off")
            if check is not None and data:
                check(data)
            await self._wait()

    def write(self, data: bytes) -> None:
        """Send bytes; follow with `drain` where much is sent."""
        if self._transport is not None and not self.lost:
            self.sent += len(data)
            self._transport.write(data)

    @property
    def full(self) -> bool:
        """Whether `drain` would wait."""
        return not self._writable

    async def drain(self) -> None:
        """Wait until the transport takes more."""
        while not self._writable and not self.lost:
            self._drained = asyncio.get_running_loop().create_future()
            try:
                await self._drained
            finally:
                self._drained = None

    @property
    def transport(self) -> asyncio.Transport:
        """The transport below; there is one as soon as the connection is made."""
        if self._transport is None:
            raise ConnectionError("not connected")
        return self._transport

    @property
    def descriptor(self) -> int:
        """Number of the socket's descriptor, -1 when it is closed."""
        sock = self.transport.get_extra_info("socket")
        return -1 if sock is None else int(sock.fileno())

    def close(self) -> None:
        """Close after what was written has gone, or after `CLOSE_S` when nobody takes it."""
        if self._transport is not None and not self.lost:
            if self._transport.get_write_buffer_size():
                asyncio.get_running_loop().call_later(CLOSE_S, self.abort)
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection now."""
        if self._transport is not None and not self.lost:
            self._transport.abort()

    def reset(self) -> None:
        """Drop the connection so that the other side cannot take it for an orderly end."""
        if self._transport is not None and not self.lost:
            sock = self._transport.get_extra_info("socket")
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()
