"""
Content decoding, incremental and bounded: identity, gzip, deflate, br, zstd.

RFC 9110 section 8.4.  ``gzip`` may have several members (RFC 1952 section 2.2); ``deflate`` is zlib
(RFC 1950) by the letter and raw (RFC 1951) in the wild, and both are read.  A small body can inflate
without end, so output comes in pieces of about `PIECE` bytes, and a body that is both large and
absurdly compressed is taken for an attack.  Nothing here raises: a decoder *fails*, and what it gave
out before stays valid.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol

import brotli
import zstandard

if TYPE_CHECKING:
    from km_core.types import Decoder

ACCEPT_ENCODING = "gzip, deflate, br, zstd"
"""What a request's ``Accept-Encoding`` may ask for, so that the answer can be metered."""

PIECE = 1024 * 1024
"""Output size in bytes from which a piece is given out and the rest waits."""

MAX_TAIL = 64 * 1024 * 1024
"""Most bytes that `finish` returns."""

_RATIO_FLOOR = 64 * 1024 * 1024
_MAX_RATIO = 100
_ZSTD_SLICE = 256
_ZSTD_WINDOW = 8 * 1024 * 1024  # RFC 9659: the largest window a sender may use for this coding
_ERRORS = (zlib.error, brotli.error, zstandard.ZstdError)


class _Engine(Protocol):
    """One coding: *inflate* takes input once and gives output in pieces until it returns nothing."""

    waiting: bool

    def inflate(self, data: bytes) -> bytes: ...


class _Zlib:
    """Gzip members or one zlib or raw stream."""

    def __init__(self, wbits: int) -> None:
        self.waiting = False
        self._wbits = wbits
        self._members = wbits == 31
        self._stream = zlib.decompressobj(wbits)
        self._rest = b""
        self._ended = False

    def inflate(self, data: bytes) -> bytes:
        source = self._rest + data if self._rest else data
        self._rest = b""
        pieces: list[bytes] = []
        room = PIECE
        while source and room > 0:
            if self._ended:
                source = source.lstrip(b"\0")  # padding after the last member is allowed
                if not source:
                    break
                if not self._members:
                    raise zlib.error("data after the end of the stream")
                self._stream = zlib.decompressobj(self._wbits)
                self._ended = False
            piece = self._stream.decompress(source, room)
            pieces.append(piece)
            room -= len(piece)
            if self._stream.eof:
                self._ended = True
                source = self._stream.unused_data
            else:
                source = self._stream.unconsumed_tail
        self._rest = source
        # A full piece may leave output inside zlib although all input was taken.
        self.waiting = bool(source) or room <= 0
        if not source and room <= 0 and not self._ended:
            tail = self._stream.decompress(b"", PIECE)
            pieces.append(tail)
            self.waiting = len(tail) >= PIECE
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class _Deflate:
    """``deflate``: zlib if its two header bytes say so, else raw."""

    def __init__(self) -> None:
        self.waiting = False
        self._head = b""
        self._engine: _Zlib | None = None
        self._seen_output = False

    def inflate(self, data: bytes) -> bytes:
        if self._engine is None:
            self._head += data
            if len(self._head) < 2:
                return b""
            first, second = self._head[0], self._head[1]
            zlib_header = first & 0x0F == 8 and (first << 8 | second) % 31 == 0
            self._engine = _Zlib(15 if zlib_header else -15)
            data = self._head
        elif not self._seen_output and len(self._head) < 65536:
            self._head += data
        try:
            out = self._engine.inflate(data)
        except zlib.error:
            if self._seen_output:
                raise
            # A raw stream may begin with what looks like a zlib header.
            self._engine = _Zlib(-15)
            out = self._engine.inflate(self._head)
        if out:
            self._seen_output = True
            self._head = b""
        self.waiting = self._engine.waiting
        return out


