"""Request bodies of the git filter: read in pieces with their coding taken off, or whole within a bound."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from km_net_proxy.http.coding import CodingError, decoder
from km_net_proxy.http.connections import IDLE_TIMEOUT_S
from km_net_proxy.http.exchange import ClientBodyError, UpstreamLostError, body_of
from km_net_proxy.http.head import HeadError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from km_net_proxy.http.context import BodyRoom
    from km_net_proxy.http.head import RequestHead
    from km_net_proxy.http.session import Session

_STEP = 4096
"""Coded bytes that are decoded at once: 4 MiB at the most that gzip can make of them."""
_CODINGS = frozenset({"", "identity", "gzip", "x-gzip"})


def coding_of(request: RequestHead) -> str:
    """
    Return the body's content coding: empty, or ``gzip``.

    Raises:
        ClientBodyError: it is another one, or several.
    """
    name = request.index.get(b"content-encoding", b"").decode("latin-1").strip().lower()
    if name not in _CODINGS:
        raise ClientBodyError("the body's coding is not gzip")
    return "gzip" if name.endswith("gzip") else ""


async def pieces(session: Session, request: RequestHead) -> AsyncIterator[bytes]:
    """
    Yield the decoded body as it comes; asks a client for it that waits to be asked.

    Raises:
        ClientBodyError: it is malformed, or breaks off.
    """
    take = decoder(coding_of(request))
    coded = bool(coding_of(request))
    if b"expect" in request.index and request.length:
        session.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async for data in body_of(session.client, request.length):
            for start in range(0, len(data), _STEP if coded else len(data)):
                plain = take.feed(data[start : start + _STEP]) if coded else data
                if plain:
                    yield plain
    except UpstreamLostError as error:
        raise ClientBodyError("the request's body breaks off") from error
    except (HeadError, CodingError) as error:
        raise ClientBodyError(str(error)) from error


async def document(session: Session, request: RequestHead, limit: int, room: BodyRoom) -> dict[str, Any]:
    """
    Read a whole body that is one JSON object.

    Args:
        session: whose client sends it.
        request: its head; marked as read.
        limit: most bytes.
        room: what bodies in memory are counted against while this one is read.

    Raises:
        ClientBodyError: it is too long, no JSON object, or has a member twice.
    """
    body = bytearray()
    taken = 0
    try:
        async for piece in pieces(session, request):
            session.connection.extend(IDLE_TIMEOUT_S)
            if len(body) + len(piece) > limit or not room.take(len(piece)):
                raise ClientBodyError("the body is too long to be judged")
            taken += len(piece)
            body += piece
        request.length = 0  # it is read: the connection can be used on after a refusal
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ClientBodyError("the body is no JSON, or has a member twice") from error
    finally:
        room.give(taken)
    if not isinstance(value, dict):
        raise ClientBodyError("the body is no JSON object")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
