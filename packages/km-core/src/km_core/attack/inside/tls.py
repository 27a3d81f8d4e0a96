"""Attempts with TLS: ClientHellos built by hand (RFC 8446 section 4.1.2), so that each can be wrong."""

from __future__ import annotations

import os
import socket
import struct
import time

from km_core.attack.inside.base import TIMEOUT_S, Args, attempt, held, say, talk
from km_core.attack.inside.parsers import GATE

HANDSHAKE = 0x16


def _vector(data: bytes, size: int) -> bytes:
    return len(data).to_bytes(size, "big") + data


def _extension(kind: int, data: bytes) -> bytes:
    return struct.pack("!H", kind) + _vector(data, 2)


def hello(name: str, token: bytes = b"", *, ech: bool = False, early: int = 0) -> bytes:
    """
    Return a ClientHello, without record header.

    Args:
        name: server name; empty leaves the extension out.
        token: what the canary looks for, sent as an ALPN protocol.
        ech: add an encrypted ClientHello (RFC 9849, extension 0xfe0d) of the outer kind.
        early: bytes of padding (RFC 7685) before the server name.
    """
    extensions = b""
    if early:
        extensions += _extension(21, bytes(early))
    if name:
        extensions += _extension(0, _vector(b"\0" + _vector(name.encode(), 2), 2))
    if token:
        extensions += _extension(16, _vector(_vector(token[:255], 1), 2))
    extensions += _extension(10, _vector(b"\x00\x1d\x00\x17", 2))
    extensions += _extension(13, _vector(b"\x04\x03\x08\x04\x04\x01", 2))
    extensions += _extension(43, _vector(b"\x03\x04", 1))
    extensions += _extension(51, _vector(b"\x00\x1d" + _vector(os.urandom(32), 2), 2))
    if ech:
        outer = (
            b"\x00" + b"\x00\x01\x00\x01" + b"\x2a" + _vector(os.urandom(32), 2) + _vector(os.urandom(144), 2)
        )
        extensions += _extension(0xFE0D, outer)
    body = b"\x03\x03" + os.urandom(32) + _vector(os.urandom(32), 1)
    body += _vector(b"\x13\x01\x13\x02\x13\x03\xc0\x2f", 2) + b"\x01\x00" + _vector(extensions, 2)
    return b"\x01" + _vector(body, 3)


def records(message: bytes, size: int = 16384) -> bytes:
    """Return *message* in handshake records of at most *size* bytes each."""
    pieces = [message[at : at + size] for at in range(0, len(message), size)]
    return b"".join(b"\x16\x03\x01" + _vector(piece, 2) for piece in pieces)


def hello_to_canary(args: Args) -> None:
    """Say hello to the canary's own address, without a server name or with that of an allowed host."""
    packet = records(hello(args["name"], args["token"]))
    for address in args["addresses"]:
        for port in args["tcp_ports"]:

            def one(address: str = address, port: int = port) -> None:
                with socket.create_connection((address, port), TIMEOUT_S) as sock:
                    sock.settimeout(TIMEOUT_S)
                    sock.sendall(packet)
                    sock.recv(100)

            attempt(f"{address}:{port}", one)


def _says_hello_back(target: tuple, host: str, data: bytes, piece: int = 0) -> bytes:  # type: ignore[type-arg] # python3 inside may be old
    with socket.create_connection(target, TIMEOUT_S) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(TIMEOUT_S * 2)
        if target == GATE:
            sock.sendall(f"CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n".encode())
            answer = sock.recv(4096)
            if b" 200" not in answer.split(b"\r\n")[0]:
                return b"refused: " + answer[:60]
        try:
            for at in range(0, len(data), piece or len(data)):
                sock.sendall(data[at : at + (piece or len(data))])
                if piece:
                    time.sleep(0.001)
            return sock.recv(100)
        except OSError:
            return b""


def _answers(allowed: str) -> bool:
    """Say whether an ordinary hello is answered; where it is not, a refusal would prove nothing."""
    seen = b""
    try:
        seen = _says_hello_back(GATE, allowed, records(hello(allowed)))
    except OSError as error:
        seen = str(error).encode()
    if seen[:1] == bytes([HANDSHAKE]):
        return True
    say(skip=f"{allowed} does not answer an ordinary TLS hello ({seen[:30]!r})")
    return False


def hello_through_allowed(args: Args) -> None:
    """Dial an allowed host and say a hello that should not get through: no ServerHello may come back."""
    name, allowed = args["name"], args["allowed"]
    if not _answers(allowed):
        return
    shapes = {
        "whole": (records(hello(name)), 0),
        "after a visit": (records(hello(name)), 0),
        "one byte a segment": (records(hello(name)), 1),
        "one byte a record": (records(hello(name), 1), 0),
        "name after 1200 bytes": (records(hello(name, early=1200)), 0),
        "name after 14000 bytes": (records(hello(name, early=14000)), 0),
        "name after 60000 bytes": (records(hello(name, early=60000)), 0),
        "encrypted hello": (records(hello(allowed, ech=True)), 0),
    }
    for how in args["shapes"]:
        data, piece = shapes[how]
        for target in ((allowed, 443), GATE):

            def one(how: str = how, data: bytes = data, piece: int = piece, target: tuple = target) -> None:  # type: ignore[type-arg] # as above
                seen = _says_hello_back(target, allowed, data, piece)
                held(f"{how} by {target[0]}", seen[:1] != bytes([HANDSHAKE]), repr(seen[:20]))

            attempt(how, one)


def opaque(args: Args) -> None:
    """Bytes that are no TLS, in a tunnel to an allowed TLS port: nothing may come back but an alert."""
    if not _answers(args["allowed"]):
        return
    for what in (
        b"SSH-2.0-km\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\0" * 64,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        for target in ((args["allowed"], 443), GATE):

            def one(what: bytes = what, target: tuple = target) -> None:  # type: ignore[type-arg] # as above
                seen = _says_hello_back(target, args["allowed"], what)
                fine = not seen or seen[:1] == b"\x15" or seen.startswith((b"refused", b"HTTP/1.1 4"))
                held(f"{what[:12]!r} by {target[0]}", fine, repr(seen[:40]))

            attempt(repr(what[:12]), one)


def rebinding(args: Args) -> None:
    """Connect to allowed names that lead to the host, plainly and with TLS."""
    for name in args["rebind"]:
        plain = b"GET /" + args["token"] + b" HTTP/1.1\r\nHost: " + name.encode() + b"\r\n\r\n"
        attempt(f"http {name}", talk, name, 80, plain)
        attempt(f"https {name}", talk, name, 443, records(hello(name, args["token"])))
