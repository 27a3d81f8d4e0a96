"""
The serving side of the wire in `km_core.control.rpc`: an asyncio server on a Unix socket.

kmd and the pod supervisor share it.  Who may speak is decided before any operation runs: by the peer's
uid as the kernel reports it, or by a token that the first line must carry.  Requests of a connection
may be pipelined; answers of operations that wait may overtake others and are matched by ``id``.  A
peer that sends faster than it reads, or more than `max_pending` waiting operations, is not read from.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import os
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from km_core.control.ops import Op, Peer
from km_core.control.rpc import MAX_LINE, encode
from km_core.errors import ControlError, KmError, PolicyDenied, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from pathlib import Path

MAX_PATH = 107
"""Longest Unix socket path in bytes, without its final zero (unix(7))."""
MAX_HELLO = 4096
"""Longest line before a connection has shown its token, in bytes."""
_CREDENTIALS = struct.Struct("3i")


def _ignore(_event: str, /, **_fields: Any) -> None:
    """Log nothing."""


class ControlServer:
    """
    Serves operations on one Unix socket.

    Args:
        path: where the socket appears; replaced atomically when something stands there.
        ops: the operations by name.
        uids: peers that may connect; None admits every uid (then *check_token* should decide).
        check_token: says whether a token opens this socket; with it ``hello`` comes first.
        mode: permissions of the socket file.
        max_line: longest request in bytes.
        max_pending: waiting operations of one connection before it is not read from.
        max_connections: connections at a time; more are closed at once.
        hello_timeout_s: how long a connection may stay without having shown its token.
        log: called with an event's name and fields; never gets arguments or results.
    """

    def __init__(
        self,
        path: Path,
        ops: Mapping[str, Op],
        *,
        uids: Collection[int] | None = None,
        check_token: Callable[[str], bool] | None = None,
        mode: int = 0o600,
        max_line: int = MAX_LINE,
        max_pending: int = 64,
        max_connections: int = 512,
        hello_timeout_s: float = 10.0,
        log: Callable[..., None] = _ignore,
    ) -> None:
        if uids is None and check_token is None:
            raise ValueError("a control socket needs uids or a token check")
        self.path = path
        self.ops = dict(ops)
        self.uids = None if uids is None else frozenset(uids)
        self.check_token = check_token
        self.max_line = max_line
        self.max_pending = max_pending
        self.max_connections = max_connections
        self.hello_timeout_s = hello_timeout_s
        self.log = log
        self.last_used = time.monotonic()
        self.connected: set[_Connection] = set()
        self.tasks: set[asyncio.Task[None]] = set()
        self._mode = mode
        self._server: asyncio.AbstractServer | None = None
        self._inode: tuple[int, int] | None = None

    @property
    def connections(self) -> int:
        """Number of open connections."""
        return len(self.connected)

    async def start(self) -> None:
        """
        Bind and listen; the socket appears under its name only when it answers.

        Raises:
            ControlError: the path is too long or cannot be bound.
        """
        # Bound under another name and renamed: a client finds the old socket or the new one, never
        # a gap, and a stale file of a killed process is simply replaced.
        temporary = self.path.with_name("." + self.path.name)
        if len(os.fsencode(temporary)) > MAX_PATH:
            raise ControlError(
                f"the socket path is longer than {MAX_PATH} bytes",
                where=str(self.path),
                hint="set KM_RUNTIME_DIR to a short directory",
            )
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.setblocking(False)
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            sock.bind(str(temporary))
            temporary.chmod(self._mode)
            sock.listen(256)
            found = temporary.stat()
            temporary.rename(self.path)
        except OSError as error:
            sock.close()
            raise ControlError("the socket cannot be made", where=str(self.path), why=str(error)) from error
        self._inode = (found.st_dev, found.st_ino)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: _Connection(self), sock=sock
        )

    def drop_connections(self) -> None:
        """Close every connection, as when their token is replaced."""
        for connection in tuple(self.connected):
            connection.close()

    async def close(self, *, wait_s: float = 5.0) -> None:
        """Stop listening, let running operations finish for *wait_s* seconds, close connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
            with contextlib.suppress(OSError):
                found = self.path.stat()
                if (found.st_dev, found.st_ino) == self._inode:
                    self.path.unlink()
        current = asyncio.current_task()
        running = {task for task in self.tasks if task is not current}
        if running:
            _, late = await asyncio.wait(running, timeout=wait_s)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)
        self.drop_connections()
        await asyncio.sleep(0)


