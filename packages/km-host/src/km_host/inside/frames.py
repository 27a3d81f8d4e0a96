"""
Messages with descriptors over a Unix stream socket.

A frame is 4 bytes of big-endian length and that many bytes of JSON (one object).  Descriptors travel by
``SCM_RIGHTS`` with the first byte, so a reader takes the header by a read of its own.  Both ends treat
the other's frames as untrusted: lengths, types and the number of descriptors are checked before use, and
descriptors nobody asked for are closed.
"""

from __future__ import annotations

import array
import contextlib
import json
import os
import socket
import struct
from typing import Any

HEADER = struct.Struct(">I")
MAX_FRAME = 4 * 1024 * 1024
"""Longest JSON either side accepts, in bytes."""


class FrameError(Exception):
    """The other side sent something that is not a frame."""


def encode(message: dict[str, Any], *, limit: int = MAX_FRAME) -> bytes:
    """
    Return the bytes of one frame.

    Raises:
        FrameError: the message is longer than *limit*.
    """
    body = json.dumps(message, separators=(",", ":")).encode()
    if len(body) > limit:
        raise FrameError(f"a message of {len(body)} bytes is too long")
    return HEADER.pack(len(body)) + body


def decode(body: bytes) -> dict[str, Any]:
    """
    Return the object in a frame's body.

    Raises:
        FrameError: it is not a JSON object.
    """
    try:
        message = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise FrameError("a message is not JSON") from error
    if not isinstance(message, dict):
        raise FrameError("a message is not an object")
    return message


def length_of(header: bytes, *, limit: int = MAX_FRAME) -> int:
    """
    Return the body's length.

    Raises:
        FrameError: it is longer than *limit*.
    """
    (length,) = HEADER.unpack(header)
    if length > limit:
        raise FrameError(f"a message of {length} bytes is too long")
    return int(length)


def send(sock: socket.socket, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
    """Send one frame over a blocking socket; *descriptors* stay open here."""
    data = encode(message)
    ancillary = []
    if descriptors:
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors).tobytes())]
    sent = sock.sendmsg([data], ancillary)
    if sent < len(data):
        sock.sendall(data[sent:])


def take(sock: socket.socket, size: int, max_descriptors: int) -> tuple[bytes, list[int]]:
    """
    Read up to *size* bytes and the descriptors that came with them, which the caller owns.

    Raises:
        FrameError: more descriptors came than *max_descriptors*; all are closed.
    """
    # Room for more than is wanted: what the kernel had to cut off would be reported only as a flag.
    space = socket.CMSG_SPACE(max(max_descriptors, 1) * array.array("i").itemsize)
    data, ancillary, flags, _ = sock.recvmsg(size, space, socket.MSG_CMSG_CLOEXEC)
    found = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            found.frombytes(payload[: len(payload) - len(payload) % found.itemsize])
    descriptors = list(found)
    if len(descriptors) > max_descriptors or flags & socket.MSG_CTRUNC:
        close_all(descriptors)
        raise FrameError("a message carries descriptors that nobody asked for")
    return data, descriptors


def receive(
    sock: socket.socket, *, max_descriptors: int = 0, limit: int = MAX_FRAME
) -> tuple[dict[str, Any], list[int]] | None:
    """
    Read one frame from a blocking socket; None at the end of the stream.

    The descriptors are the caller's, close-on-exec.

    Raises:
        FrameError: what came is not a frame; nothing stays open.
        OSError: the socket failed.
    """
    descriptors: list[int] = []
    try:
        header = _exactly(sock, HEADER.size, max_descriptors, descriptors)
        if not header:
            return None
        body = _exactly(sock, length_of(header, limit=limit), len(descriptors), descriptors)
        return decode(body), descriptors
    except BaseException:
        close_all(descriptors)
        raise


def _exactly(sock: socket.socket, size: int, max_descriptors: int, descriptors: list[int]) -> bytes:
    data = b""
    while len(data) < size:
        more, found = take(sock, size - len(data), max_descriptors - len(descriptors))
        descriptors += found
        if not more:
            if not data and not descriptors:
                return b""
            raise FrameError("the stream ended inside a message")
        data += more
    return data


def close_all(descriptors: list[int]) -> None:
    """Close descriptors; those already closed are fine."""
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            os.close(descriptor)
