"""
Raw streams of the engine: the connection turns from HTTP into bytes both ways.

The SDK gives its own socket for this, behind buffers that may already hold part of the stream, so the
few lines of HTTP are spoken here (Docker Engine API, "attach to a container", hijacking).
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from typing import TYPE_CHECKING, Any

from km_core.errors import ProvisionError
from km_substrate_docker.engine import socket_path

if TYPE_CHECKING:
    from pathlib import Path

FRAME = struct.Struct(">BxxxI")
"""Head of each piece of a stream without a terminal: 1 stdout or 2 stderr, then the length in bytes."""

_HEAD_LIMIT = 65536
_GONE = 137


def hijack(host: str, path: str, body: dict[str, Any] | None = None) -> tuple[socket.socket, bytes]:
    """
    POST to *path* of the engine at *host* and return the connection with what the engine has sent beyond its answer's head.

    Raises:
        ProvisionError: the engine cannot be reached or refuses; its message is the cause.
    """
    payload = b"" if body is None else json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    )
    sock = socket.socket(socket.AF_UNIX)
    try:
        sock.settimeout(30)
        sock.connect(socket_path(host))
        sock.sendall(head.encode() + payload)
        data = b""
        while b"\r\n\r\n" not in data:
            chunk = sock.recv(65536)
            if not chunk or len(data) > _HEAD_LIMIT:
                raise ConnectionError("the engine closed the connection")
            data += chunk
        answer, _, rest = data.partition(b"\r\n\r\n")
        status = int(answer.split(b" ", 2)[1])
        if status not in {101, 200}:
            raise ConnectionError(_message(rest) or f"HTTP {status}")
        sock.settimeout(None)
    except (OSError, ValueError, IndexError) as error:
        sock.close()
        raise ProvisionError("the engine refused a stream", why=str(error)) from error
    return sock, rest


def _message(body: bytes) -> str:
    start, end = body.find(b"{"), body.rfind(b"}")
    try:
        return str(json.loads(body[start : end + 1]).get("message", ""))
    except ValueError:
        return ""


async def wait_exit(host: str, container_id: str) -> int:
    """
    Wait until a container has ended and return its exit code; 137 when it is gone without a word.

    Raises:
        ProvisionError: the engine cannot be asked; the caller cannot know whether it runs.
    """
    request = f"POST /containers/{container_id}/wait HTTP/1.0\r\nHost: docker\r\nContent-Length: 0\r\n\r\n"
    try:
        reader, writer = await asyncio.open_unix_connection(socket_path(host))
        try:
            writer.write(request.encode())
            await writer.drain()
            answer = await reader.read()
        finally:
            writer.close()
    except OSError as error:
        raise ProvisionError("the engine does not say when a container ends", why=str(error)) from error
    head, _, body = answer.partition(b"\r\n\r\n")
    if b" 404 " in head.split(b"\r\n", 1)[0]:
        return _GONE
    try:
        return int(json.loads(body[body.find(b"{") : body.rfind(b"}") + 1])["StatusCode"])
    except (ValueError, KeyError) as error:
        raise ProvisionError("the engine went away", why="it closed the connection that waited") from error


async def copy_output(sock: socket.socket, early: bytes, target: Path) -> None:
    """Append a container's output (an attached stream without a terminal) to a file until it ends."""
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    inbox = bytearray(early)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with sock, os.fdopen(os.open(target, flags, 0o600), "wb", buffering=0) as out:
        while True:
            while len(inbox) >= FRAME.size:
                _, length = FRAME.unpack_from(inbox)
                end = FRAME.size + length
                if len(inbox) < end:
                    break
                out.write(inbox[FRAME.size : end])
                del inbox[:end]
            data = await loop.sock_recv(sock, 65536)
            if not data:
                return
            inbox += data
