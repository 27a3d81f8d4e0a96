"""A JSON answer that is read once it is whole."""

from __future__ import annotations

from typing import Any, ClassVar

from km_net_proxy.meter.figures import loads

MAX_BODY = 32 * 1024 * 1024
"""Largest JSON body that is read, in bytes, of requests and of answers."""

MAX_GATHERED = 256 * 1024 * 1024
"""Bytes that all answers together may hold while they are gathered: the gate's memory has an end."""

TOO_LARGE = "body_too_large"
"""Note on a usage whose answer was larger than `MAX_BODY`."""


class WholeBody:
    """
    Gathers a JSON body up to `MAX_BODY`, and all of them up to `MAX_GATHERED`.

    A body that is let go is priced at the bounds of its call, as every answer without figures is.

    Attributes:
        overflow: the body was larger, or there was no room for it, and was let go.
    """

    _gathered: ClassVar[int] = 0

    def __init__(self) -> None:
        self.overflow = False
        # One buffer: a list of pieces would cost a body of single bytes forty times its size.
        self._body = bytearray()

    def __del__(self) -> None:
        # A parser whose client is cut is never asked for its value.
        self._let_go()

    def feed(self, data: bytes) -> None:
        """Take the next bytes."""
        if self.overflow:
            return
        if len(self._body) + len(data) > MAX_BODY or WholeBody._gathered + len(data) > MAX_GATHERED:
            self.overflow = True
            self._let_go()
            return
        WholeBody._gathered += len(data)
        self._body += data

    def value(self) -> Any:
        """Return the decoded body, or None when it is not whole, not JSON or too large."""
        data = bytes(self._body)
        self._let_go()
        return loads(data.removeprefix(b"\xef\xbb\xbf"))

    def _let_go(self) -> None:
        WholeBody._gathered -= len(self._body)
        self._body = bytearray()
