"""Content codings the gate can take off, incrementally and with a bound (RFC 9110 section 8.4)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Protocol

import brotli
import zstandard

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 1024 * 1024
_ZSTD_SLICE = 256

DECODABLE = ("gzip", "br", "zstd", "deflate")
"""Codings in the order of preference that is offered to servers."""


class CodingError(ValueError):
    """The coded bytes are damaged, of an unknown coding, or decode to too much."""


class Decoder(Protocol):
    """Takes a coding off, piece by piece."""

    def feed(self, data: bytes) -> bytes:
        """Return what *data* decodes to so far; raises `CodingError`."""


class _Identity:
    def feed(self, data: bytes) -> bytes:
        return data


class _Gzip:
    """``gzip``, which may have several members (RFC 1952 section 2.2)."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)

    def feed(self, data: bytes) -> bytes:
        try:
            out = self._inflate.decompress(data)
            while self._inflate.eof and self._inflate.unused_data:
                rest = self._inflate.unused_data
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 16)
                out += self._inflate.decompress(rest)
        except zlib.error as error:
            raise CodingError("the body is damaged") from error
        return out


def decoder(coding: str) -> Decoder:
    """
    Return a decoder of ``gzip``, or of nothing for an empty coding and ``identity``.

    The other codings are left to `decode_whole`: what one piece of theirs becomes has no bound, while
    ``gzip`` makes at most 1032 bytes of one.

    Raises:
        CodingError: it is another coding.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return _Identity()
    if name in ("gzip", "x-gzip"):
        return _Gzip()
    raise CodingError(f"the coding {name[:40]!r} is not supported here")


def decode_whole(coding: str, body: bytes, limit: int) -> bytes:
    """
    Return a request body with its coding taken off; empty and ``identity`` pass.

    Decoding stops where the limit is passed, so that a body of a few bytes cannot fill the memory: no step
    gives out more than the rest of the limit and one piece of the decoder's.

    Args:
        coding: value of ``Content-Encoding``, of one coding.
        body: the coded bytes.
        limit: largest result, in bytes.

    Raises:
        CodingError: it is damaged or breaks off, decodes to more than *limit*, or the coding is unknown.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        pieces = iter((body,))
    elif name in ("gzip", "x-gzip"):
        pieces = _inflated(body, zlib.MAX_WBITS | 16)
    elif name == "deflate":
        pieces = _inflated(body, zlib.MAX_WBITS if _has_zlib_header(body) else -zlib.MAX_WBITS)
    elif name == "br":
        pieces = _unbrotlied(body)
    elif name == "zstd":
        pieces = _unzstded(body)
    else:
        raise CodingError(f"the coding {name[:40]!r} is not supported")
    out = bytearray()
    try:
        for piece in pieces:
            out += piece
            if len(out) > limit:
                raise CodingError("the body decodes to more than is accepted")
    except (zlib.error, brotli.error, zstandard.ZstdError) as error:
        raise CodingError("the body is damaged") from error
    return bytes(out)


def _has_zlib_header(body: bytes) -> bool:
    # By the letter "deflate" is zlib's format; some clients send the bare stream (RFC 9110 section 8.4.1.2).
    return len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0


def _inflated(body: bytes, wbits: int) -> Iterator[bytes]:
    while body:
        stream = zlib.decompressobj(wbits)
        while not stream.eof:
            piece = stream.decompress(body, _PIECE)
            body = stream.unconsumed_tail
            if not piece and not body and not stream.eof:
                raise CodingError("the body breaks off")
            yield piece
        body = stream.unused_data
        if body and wbits != zlib.MAX_WBITS | 16:
            raise CodingError("bytes after the body")


def _unbrotlied(body: bytes) -> Iterator[bytes]:
    stream = brotli.Decompressor()
    while not stream.is_finished():
        piece: bytes = stream.process(body, output_buffer_limit=_PIECE)
        body = b""
        if not piece and not stream.is_finished():
            raise CodingError("the body breaks off")
        yield piece


def _unzstded(body: bytes) -> Iterator[bytes]:
    # 8 MiB is the window every decoder must support (RFC 9659).
    stream = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj(read_across_frames=True)
    # The binding cannot limit its output: a slice holds at most a quarter as many blocks of 128 KiB.
    for start in range(0, len(body), _ZSTD_SLICE):
        yield stream.decompress(body[start : start + _ZSTD_SLICE])


def acceptable(client: str | None) -> str:
    """
    Return the ``Accept-Encoding`` to send upstream: what the client takes and the gate can read.

    Args:
        client: the client's own value; None or empty means it takes identity only.
    """
    if not client:
        return "identity"
    weights: dict[str, bool] = {}
    for item in client.split(","):
        name, _, parameters = item.partition(";")
        quality = parameters.strip().lower().removeprefix("q=").strip()
        weights[name.strip().lower()] = quality.rstrip("0") not in ("0.", "") or not quality
    everything = weights.get("*", False)
    chosen = [name for name in DECODABLE if weights.get(name, everything)]
    return ", ".join(chosen) or "identity"
