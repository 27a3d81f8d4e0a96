"""
One HTTP exchange between a client and a server: bodies stream both ways, framing is made anew.

Nothing of the two messages is copied through as it came except field values and body bytes: lengths,
chunk sizes and connection management are the gate's own on each side, so no server sees a request
boundary where the gate saw none.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Protocol

from attrs import frozen

from km_net_proxy.http.chunked import LAST_CHUNK, ChunkedDecoder, chunk
from km_net_proxy.http.head import (
    CHUNKED,
    HOP_BY_HOP,
    UNTIL_CLOSE,
    HeadError,
    RequestHead,
    ResponseHead,
    check_partial_response,
    connection_options,
    parse_response,
)
from km_net_proxy.http.stream import HIGH_WATER
from km_net_proxy.http.websocket import SWITCH, accepted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.stream import Stream
    from km_net_proxy.http.upstream import Upstream

_REQUEST_DROPPED = HOP_BY_HOP | {b"host", b"content-length"}
_RESPONSE_DROPPED = HOP_BY_HOP | {b"alt-svc"}
_TRAILER_DROPPED = _RESPONSE_DROPPED | {
    b"content-length",
    b"content-encoding",
    b"content-type",
    b"content-range",
    b"host",
    b"set-cookie",
    b"authorization",
    b"www-authenticate",
    b"cache-control",
}
_INTERIM_LIMIT = 16
_HEAVY = HIGH_WATER // 2
"""Bytes from which a part of an answer waits for its turn."""


class UpstreamLostError(Exception):
    """The server went away or answered with something that is no HTTP; *started* says how far it got."""

    def __init__(self, message: str, *, started: bool) -> None:
        super().__init__(message)
        self.started = started


class ClientBodyError(Exception):
    """The client's body is malformed or breaks off."""


class Tap(Protocol):
    """Sees a response as it passes."""

    @property
    def rewrites(self) -> bool:
        """Whether what `feed` returns differs from what came, so that the length is not known."""

    def begin(self, response: ResponseHead) -> None:
        """Take the final response's head."""

    def feed(self, data: bytes) -> bytes:
        """Take body bytes, return what goes to the client."""

    def more(self) -> bool:
        """Do a part of the work that `feed` has put off; False when there is none."""

    def end(self) -> bytes:
        """The body is complete; return what is left for the client."""


@frozen
class Outcome:
    """
    How an exchange ended.

    Attributes:
        status: of the final response.
        keep_client: the client's connection can carry another request.
        up: body bytes sent to the server.
        down: body bytes received from it.
    """

    status: int
    keep_client: bool
    up: int
    down: int


def request_head(
    request: RequestHead,
    path: str,
    authority: str,
    fields: list[tuple[bytes, bytes]],
    *,
    length: int | None = None,
    own: tuple[tuple[bytes, bytes], ...] = (),
) -> bytes:
    """
    Return the head to send upstream.

    Args:
        request: the client's.
        path: request target in origin form.
        authority: value of ``Host``.
        fields: the client's fields, possibly changed; hop-by-hop ones are dropped here.
        length: length of the body when it is not the client's.
        own: fields of the gate itself, which no ``Connection`` option of the client's takes away.
    """
    dropped = _REQUEST_DROPPED
    if b"connection" in request.index:
        dropped = dropped | connection_options(request.index)
    lines = [f"{request.method} {path} HTTP/1.1\r\nHost: {authority}\r\n".encode("ascii")]
    if b"_" in b"".join(request.index):
        # It counts as a hyphen: some servers read Transfer_Encoding as Transfer-Encoding.
        dropped = dropped | {name for name in request.index if name.replace(b"_", b"-") in dropped}
    lines += [b"%b: %b\r\n" % field for field in fields if field[0].lower() not in dropped]
    lines += [b"%b: %b\r\n" % field for field in own]
    if length is None:
        length = request.length
        if length == 0 and b"content-length" not in request.index:
            lines.append(b"\r\n")
            return b"".join(lines)
    lines.append(
        b"Transfer-Encoding: chunked\r\n\r\n" if length == CHUNKED else b"Content-Length: %d\r\n\r\n" % length
    )
    return b"".join(lines)


