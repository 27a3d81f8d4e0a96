"""The chunked transfer coding, strict and sans-IO (RFC 9112 section 7.1)."""

from __future__ import annotations

import re

from km_net_proxy.http.head import HeadError, as_read

_MAX_LINE = 4096
_MAX_TRAILERS = 16384
_TRAILER_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+):[ \t]*([\t\x20-\x7e\x80-\xff]*?)[ \t]*\Z")
_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")
_SIZE_LINE_BEGUN = re.compile(rb"(?:[0-9A-Fa-f]{1,15}[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?)?\r?\Z")
_LENIENT_SIZE_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[\t\x20-\x7e\x80-\xff]*)?\Z")

_NEVER_TRAILERS = frozenset(
    {
        b"host",
        b"content-length",
        b"transfer-encoding",
        b"authorization",
        b"content-encoding",
        b"content-type",
        b"connection",
        b"te",
        b"trailer",
        b"upgrade",
        b"expect",
    }
)
"""Fields that routing, framing or authentication go by (RFC 9110 section 6.5.1): some servers take them
for fields of the head wherever they stand."""

LAST_CHUNK = b"0\r\n\r\n"


class ChunkedDecoder:
    """
    Takes the coding off; what it returns is framed anew by the gate, never passed on as it came.

    Args:
        lenient: accept white space after a size and any trailers, as some servers send them; never for
            requests.

    Attributes:
        done: the last chunk and the trailers have been read.
        rest: bytes that followed the body.
        trailers: trailer fields, in order.
    """

    def __init__(self, *, lenient: bool = False) -> None:
        self._lenient = lenient
        self._pattern = _LENIENT_SIZE_LINE if lenient else _SIZE_LINE
        self._line = bytearray()
        self._left = 0
        self._state = "size"
        self._trailer_size = 0
        self.done = False
        self.rest = b""
        self.trailers: list[tuple[bytes, bytes]] = []

    def feed(self, data: bytes) -> bytes:
        """
        Take bytes of the coded body and return what they carry.

        Raises:
            HeadError: the coding is violated.
        """
        pieces: list[bytes] = []
        position = 0
        size = len(data)
        while position < size and not self.done:
            if self._state == "data":
                piece = data[position : position + self._left]
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = "end"
                continue
            end = data.find(b"\n", position)
            stop = size if end < 0 else end + 1
            self._line += data[position:stop]
            position = stop
            if len(self._line) > _MAX_LINE:
                raise HeadError("a line of the chunked coding is too long")
            if end >= 0:
                self._take_line()
            else:
                self._check_partial()
        if self.done:
            self.rest = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _check_partial(self) -> None:
        """Refuse a hopeless line at once: its end may never come."""
        if self._state == "end" and self._line != b"\r":
            raise HeadError("a chunk is longer than its size")
        if self._state == "size" and _SIZE_LINE_BEGUN.match(self._line) is None:
            raise HeadError("a chunk size is malformed")

    def _take_line(self) -> None:
        if not self._line.endswith(b"\r\n"):
            raise HeadError("a line of the chunked coding ends in a bare LF")
        line = bytes(self._line[:-2])
        self._line.clear()
        if self._state == "end":
            if line:
                raise HeadError("a chunk is longer than its size")
            self._state = "size"
        elif self._state == "size":
            match = self._pattern.match(line)
            if match is None:
                raise HeadError("a chunk size is malformed")
            self._left = int(match[1], 16)
            self._state = "data" if self._left else "trailer"
        elif not line:
            self.done = True
        else:
            self._trailer_size += len(line)
            match = _TRAILER_LINE.match(line)
            if match is None or self._trailer_size > _MAX_TRAILERS:
                raise HeadError("a trailer field is malformed")
            if not self._lenient and as_read(match[1]) in _NEVER_TRAILERS:
                raise HeadError("a field of the head stands in the trailers")
            self.trailers.append((match[1], match[2]))


def chunk(data: bytes) -> bytes:
    """Return *data* as one chunk; it must not be empty, which would end the body."""
    return b"%x\r\n%b\r\n" % (len(data), data)
