"""Content codings the gate can take off, incrementally and with a bound (RFC 9110 section 8.4)."""

from __future__ import annotations

import zlib
from typing import Protocol

import brotli
import zstandard

DECODABLE = ("gzip", "br", "zstd", "deflate")
"""Codings in the order of preference that is offered to servers."""


class CodingError(ValueError):
    """The coded bytes are damaged, of an unknown coding, or decode to too much."""


class Decoder(Protocol):
    """Takes a coding off."""

    def feed(self, data: bytes) -> bytes:
        """Return what *data* decodes to so far; raises `CodingError`."""


class _Identity:
    def feed(self, data: bytes) -> bytes:
        return data


class _Zlib:
    """``gzip`` and ``deflate``; the latter is zlib's format, or raw as some servers send it."""

    def __init__(self, wbits: int) -> None:
        self._wbits = wbits
        self._inflate = zlib.decompressobj(wbits)
        self._fresh = True

    def feed(self, data: bytes) -> bytes:
        try:
            out = self._inflate.decompress(data)
        except zlib.error as error:
            if not self._fresh or self._wbits != zlib.MAX_WBITS:
                raise CodingError("the body is damaged") from error
            self._wbits = -zlib.MAX_WBITS
            self._inflate = zlib.decompressobj(self._wbits)
            try:
                out = self._inflate.decompress(data)
            except zlib.error as second:
                raise CodingError("the body is damaged") from second
        self._fresh = self._fresh and not data
        while self._inflate.eof and self._inflate.unused_data:  # concatenated members
            rest = self._inflate.unused_data
            self._inflate = zlib.decompressobj(self._wbits)
            try:
                out += self._inflate.decompress(rest)
            except zlib.error as error:
                raise CodingError("the body is damaged") from error
        return out


class _Brotli:
    def __init__(self) -> None:
        self._decompressor = brotli.Decompressor()

    def feed(self, data: bytes) -> bytes:
        try:
            out: bytes = self._decompressor.process(data)
        except brotli.error as error:
            raise CodingError("the body is damaged") from error
        return out


class _Zstd:
    def __init__(self) -> None:
        # 8 MiB is the window every decoder must support (RFC 9659).
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=8 << 20).decompressobj(
            read_across_frames=True
        )

    def feed(self, data: bytes) -> bytes:
        try:
            out: bytes = self._decompressor.decompress(data)
        except zstandard.ZstdError as error:
            raise CodingError("the body is damaged") from error
        return out


def decoder(coding: str) -> Decoder:
    """
    Return a decoder for a ``Content-Encoding`` value of one coding; empty and ``identity`` pass.

    Raises:
        CodingError: it is unknown, or several codings are stacked.
    """
    name = coding.strip().lower()
    if name in ("", "identity"):
        return _Identity()
    if name in ("gzip", "x-gzip"):
        return _Zlib(zlib.MAX_WBITS | 16)
    if name == "deflate":
        return _Zlib(zlib.MAX_WBITS)
    if name == "br":
        return _Brotli()
    if name == "zstd":
        return _Zstd()
    raise CodingError(f"the coding {name[:40]!r} is not supported")


def decode_whole(coding: str, body: bytes, limit: int) -> bytes:
    """
    Return a request body with its coding taken off.

    Args:
        coding: value of ``Content-Encoding``.
        body: the coded bytes.
        limit: largest result, in bytes.

    Raises:
        CodingError: it cannot be decoded, or decodes to more than *limit*.
    """
    take = decoder(coding)
    out = bytearray()
    # Small steps bound what one step can blow up to before the limit is looked at.
    step = 4096
    for start in range(0, len(body), step):
        out += take.feed(body[start : start + step])
        if len(out) > limit:
            raise CodingError("the body decodes to more than is accepted")
    return bytes(out)


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
