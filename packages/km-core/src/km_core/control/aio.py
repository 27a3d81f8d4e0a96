"""The wire of `km_core.control.rpc` for processes that run an event loop: gates and pods."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any

from km_core.control.rpc import MAX_LINE, encode, result_of
from km_core.errors import ControlUnavailableError

if TYPE_CHECKING:
    from pathlib import Path


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
