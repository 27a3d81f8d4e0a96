"""
The wire between km's processes: one JSON object per line over a Unix socket.

Request ``{"id": N, "op": NAME, "args": {...}}``, answer ``{"id": N, "ok": true, "result": ...}`` or
``{"id": N, "ok": false, "error": {code, what, where, why, hint}}``.  A sandbox's socket wants
``{"op": "hello", "args": {"token": ...}}`` first; the operator's goes by peer credentials.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
from typing import TYPE_CHECKING, Any, Self

from km_core.errors import ControlUnavailableError, KmError, from_dict

if TYPE_CHECKING:
    from pathlib import Path

MAX_LINE = 16 * 1024 * 1024
"""Longest line either side accepts, in bytes."""


class ControlClient:
    """
    A blocking client; not thread-safe.

    Args:
        path: the socket.
        token: the sandbox's token, for a sandbox socket.
        timeout_s: how long an answer may take.
    """

    def __init__(self, path: Path, *, token: str = "", timeout_s: float = 30.0) -> None:
        self._path = path
        self._token = token
        self._timeout_s = timeout_s
        self._sock: socket.socket | None = None
        self._buffer = b""
        self._ids = itertools.count(1)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next call opens a new one."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None
            self._buffer = b""

    def call(self, op: str, /, **args: Any) -> Any:
        """
        Send one request and wait for its answer.

        Raises:
            ControlUnavailableError: nobody answers, in time or at all.
            KmError: the error the other side answered with.
        """
        try:
            if self._sock is None:
                self._connect()
            return self._exchange(op, args)
        except (OSError, ValueError) as error:
            self.close()
            raise ControlUnavailableError(
                "the control plane does not answer", where=str(self._path), why=str(error)
            ) from error
        except KmError:
            raise
        except BaseException:
            # Cut off between question and answer: on this connection the next answer would be the last
            # question's.
            self.close()
            raise

    def _connect(self) -> None:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.settimeout(self._timeout_s)
            sock.connect(str(self._path))
        except OSError:
            sock.close()
            raise
        self._sock = sock
        self._buffer = b""
        if self._token:
            self._exchange("hello", {"token": self._token})

    def _exchange(self, op: str, args: dict[str, Any]) -> Any:
        if self._sock is None:  # pragma: no cover - callers connect first
            raise OSError("not connected")
        number = next(self._ids)
        # A server that refuses us answers why and closes; its answer can be read though ours cannot be sent.
        with contextlib.suppress(BrokenPipeError):
            self._sock.sendall(encode({"id": number, "op": op, "args": args}))
        while b"\n" not in self._buffer:
            chunk = self._sock.recv(65536)
            if not chunk:
                raise OSError("the connection was closed")
            self._buffer += chunk
            if len(self._buffer) > MAX_LINE:
                raise ValueError("the answer is too long")
        line, _, self._buffer = self._buffer.partition(b"\n")
        answer = json.loads(line)
        # A refusal before the request was read carries no number.
        if not isinstance(answer, dict) or answer.get("id") not in {number, None}:
            raise ValueError("the answer is to another question")
        return result_of(answer)


class AsyncControlClient:
    """An asyncio client with pipelining; reconnects on the next call after a failure."""

    def __init__(self, path: Path, *, token: str = "", timeout_s: float = 10.0) -> None:
        self._path = path
        self._token = token
        self._timeout_s = timeout_s
        self._ids = itertools.count(1)
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reader_task: asyncio.Task[None] | None = None
        self._lock = asyncio.Lock()

    async def close(self) -> None:
        """Close the connection and fail what is pending."""
        if self._reader_task is not None:
            self._reader_task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader_task
        self._drop(ConnectionError("closed"))

    async def call(self, op: str, /, **args: Any) -> Any:
        """Send one request and wait for its answer; raises as `ControlClient.call`."""
        try:
            async with asyncio.timeout(self._timeout_s):
                async with self._lock:
                    if self._writer is None:
                        await self._connect()
                return await self._send(op, args)
        except (OSError, ValueError, TimeoutError) as error:
            raise ControlUnavailableError(
                "the control plane does not answer", where=str(self._path), why=str(error) or "timed out"
            ) from error

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=MAX_LINE)
        self._writer = writer
        self._reader_task = asyncio.get_running_loop().create_task(self._read(reader))
        if self._token:
            await self._send("hello", {"token": self._token})

    async def _send(self, op: str, args: dict[str, Any]) -> Any:
        if self._writer is None:
            raise ConnectionError("not connected")
        number = next(self._ids)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending[number] = future
        try:
            self._writer.write(encode({"id": number, "op": op, "args": args}))
            await self._writer.drain()
            return result_of(await future)
        finally:
            self._pending.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        error: Exception = ConnectionError("the connection was closed")
        try:
            while line := await reader.readline():
                answer = json.loads(line)
                future = self._pending.get(answer.get("id"))
                if future is not None and not future.done():
                    future.set_result(answer)
        except (OSError, ValueError) as caught:
            error = caught
        self._drop(error)

    def _drop(self, error: Exception) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        for future in self._pending.values():
            if not future.done():
                future.set_exception(ConnectionError(str(error)))


def encode(message: dict[str, Any]) -> bytes:
    """Return one line of the wire."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def result_of(answer: dict[str, Any]) -> Any:
    """Return an answer's result or raise its error."""
    if answer.get("ok"):
        return answer.get("result")
    raise from_dict(answer.get("error") or {})
