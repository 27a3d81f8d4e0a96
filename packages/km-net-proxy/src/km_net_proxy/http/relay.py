"""
A tunnel between two sockets: bytes move without ever being looked at again.

Small tunnels are copied; from `SPLICE_AFTER` bytes on a direction moves through a pipe with splice(2),
so a large transfer costs no copy through Python.  Each direction holds at most one piece or one pipe,
reads nothing while it waits to write, and passes the end of its stream on by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_net_proxy.http.connections import Connection

SPLICE_AFTER = 256 * 1024
"""Bytes of one direction after which it is spliced."""

_PIECE = 65536
_PIPE = 512 * 1024
_ROUNDS = 2
"""Full pipes that one direction moves in a row: other tunnels wait for no more."""
_SPLICE_FLAGS = os.SPLICE_F_NONBLOCK | os.SPLICE_F_MOVE
_F_SETPIPE_SZ = 1031
_HALF_CLOSED_S = 60.0

Check = "Callable[[bytes], int]"
"""Judges the first bytes of a direction: a positive number is how many bytes it needs before it can say,
else one of `PASS`, `WATCH` and `REFUSE`."""

PASS = 0
"""These bytes and all that follow may move."""
REFUSE = -1
"""The tunnel ends."""
WATCH = -2
"""These bytes may move; the next ones are judged too."""


class _Half:
    """One direction."""

    __slots__ = ("check", "done", "dst", "held", "judged", "moved", "pending", "pipe", "relay", "src")

    def __init__(self, relay: Relay, src: socket.socket, dst: socket.socket) -> None:
        self.relay = relay
        self.src = src
        self.dst = dst
        self.pending = b""
        self.judged = b""
        self.pipe: tuple[int, int] | None = None
        self.held = 0
        self.moved = 0
        self.done = False
        self.check: Callable[[bytes], int] | None = None

    def start(self) -> None:
        self.relay.loop.add_reader(self.src.fileno(), self.readable)

    def readable(self) -> None:
        try:
            if self.pipe is not None:
                self.splice()
            else:
                self.copy()
        except BlockingIOError:
            return
        except OSError as error:
            self.relay.fail(error)
        except Exception as error:  # noqa: BLE001 - what a check cannot understand must not move
            self.relay.fail(error)

    def judge(self, data: bytes) -> bytes:
        """Return what may be moved of the first bytes: nothing until the check has seen enough."""
        if self.check is None:
            return data
        data = self.judged + data
        verdict = self.check(data)
        if verdict > len(data):
            self.judged = data
            return b""
        if verdict not in (PASS, WATCH):
            raise ConnectionError("refused")
        if verdict == PASS:
            self.check = None
        self.judged = b""
        return data

    def copy(self) -> None:
        data = self.src.recv(_PIECE)
        if not data:
            if self.judged:
                raise ConnectionError("the first bytes break off")
            self.end()
            return
        if self.check is not None:
            data = self.judge(data)
            if not data:
                return
        try:
            sent = self.dst.send(data)
        except BlockingIOError:
            sent = 0
        self.moved += sent
        self.relay.touch()
        if sent < len(data):
            self.pending = data[sent:]
            self.wait_to_write()
        elif self.moved > SPLICE_AFTER and self.check is None:
            self.open_pipe()

    def open_pipe(self) -> None:
        try:
            self.pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return  # out of descriptors: copying goes on
        with contextlib.suppress(OSError):  # the owner's share of pipe memory may be used up
            fcntl.fcntl(self.pipe[1], _F_SETPIPE_SZ, _PIPE)

    def splice(self) -> None:
        if self.pipe is None:
            return
        read_end, write_end = self.pipe
        source, sink = self.src.fileno(), self.dst.fileno()
        for _ in range(_ROUNDS):
            if not self.held:
                self.held = os.splice(source, write_end, _PIPE, flags=_SPLICE_FLAGS)
                if not self.held:
                    self.end()
                    return
            while self.held:
                try:
                    sent = os.splice(read_end, sink, self.held, flags=_SPLICE_FLAGS)
                except BlockingIOError:
                    self.relay.touch()
                    self.wait_to_write()
                    return
                self.held -= sent
                self.moved += sent
            self.relay.touch()

    def wait_to_write(self) -> None:
        self.relay.loop.remove_reader(self.src.fileno())
        self.relay.loop.add_writer(self.dst.fileno(), self.writable)

    def writable(self) -> None:
        try:
            if self.pending:
                sent = self.dst.send(self.pending)
                self.pending = self.pending[sent:]
                self.moved += sent
            while self.held and self.pipe is not None:
                sent = os.splice(self.pipe[0], self.dst.fileno(), self.held, flags=_SPLICE_FLAGS)
                self.held -= sent
                self.moved += sent
        except BlockingIOError:
            self.relay.touch()
            return
        except OSError as error:
            self.relay.fail(error)
            return
        self.relay.touch()
        if not self.pending and not self.held:
            self.relay.loop.remove_writer(self.dst.fileno())
            self.relay.loop.add_reader(self.src.fileno(), self.readable)

    def end(self) -> None:
        self.relay.loop.remove_reader(self.src.fileno())
        with contextlib.suppress(OSError):
            self.dst.shutdown(socket.SHUT_WR)
        self.done = True
        self.relay.half_done()

    def stop(self) -> None:
        self.relay.loop.remove_reader(self.src.fileno())
        self.relay.loop.remove_writer(self.dst.fileno())
        if self.pipe is not None:
            os.close(self.pipe[0])
            os.close(self.pipe[1])
            self.pipe = None


class Relay:
    """
    One tunnel; the caller owns and closes both sockets.

    Args:
        client: non-blocking socket of the sandbox.
        server: non-blocking socket of the outside.
        connection: whose time is extended as bytes move.
        idle_s: seconds without a byte after which the tunnel is cut.
        check: judges the client's first bytes before any of them moves (see `Check`).
        answer_check: looks at the server's in the same way.
    """

    def __init__(
        self,
        client: socket.socket,
        server: socket.socket,
        connection: Connection,
        *,
        idle_s: float,
        check: Callable[[bytes], int] | None = None,
        answer_check: Callable[[bytes], int] | None = None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._connection = connection
        self._idle_s = idle_s
        self._over: asyncio.Future[None] = self.loop.create_future()
        self._up = _Half(self, client, server)
        self._down = _Half(self, server, client)
        self._up.check = check
        self._down.check = answer_check

    @property
    def moved(self) -> tuple[int, int]:
        """Bytes moved up (to the outside) and down."""
        return self._up.moved, self._down.moved

    async def run(self) -> None:
        """Move bytes until both directions have ended; raises OSError when the tunnel breaks."""
        self.touch()
        self._connection.client = (self._up.src.fileno(), self._client_reset)
        try:
            self._up.start()
            self._down.start()
            await self._over
        finally:
            self._connection.client = None
            self._up.stop()
            self._down.stop()

    def touch(self) -> None:
        """Note that bytes move."""
        self._connection.extend(self._idle_s)

    def half_done(self) -> None:
        """Note that one direction has ended."""
        if self._up.done and self._down.done:
            if not self._over.done():
                self._over.set_result(None)
        else:
            self._idle_s = min(self._idle_s, _HALF_CLOSED_S)
            self.touch()

    def _client_reset(self) -> None:
        self.fail(ConnectionResetError("the client is gone"))

    def fail(self, error: Exception) -> None:
        """End both directions at once, passing a reset on as a reset."""
        if self._over.done():
            return
        for half in (self._up, self._down):
            reset_on_close(half.src)
        self._over.set_exception(error)


def reset_on_close(sock: socket.socket) -> None:
    """Make closing *sock* send a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
