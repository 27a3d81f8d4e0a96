"""Reading GitHub's answers for the URLs and numbers that they hand out."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from km_core.policy.github import Route
    from km_net_proxy.git.handed import HandedOut
    from km_net_proxy.http.head import ResponseHead

MAX_ANSWER = 8 << 20
"""Longest LFS answer that is read, in bytes; URLs of a longer one are not followed."""


class HandingTap:
    """
    Passes an answer on unchanged and notes what it hands out (see `handed`).

    Args:
        handed: what is remembered.
        route: what was asked; only answers about a repository are read.
        api: whether the API answers, whose ``Link`` fields tell a repository's number.
    """

    rewrites = False

    def __init__(self, handed: HandedOut, route: Route, *, api: bool) -> None:
        self._handed = handed
        self._repo = route.repo
        self._api = api
        self._batch = route.operation == "lfs-batch"
        self._body: bytearray | None = None

    def begin(self, response: ResponseHead) -> None:
        """Note where a redirect leads and the number that pages are asked for by."""
        if not self._repo:
            return
        if 300 <= response.status < 400 and b"location" in response.index:
            self._handed.redirected(self._repo, response.index[b"location"].decode("latin-1"))
        if self._api and b"link" in response.index:
            self._handed.linked(self._repo, response.index[b"link"].decode("latin-1"))
        coding = response.index.get(b"content-encoding", b"identity").lower()
        if self._batch and response.status == 200 and coding == b"identity":
            self._body = bytearray()

    def feed(self, data: bytes) -> bytes:
        """Keep an LFS answer while it is short."""
        if self._body is not None:
            self._body += data
            if len(self._body) > MAX_ANSWER:
                self._body = None
        return data

    def more(self) -> bool:
        """Return False: nothing is put off."""
        return False

    def end(self) -> bytes:
        """Read the LFS answer."""
        if self._body is not None:
            try:
                answer = json.loads(self._body)
            except (ValueError, RecursionError):
                return b""
            self._handed.lfs(self._repo, answer)
        return b""
