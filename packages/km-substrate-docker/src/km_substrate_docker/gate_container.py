"""A gate that runs in a container, as its supervisor holds it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

from attrs import define

from km_substrate_docker.engine import connect, remove
from km_substrate_docker.stream import FRAME, wait_exit

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

_LAST_WORDS_S = 2.0


@define
class GateContainer:
    """A gate in a container (`km_host.backend.GateHandle`)."""

    channel: socket.socket
    pid: int
    _pidfd: int
    _engine: str
    _id: str
    _output: asyncio.Task[None]
    _code: int | None = None

    async def wait(self) -> int:
        """Wait until the gate has ended, and remove its container; may be called again."""
        if self._code is None:
            code = await wait_exit(self._engine, self._id)
            # The stream ends with the container; what it said last belongs into the log.
            await asyncio.wait([self._output], timeout=_LAST_WORDS_S)
            self._output.cancel()
            self._code = code
        if self._pidfd >= 0:
            os.close(self._pidfd)
            self._pidfd = -1
        await asyncio.to_thread(_remove_by_id, self._engine, self._id)
        return self._code

    def kill(self) -> None:
        """End the gate at once."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)


def last_words(output: socket.socket, early: bytes) -> str:
    """Return the end of what a container that failed has said."""
    output.settimeout(1.0)
    data = early
    with contextlib.suppress(OSError):
        while len(data) < 65536 and (chunk := output.recv(65536)):
            data += chunk
    text = b"".join(piece for _, piece in _frames(data)).decode(errors="replace")
    return " | ".join(text.strip().splitlines()[-3:])


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= FRAME.size:
        kind, length = FRAME.unpack_from(data)
        yield kind, data[FRAME.size : FRAME.size + length]
        data = data[FRAME.size + length :]


def _remove_by_id(host: str, container_id: str) -> None:
    from docker.errors import NotFound

    with connect(host) as client:
        try:
            remove(client.containers.get(container_id))
        except NotFound:
            return
