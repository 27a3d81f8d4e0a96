"""Git's pkt-lines, sans-IO (gitprotocol-common(5)): four hex digits of length, then the payload."""

from __future__ import annotations

import re
from typing import Final

MAX_LINE = 65520
"""Longest pkt-line, in bytes, with its length field."""

FLUSH: Final = b""
"""What a flush packet reads as: no line has an empty payload here."""

_LENGTH = re.compile(rb"[0-9a-fA-F]{4}\Z")


class PktLineError(ValueError):
    """The bytes are no pkt-lines of a push; the text is safe to log."""


class PktLines:
    """Splits a byte stream into lines, however it comes in pieces."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0

    def feed(self, data: bytes) -> None:
        """Take bytes."""
        del self._data[: self._at]
        self._at = 0
        self._data += data

    @property
    def left(self) -> int:
        """Bytes that were given and not read as lines yet."""
        return len(self._data) - self._at

    def next(self) -> bytes | None:
        """
        Return the next line's payload, `FLUSH`, or None when more bytes are needed.

        Raises:
            PktLineError: the length is none, or one of the special packets of protocol 2, or of an empty
                line, which no push has.
        """
        length = bytes(self._data[self._at : self._at + 4])
        if len(length) < 4:
            return None
        if not _LENGTH.match(length):
            raise PktLineError("a line's length is not four hex digits")
        size = int(length, 16)
        if size == 0:
            self._at += 4
            return FLUSH
        if size <= 4 or size > MAX_LINE:
            raise PktLineError("a line's length is out of range")
        end = self._at + size
        if len(self._data) < end:
            return None
        payload = bytes(self._data[self._at + 4 : end])
        self._at = end
        return payload


def pkt(payload: bytes) -> bytes:
    """Return one line; its payload has at most `MAX_LINE` - 4 bytes."""
    return b"%04x%b" % (len(payload) + 4, payload)


def band(number: int, data: bytes) -> bytes:
    """Return *data* in lines of a side band (gitprotocol-pack(5)): 1 is the answer, 2 is for people."""
    room = MAX_LINE - 5
    return b"".join(pkt(bytes([number]) + data[start : start + room]) for start in range(0, len(data), room))
