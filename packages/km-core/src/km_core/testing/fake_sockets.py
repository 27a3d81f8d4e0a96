"""Sandbox sockets of `km_core.testing.fake_control`, served by a thread of their own."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

from km_core.control.server import ControlServer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from km_core.control.ops import Op

_WAIT_S = 10.0


class FakeSockets:
    """One server per sandbox; never call it while holding a lock that an operation takes."""

    def __init__(self) -> None:
        self._servers: dict[str, ControlServer] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def open(
        self, sandbox_id: str, path: Path, ops: Mapping[str, Op], check_token: Callable[[str], bool]
    ) -> None:
        """Serve *ops* at *path*; connections that are open already are dropped."""
        loop = self._running_loop()
        known = self._servers.get(sandbox_id)
        if known is not None and path.exists():
            loop.call_soon_threadsafe(known.drop_connections)
            return
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        server = ControlServer(path, ops, check_token=check_token)
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(_WAIT_S)
        self._servers[sandbox_id] = server

    def close(self, sandbox_id: str) -> None:
        """Remove a sandbox's socket and its connections."""
        server = self._servers.pop(sandbox_id, None)
        if server is not None and self._loop is not None:
            asyncio.run_coroutine_threadsafe(_end(server), self._loop).result(_WAIT_S)

    def close_all(self) -> None:
        """Remove every socket and end the thread."""
        for sandbox_id in list(self._servers):
            self.close(sandbox_id)
        if self._loop is not None and self._thread is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()
            self._loop = self._thread = None

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._loop.run_forever, name="fake-control", daemon=True)
            self._thread.start()
        return self._loop


async def _end(server: ControlServer) -> None:
    await server.close(wait_s=1)
    # Transports close their sockets one turn later.
    await asyncio.sleep(0.01)