class _Connection(asyncio.Protocol):
    """One peer: splits lines, runs operations, writes answers."""

    def __init__(self, server: ControlServer) -> None:
        self._server = server
        self._transport: asyncio.Transport | None = None
        self._peer = Peer(0, -1, -1)
        self._buffer = bytearray()
        self._scanned = 0
        self._pending = 0
        self._reading = True
        self._writable = True
        self._greeted = server.check_token is None
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Look at who is calling before anything is read."""
        if not isinstance(transport, asyncio.Transport):  # pragma: no cover - asyncio hands over nothing else
            transport.close()
            return
        server = self._server
        self._transport = transport
        sock = transport.get_extra_info("socket")
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        self._peer = Peer(*_CREDENTIALS.unpack(raw))
        server.connected.add(self)
        if server.uids is not None and self._peer.uid not in server.uids:
            server.log("peer_refused", uid=self._peer.uid, pid=self._peer.pid)
            self._fail(None, PolicyDenied(f"uid {self._peer.uid} may not use this socket"))
        elif len(server.connected) > server.max_connections:
            self._fail(None, ControlError("too many connections"))
        elif not self._greeted:
            self._timer = asyncio.get_running_loop().call_later(server.hello_timeout_s, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the peer; operations that began go on to their end."""
        del exc
        self._server.connected.discard(self)
        self._server.last_used = time.monotonic()
        self._stop_timer()
        self._transport = None
        self._buffer.clear()

    def data_received(self, data: bytes) -> None:
        """Take bytes and run what is complete."""
        self._buffer += data
        self._run()

    def pause_writing(self) -> None:
        """Stop taking requests: the peer does not read its answers."""
        self._writable = False

    def resume_writing(self) -> None:
        """Go on: the peer has read its answers."""
        self._writable = True
        self._run()

    def close(self) -> None:
        """Close after what is written has left."""
        if self._transport is not None:
            self._transport.close()

    def _too_late(self) -> None:
        if not self._greeted:
            self.close()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _run(self) -> None:
        buffer = self._buffer
        while self._transport is not None and not self._transport.is_closing():
            if not self._writable or self._pending >= self._server.max_pending:
                self._read(False)
                return
            longest = self._server.max_line if self._greeted else MAX_HELLO
            end = buffer.find(b"\n", self._scanned)
            if max(end, len(buffer) if end < 0 else 0) > longest:
                self._fail(None, UsageError(f"the line is longer than {longest} bytes"))
                return
            if end < 0:
                self._scanned = len(buffer)
                self._read(True)
                return
            line = bytes(buffer[:end])
            del buffer[: end + 1]
            self._scanned = 0
            self._request(line)

    def _read(self, wanted: bool) -> None:
        if self._transport is not None and wanted is not self._reading:
            self._reading = wanted
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def _request(self, line: bytes) -> None:
        try:
            message = json.loads(line, parse_constant=_no_constant)
            identifier, name, args = message["id"], message["op"], message.get("args", {})
            if not isinstance(identifier, int) or not isinstance(name, str):
                raise TypeError("id must be a number and op a text")
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            self._fail(None, UsageError("the request is not a JSON object with id, op and args"))
            return
        if not self._greeted:
            self._hello(identifier, name, args)
            return
        try:
            op = self._server.ops.get(name)
            if op is None:
                raise UsageError(f"unknown operation {name[:64]!r}")
            result = op.run(self._peer, **op.checked(name, args))
        except Exception as error:  # noqa: BLE001 - any failure of an operation is its caller's answer
            self._answer(identifier, name, error=error)
            return
        if inspect.isawaitable(result):
            self._pending += 1
            task = asyncio.get_running_loop().create_task(self._later(identifier, name, result))
            self._server.tasks.add(task)
            task.add_done_callback(self._server.tasks.discard)
        else:
            self._answer(identifier, name, result=result)

    def _hello(self, identifier: int, name: str, args: Any) -> None:
        token = args.get("token") if isinstance(args, dict) else None
        check = self._server.check_token
        if name != "hello" or not isinstance(token, str) or check is None or not check(token):
            self._server.log("token_refused", uid=self._peer.uid, pid=self._peer.pid)
            self._fail(identifier, PolicyDenied("the token does not open this socket"))
            return
        self._greeted = True
        self._stop_timer()
        self._answer(identifier, name, result={})

    async def _later(self, identifier: int, name: str, result: Any) -> None:
        try:
            value = await result
        except asyncio.CancelledError:
            self._answer(identifier, name, error=ControlError("the server is going down"))
        except Exception as error:  # noqa: BLE001 - as above
            self._answer(identifier, name, error=error)
        else:
            self._answer(identifier, name, result=value)
        finally:
            self._pending -= 1
            self._run()

    def _answer(
        self, identifier: int, name: str, *, result: Any = None, error: Exception | None = None
    ) -> None:
        if error is None:
            try:
                line = encode({"id": identifier, "ok": True, "result": result})
            except (TypeError, ValueError) as caught:
                self._answer(identifier, name, error=caught)
                return
        else:
            if not isinstance(error, KmError):
                # The text of an unexpected error may hold anything; only its type crosses the wire.
                self._server.log("operation_failed", op=name, error=error)
                error = ControlError("internal error", where=name, why=type(error).__name__)
            line = encode({"id": identifier, "ok": False, "error": error.to_dict()})
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(line)

    def _fail(self, identifier: int | None, error: KmError) -> None:
        """Answer with an error and close: what follows on this connection cannot be trusted."""
        if self._transport is not None:
            self._transport.write(encode({"id": identifier, "ok": False, "error": error.to_dict()}))
            self._transport.close()
        self._buffer.clear()
        self._stop_timer()


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