class Exchange:
    """
    Carries one request to one server and its response back.

    Args:
        connection: the client's, whose time is extended as bytes move.
        client: its stream.
        request: the parsed head.
        idle_s: seconds without a byte after which it is cut.
        tap: sees the response.
        added: field lines that the response gets.
        on_client_lost: what to do when the client goes while the response runs; by default the
            server's connection is dropped.
        source: the body in place of the client's own, which it is made from.
        sent_length: framing of *source*: bytes, or `CHUNKED`.
        accept: of a WebSocket handshake (`websocket.accept_for`); a 101 with it is the final response.
    """

    def __init__(
        self,
        connection: Connection,
        client: Stream,
        request: RequestHead,
        *,
        idle_s: float,
        tap: Tap | None = None,
        added: bytes = b"",
        on_client_lost: Callable[[], None] | None = None,
        source: AsyncIterator[bytes] | None = None,
        sent_length: int | None = None,
        accept: bytes = b"",
    ) -> None:
        self._source = source
        self._accept = accept
        self._sent_length = request.length if source is None or sent_length is None else sent_length
        self._connection = connection
        self._client = client
        self._request = request
        self._idle_s = idle_s
        self._until: float | None = None
        self._tap = tap
        self._added = added
        self._on_client_lost = on_client_lost
        self._started = False
        self._body_error: Exception | None = None
        self.up = 0
        self.down = 0

    @property
    def started(self) -> bool:
        """Whether a byte of the final response has gone to the client."""
        return self._started

    def limit(self, seconds: float) -> None:
        """Let the exchange go on for *seconds* at most: its client is gone."""
        self._until = asyncio.get_running_loop().time() + seconds
        self._extend()

    def _extend(self) -> None:
        self._connection.extend(self._idle_s)
        if self._until is not None:
            self._connection.expires = min(self._connection.expires, self._until)

    async def run(self, upstream: Upstream, head: bytes, body: bytes | None = None) -> tuple[Outcome, bool]:
        """
        Send *head* and the body, stream the response back.

        Args:
            upstream: where to.
            head: from `request_head`.
            body: the whole body when it has been read already, else it streams from the client.

        Returns:
            The outcome and whether the server's connection can be used again.

        Raises:
            UpstreamLostError: the server went away or is not understood.
            ClientBodyError: the client's body is malformed.
        """
        server = upstream.stream
        pump: asyncio.Task[None] | None = None
        self._extend()
        self._client.on_lost = self._on_client_lost or server.abort
        if self._client.lost and self._client.on_lost is not None:
            self._client.on_lost()
        try:
            if body is not None:
                server.write(head + body if len(body) < 65536 else head)
                if len(body) >= 65536:
                    server.write(body)
                self.up = len(body)
            else:
                server.write(head)
                if self._sent_length:
                    self._connection.client = (self._client.descriptor, self._client.abort)
                    pump = asyncio.get_running_loop().create_task(self._pump(server))
            response = await self._final_head(server)
            if response.status == 101:
                if self._tap is not None:
                    self._tap.begin(response)
                self._started = True
                switch = b"".join(b"%b: %b\r\n" % field for field in SWITCH)
                self._client.write(_response_head(response, switch, drop_length=True))
                return Outcome(101, keep_client=False, up=0, down=0), False
            await self._answer(server, response)
            whole = pump is None or (pump.done() and self._body_error is None)
            reusable = whole and response.keep_alive
            keep = whole and self._request.keep_alive and self._request.minor == 1
            return Outcome(response.status, keep, self.up, self.down), reusable
        except (HeadError, UpstreamLostError) as error:
            if self._body_error is not None and not self._started:
                raise ClientBodyError(str(self._body_error)) from error
            started = self._started
            raise UpstreamLostError(str(error), started=started) from error
        finally:
            self._client.on_lost = None
            self._connection.client = None
            if pump is not None and not pump.done():
                pump.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await pump

    async def _pump(self, server: Stream) -> None:
        """Stream the client's body to the server."""
        try:
            async for data in self._client_body():
                self._extend()
                self.up += len(data)
                server.write(chunk(data) if self._sent_length == CHUNKED else data)
                if server.full:
                    await server.drain()
            if self._sent_length == CHUNKED:
                # Trailers of requests are dropped (RFC 9110 section 6.5.1 allows it): they would be
                # fields that nobody judged.
                server.write(LAST_CHUNK)
        except (HeadError, ClientBodyError) as error:
            self._body_error = error
            server.abort()

    async def _client_body(self) -> AsyncIterator[bytes]:
        try:
            source = self._source
            async for data in body_of(self._client, self._request.length) if source is None else source:
                yield data
        except UpstreamLostError as error:
            raise ClientBodyError("the request's body breaks off") from error

    async def _final_head(self, server: Stream) -> ResponseHead:
        for _ in range(_INTERIM_LIMIT):
            head = await server.read_head(check_partial_response)
            if not head:
                raise UpstreamLostError("the server closed the connection without an answer", started=False)
            response = parse_response(head)
            if response.status >= 200:
                return response
            if response.status == 101:
                if self._accept and accepted(response, self._accept):
                    return response
                raise UpstreamLostError("the server switched protocols unasked", started=False)
            self._extend()
            if self._request.minor == 1:
                self._client.write(_response_head(response, None))
        raise UpstreamLostError("the server sent too many interim answers", started=False)

    async def _answer(self, server: Stream, response: ResponseHead) -> None:
        """Stream the response, its head at once and each piece as it comes."""
        tap, client = self._tap, self._client
        length = 0 if self._request.method == "HEAD" else response.length
        if tap is not None:
            tap.begin(response)
        rewrites = tap is not None and tap.rewrites and length != 0
        open_end = length in (CHUNKED, UNTIL_CLOSE) or rewrites
        chunked = open_end and self._request.minor == 1
        close = not self._request.keep_alive or self._request.minor == 0
        framing = (
            (b"Transfer-Encoding: chunked\r\n" if chunked else b"")
            + (b"Connection: close\r\n" if close else b"")
            + self._added
        )
        out = _response_head(response, framing, drop_length=open_end or response.status == 204)
        self._started = True
        if not server.pending or not length:
            client.write(out)
            out = b""
        trailers: list[tuple[bytes, bytes]] = []
        async for whole in body_of(server, length, trailers):
            # Up to what TLS reads at once; in parts, so that a slow reader holds few of them.
            for start in range(0, len(whole), HIGH_WATER):
                if start or len(whole) >= _HEAVY:
                    await self._connection.turns.take()
                piece = whole if len(whole) <= HIGH_WATER else whole[start : start + HIGH_WATER]
                self._extend()
                self.down += len(piece)
                data = piece if tap is None else tap.feed(piece)
                if data:
                    client.write(out + (chunk(data) if chunked else data))
                    out = b""
                while tap is not None and tap.more():
                    await self._connection.turns.take()
                if client.full:
                    await client.drain()
            if out:
                client.write(out)
                out = b""
        if tap is not None:
            rest = tap.end()
            if rest:
                out += chunk(rest) if chunked else rest
        if chunked:
            out += _last_chunk(trailers)
        if out:
            client.write(out)
        if client.full:
            await client.drain()


