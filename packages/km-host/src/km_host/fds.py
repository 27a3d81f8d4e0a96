"""Descriptors: closing what must not leak, and frames over asyncio."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from typing import TYPE_CHECKING, Any

from km_host.inside import frames

if TYPE_CHECKING:
    from collections.abc import Iterable

PEER_CREDENTIALS = 12
"""Size of ``struct ucred``: pid, uid, gid (unix(7))."""


def close_other_descriptors(keep: Iterable[int] = (0, 1, 2)) -> None:
    """Close every descriptor of this process except *keep*."""
    low = 0
    for descriptor in sorted(set(keep)):
        if descriptor > low:
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, max_descriptor())


def max_descriptor() -> int:
    """Return one more than the highest descriptor this process has open."""
    return max((int(name) for name in os.listdir("/proc/self/fd")), default=0) + 1  # noqa: PTH208 - names only


def peer_of(sock: socket.socket) -> tuple[int, int, int]:
    """Return (pid, uid, gid) of the process at the other end of a Unix socket."""
    raw = array.array("i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, PEER_CREDENTIALS))
    return raw[0], raw[1], raw[2]


async def _ready(sock: socket.socket, *, write: bool) -> None:
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not future.done():
            future.set_result(None)

    add, remove = (loop.add_writer, loop.remove_writer) if write else (loop.add_reader, loop.remove_reader)
    add(sock.fileno(), wake)
    try:
        await future
    finally:
        remove(sock.fileno())


async def send_frame(sock: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """
    Send one frame over a non-blocking socket; one sender at a time.

    Raises:
        OSError: the other side is gone.
    """
    data = memoryview(frames.encode(message))
    ancillary = []
    if descriptors:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
    while data:
        try:
            sent = sock.sendmsg([data], ancillary)
        except BlockingIOError:
            await _ready(sock, write=True)
            continue
        data, ancillary = data[sent:], []


async def receive_frame(
    sock: socket.socket, *, max_descriptors: int = 0, limit: int = frames.MAX_FRAME
) -> tuple[dict[str, Any], list[int]] | None:
    """
    Read one frame from a non-blocking socket; None at the end of the stream.

    Raises:
        frames.FrameError: what came is not a frame; nothing stays open.
        OSError: the socket failed.
    """
    descriptors: list[int] = []
    try:
        header = await _exactly(sock, frames.HEADER.size, max_descriptors, descriptors)
        if not header:
            return None
        body = await _exactly(sock, frames.length_of(header, limit=limit), len(descriptors), descriptors)
        return frames.decode(body), descriptors
    except BaseException:
        frames.close_all(descriptors)
        raise


async def _exactly(sock: socket.socket, size: int, max_descriptors: int, descriptors: list[int]) -> bytes:
    data = bytearray()
    while len(data) < size:
        try:
            more, found = frames.take(sock, size - len(data), max_descriptors - len(descriptors))
        except BlockingIOError:
            await _ready(sock, write=False)
            continue
        descriptors += found
        if not more:
            if not data and not descriptors:
                return b""
            raise frames.FrameError("the stream ended inside a message")
        data += more
    return bytes(data)