class _Brotli:
    def __init__(self) -> None:
        self.waiting = False
        self._stream = brotli.Decompressor()
        self._queue: list[bytes] = []

    def inflate(self, data: bytes) -> bytes:
        if data:
            self._queue.append(data)
        pieces: list[bytes] = []
        room = PIECE
        while room > 0 and not self._stream.is_finished():
            source = b""
            if self._queue and self._stream.can_accept_more_data():
                source = self._queue.pop(0)
            # The library gives out one internal buffer per call and keeps the rest, whatever it says
            # about taking more input: ask until it has nothing left.
            piece: bytes = self._stream.process(source, output_buffer_limit=room)
            pieces.append(piece)
            room -= len(piece)
            if not piece and not (self._queue and self._stream.can_accept_more_data()):
                break
        if self._stream.is_finished() and self._queue:
            self._queue.clear()
            if not pieces:
                raise brotli.error("data after the end of the stream")
        self.waiting = bool(self._queue) or (room <= 0 and not self._stream.is_finished())
        return b"".join(pieces)


class _Zstd:
    """
    Zstandard frames.

    The binding cannot limit its output, so input goes in slices: a slice holds at most
    ``_ZSTD_SLICE / 4`` blocks of 128 KiB.
    """

    def __init__(self) -> None:
        self.waiting = False
        factory = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW)
        self._stream = factory.decompressobj(read_across_frames=True)
        self._rest = b""
        self._at = 0

    def inflate(self, data: bytes) -> bytes:
        if data:
            self._rest = self._rest[self._at :] + data
            self._at = 0
        pieces: list[bytes] = []
        room = PIECE
        while self._at < len(self._rest) and room > 0:
            piece = self._stream.decompress(self._rest[self._at : self._at + _ZSTD_SLICE])
            self._at += _ZSTD_SLICE
            if piece:
                pieces.append(piece)
                room -= len(piece)
        self.waiting = self._at < len(self._rest)
        if not self.waiting:
            self._rest, self._at = b"", 0
        return b"".join(pieces)


class IdentityDecoder:
    """No coding: what goes in comes out."""

    failed = False
    pending = False

    def feed(self, data: bytes) -> bytes:
        """Return *data*."""
        return data

    def finish(self) -> bytes:
        """Return nothing: there is no state."""
        return b""


class FailedDecoder:
    """An unknown coding: nothing comes out, the usage is incomplete."""

    failed = True
    pending = False

    def feed(self, data: bytes) -> bytes:  # noqa: ARG002 - the protocol's signature
        """Return nothing."""
        return b""

    def finish(self) -> bytes:
        """Return nothing."""
        return b""


class InflatingDecoder:
    """
    A decoder around one coding; see `km_core.types.Decoder`.

    A body that ends early is not a failure: its parser sees by itself that the end is missing.
    """

    def __init__(self, engine: _Engine) -> None:
        self.failed = False
        self.pending = False
        self._engine = engine
        self._taken = 0
        self._given = 0

    def feed(self, data: bytes) -> bytes:
        """Return the next piece: at most a few `PIECE`; more waits while *pending* is true."""
        if self.failed:
            return b""
        self._taken += len(data)
        try:
            out = self._engine.inflate(data)
        except _ERRORS:
            return self._fail()
        self._given += len(out)
        if self._given > _RATIO_FLOOR and self._given > self._taken * _MAX_RATIO:
            return self._fail()
        self.pending = self._engine.waiting
        return out

    def finish(self) -> bytes:
        """Return what was held back, at most `MAX_TAIL` bytes; more than that is a failure."""
        pieces: list[bytes] = []
        size = 0
        while self.pending and size < MAX_TAIL:
            pieces.append(self.feed(b""))
            size += len(pieces[-1])
        if self.pending:
            self._fail()
        return b"".join(pieces)

    def _fail(self) -> bytes:
        self.failed = True
        self.pending = False
        return b""


def new_decoder(content_encoding: str) -> Decoder:
    """
    Return a decoder for a ``Content-Encoding`` value.

    Several codings on top of each other, and unknown ones, give a failed decoder.
    """
    name = content_encoding.strip().lower()
    if name in ("", "identity"):
        return IdentityDecoder()
    if name in ("gzip", "x-gzip"):
        return InflatingDecoder(_Zlib(31))
    if name == "deflate":
        return InflatingDecoder(_Deflate())
    if name == "br":
        return InflatingDecoder(_Brotli())
    if name == "zstd":
        return InflatingDecoder(_Zstd())
    return FailedDecoder()