async def body_of(
    stream: Stream, length: int, trailers: list[tuple[bytes, bytes]] | None = None
) -> AsyncIterator[bytes]:
    """
    Yield a body's bytes as they come, without their framing.

    Args:
        stream: at the start of the body.
        length: bytes, `CHUNKED` or `UNTIL_CLOSE`.
        trailers: takes trailer fields; given for responses, where odd white space is forgiven.

    Raises:
        UpstreamLostError: the stream ends before the body does.
        HeadError: the chunked coding is violated.
    """
    if length == CHUNKED:
        decoder = ChunkedDecoder(lenient=trailers is not None)
        while True:
            data = await stream.read()
            if not data:
                raise UpstreamLostError("the body breaks off", started=True)
            # In parts: what is decoded and not yet taken is held twice.
            for start in range(0, len(data), HIGH_WATER):
                decoded = decoder.feed(data[start : start + HIGH_WATER])
                if decoded:
                    yield decoded
                if decoder.done:
                    stream.unread(decoder.rest + data[start + HIGH_WATER :])
                    if trailers is not None:
                        trailers += decoder.trailers
                    return
    elif length == UNTIL_CLOSE:
        while data := await stream.read():
            yield data
        if stream.error is not None:
            raise UpstreamLostError("the body breaks off", started=True)
    else:
        left = length
        while left:
            data = await stream.read()
            if not data:
                raise UpstreamLostError("the body breaks off", started=True)
            if len(data) > left:
                stream.unread(data[left:])
                data = data[:left]
            left -= len(data)
            yield data


def _response_head(response: ResponseHead, framing: bytes | None, *, drop_length: bool = False) -> bytes:
    dropped = _RESPONSE_DROPPED
    if b"connection" in response.index:
        dropped = dropped | connection_options(response.index)
    if drop_length or framing is None:
        dropped = dropped | {b"content-length"}
    elif b"content-length" in dropped:
        dropped = dropped - {b"content-length"}
    lines = [b"HTTP/1.1 %d %b\r\n" % (response.status, response.reason)]
    length_seen = False
    for name, value in response.fields:
        key = name.lower()
        if key in dropped:
            continue
        if key == b"content-length":
            if length_seen:
                continue
            length_seen = True
        lines.append(b"%b: %b\r\n" % (name, value))
    lines.append((framing or b"") + b"\r\n")
    return b"".join(lines)


def _last_chunk(trailers: list[tuple[bytes, bytes]]) -> bytes:
    kept = [field for field in trailers if field[0].lower() not in _TRAILER_DROPPED]
    if not kept:
        return LAST_CHUNK
    return b"0\r\n" + b"".join(b"%b: %b\r\n" % field for field in kept) + b"\r\n"
