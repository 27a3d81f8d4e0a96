"""
Looking at the first bytes of a connection without taking them.

They stay in the kernel's buffer for whoever serves the connection, so TLS can be ended here or passed on
untouched, and nothing has to be put back.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket

from km_net_proxy.http.hello import MAX_HELLO, ClientHello, HelloError, read_client_hello

_WINDOW = MAX_HELLO + 16 * 1024
_LARGE = 8 * 1024
"""From here on a message in small segments may not fit into the buffer a socket begins with."""
_ROOM = 1024 * 1024


async def peek(sock: socket.socket, needed: int = 1) -> bytes:
    """
    Wait until *needed* bytes can be read and return all there are, leaving them.

    Fewer are returned when the stream ends before. `SO_RCVLOWAT` makes the kernel wake us only when there
    is enough: a client that sends one byte at a time costs one look per answer, not a busy loop.
    """
    loop = asyncio.get_running_loop()
    low = 1
    try:
        while True:
            with contextlib.suppress(BlockingIOError):
                data = sock.recv(_WINDOW, socket.MSG_PEEK)
                if len(data) >= needed or not data or low >= needed > 1:
                    return data
            if needed > low:
                if needed > _LARGE >= low:
                    # Each segment costs the kernel a buffer of its own, however short it is.
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _ROOM)
                low = needed
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, needed)
            ready: asyncio.Future[None] = loop.create_future()
            loop.add_reader(sock.fileno(), _set, ready)
            try:
                await ready
            finally:
                loop.remove_reader(sock.fileno())
    finally:
        if low > 1:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


def _set(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


async def peek_hello(sock: socket.socket) -> ClientHello:
    """
    Return the ClientHello at the start of a stream, leaving its bytes.

    Raises:
        HelloError: there is none, or the stream ends within it.
    """
    needed = 1
    while True:
        data = await peek(sock, needed)
        if len(data) < needed:
            raise HelloError("the stream ends within the ClientHello")
        found = read_client_hello(data)
        if isinstance(found, ClientHello):
            return found
        needed = found
