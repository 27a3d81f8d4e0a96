"""Request bodies of the git filter: read in pieces with their coding taken off, or whole within a bound."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Self

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
_MAX_CONTAINERS = 20_000
"""Brackets and braces in a body: each may become an object many times as large as its text."""
_MAX_MEMBERS = 200_000
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
                if coded:
                    await asyncio.sleep(0)  # other connections get their turn between two steps
    except UpstreamLostError as error:
        raise ClientBodyError("the request's body breaks off") from error
    except (HeadError, CodingError) as error:
        raise ClientBodyError(str(error)) from error


class Hold:
    """
    What one request holds in memory of its body; use as ``with Hold(room) as hold``.

    Args:
        room: what all bodies of a gate are counted against.
    """

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._taken = 0

    def __enter__(self) -> Self:
        return self

    def more(self, count: int) -> None:
        """Take room for *count* bytes; raises ClientBodyError when there is not so much."""
        if not self._room.take(count):
            raise ClientBodyError("too many large bodies are under way at once; try again")
        self._taken += count

    def __exit__(self, *_: object) -> None:
        self._room.give(self._taken)


async def document(session: Session, request: RequestHead, limit: int, hold: Hold) -> dict[str, Any]:
    """
    Read a whole body that is one JSON object.

    Args:
        session: whose client sends it.
        request: its head; marked as read.
        limit: most bytes.
        hold: counts it, until it has been sent on.

    Raises:
        ClientBodyError: it is too long, no JSON object, or has a member twice.
    """
    body = bytearray()
    async for piece in pieces(session, request):
        session.connection.extend(IDLE_TIMEOUT_S)
        if len(body) + len(piece) > limit:
            raise ClientBodyError("the body is too long to be judged")
        hold.more(len(piece))
        body += piece
    request.length = 0  # it is read: the connection can be used on after a refusal
    if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS or body.count(b",") > _MAX_MEMBERS:
        raise ClientBodyError("the body has too many parts to be read")
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_once, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise ClientBodyError("the body is no JSON, or has a member twice") from error
    if not isinstance(value, dict):
        raise ClientBodyError("the body is no JSON object")
    return value


def encoded(members: dict[str, Any]) -> bytes:
    """
    Return a judged body as it is sent: about as long as it came.

    Raises:
        ClientBodyError: a number is out of range, or a text has half a character.
    """
    try:
        return json.dumps(members, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise ClientBodyError("the body cannot be sent on as JSON") from error


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member is there twice")
    return members


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
