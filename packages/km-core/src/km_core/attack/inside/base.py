"""The parts every attempt is made of."""

from __future__ import annotations

import ctypes
import json
import socket
from typing import TYPE_CHECKING, Any, Dict, List

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 1.5
LIBC = ctypes.CDLL(None, use_errno=True)
SENT: List[str] = []
ERRORS: List[str] = []
Args = Dict[str, Any]


def attempt(label: str, function: Callable[..., object], *arguments: Any, **named: Any) -> None:
    """Run one attempt; any error is written down, never raised."""
    try:
        function(*arguments, **named)
        SENT.append(label)
    except Exception as error:  # every way to fail is an outcome here
        ERRORS.append(f"{label}: {type(error).__name__}: {error}")


def say(**facts: object) -> None:
    """Print one line of what was seen."""
    print(json.dumps(facts), flush=True)


def held(what: str, holds: bool, seen: str = "") -> None:
    """Say whether one thing held, judged by what the client could read."""
    say(held=bool(holds), what=what, seen=seen[:200])


def stream(family: int, address: str, port: int, token: bytes, protocol: int = 0) -> bytes:
    """Send *token* over a connection and return the first of what comes back."""
    with socket.socket(family, socket.SOCK_STREAM, protocol) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.connect((address, port))
        sock.sendall(token)
        sock.shutdown(socket.SHUT_WR)
        return sock.recv(100)


def datagram(family: int, address: str, port: int, data: bytes, protocol: int = 0) -> None:
    """Send one datagram."""
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.sendto(data, (address, port))


def family_of(address: str) -> int:
    """Return the address family of a literal."""
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def talk(address: str, port: int, *pieces: bytes, limit: int = 4096) -> bytes:
    """Send *pieces* one after the other over one connection and return what comes back until it is quiet."""
    answer = b""
    with socket.create_connection((address, port), TIMEOUT_S) as sock:
        sock.settimeout(TIMEOUT_S)
        for piece in pieces:
            try:
                sock.sendall(piece)
                sock.settimeout(0.4)
                answer += sock.recv(limit)
            except socket.timeout:  # noqa: UP041 - not the same before Python 3.10
                continue
            except OSError:
                break
    return answer
