"""A JSON answer that is read once it is whole."""

from __future__ import annotations

from typing import Any

from km_net_proxy.meter.figures import loads

MAX_BODY = 32 * 1024 * 1024
"""Largest JSON body that is read, in bytes, of requests and of answers."""

TOO_LARGE = "body_too_large"
"""Note on a usage whose answer was larger than `MAX_BODY`."""


class WholeBody:
    """
    Gathers a JSON body up to `MAX_BODY`.

    Attributes:
        overflow: the body was larger, and was let go.
    """

    def __init__(self) -> None:
        self.overflow = False
        self._pieces: list[bytes] = []
        self._size = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.overflow:
            return
        self._size += len(data)
        if self._size > MAX_BODY:
            self.overflow = True
            self._pieces.clear()
            return
        self._pieces.append(data)

    def value(self) -> Any:
        """Return the decoded body, or None when it is not whole, not JSON or too large."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return loads(data.removeprefix(b"\xef\xbb\xbf"))
