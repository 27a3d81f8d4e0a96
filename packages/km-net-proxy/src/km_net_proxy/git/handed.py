"""
What GitHub handed out to the sandbox: signed URLs without a repository, and numbers of repositories.

Downloads and LFS objects are at hosts whose URLs name no repository.  They are followed only when an
answer about an allowed repository gave exactly this URL to this sandbox a short while ago.  Held in
memory as digests: a signed URL is a credential.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import frozen

from km_core.policy.github import SIGNED_HOSTS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

REDIRECT_S = 600.0
"""How long a URL of a redirect may be asked for."""
LFS_S = 3600.0
"""How long a URL of an LFS answer may be asked for."""

_MAX_URLS = 8192
_MAX_NUMBERS = 1024
_LFS_METHODS = {"download": "GET", "upload": "PUT", "verify": "POST"}
_NUMBER = re.compile(r"<https://api\.github\.com/repositories/([0-9]{1,20})/")


@frozen
class Handed:
    """
    One URL.

    Attributes:
        repo: whose answer gave it.
        expires: when it may no longer be asked for, on the monotonic clock.
        authorization: digest of the ``Authorization`` that came with it, or empty.
    """

    repo: str
    expires: float
    authorization: bytes = b""


class HandedOut:
    """
    Remembers, within bounds; what was forgotten is denied.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._urls: OrderedDict[bytes, Handed] = OrderedDict()
        self._numbers: OrderedDict[str, tuple[str, float]] = OrderedDict()

    def find(self, host: str, method: str, target: str) -> Handed | None:
        """Return what is known of a URL for this method, or None."""
        handed = self._urls.get(_key(host, "GET" if method == "HEAD" else method, target))
        return None if handed is None or handed.expires < self._clock() else handed

    def repository(self, number: str) -> str | None:
        """Return the repository with this number, or None."""
        repo, expires = self._numbers.get(number, ("", 0.0))
        return repo if repo and expires >= self._clock() else None

    def redirected(self, repo: str, location: str) -> None:
        """Note where an answer about *repo* leads."""
        self._url(repo, "GET", location, REDIRECT_S)

    def linked(self, repo: str, link: str) -> None:
        """Note the number of *repo* from a ``Link`` field: pages after the first are asked for by number."""
        for number in _NUMBER.findall(link)[:1]:
            self._numbers[number] = (repo, self._clock() + REDIRECT_S)
            self._numbers.move_to_end(number)
            while len(self._numbers) > _MAX_NUMBERS:
                self._numbers.popitem(last=False)

    def lfs(self, repo: str, answer: Any) -> None:
        """Note the URLs in the answer to an LFS batch request; what is malformed is passed over."""
        for each in _list(_member(answer, "objects")):
            for name, method in _LFS_METHODS.items():
                action = _member(_member(each, "actions"), name)
                href, header = _member(action, "href"), _member(action, "header")
                if isinstance(href, str):
                    self._url(repo, method, href, LFS_S, _authorization(header))

    def _url(self, repo: str, method: str, url: str, for_s: float, authorization: bytes = b"") -> None:
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            return
        host = (parts.hostname or "").lower()
        plain = parts.scheme == "https" and port in {None, 443} and parts.username is None
        if not plain or host not in SIGNED_HOSTS or not url.isascii():
            return
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        key = _key(host, method, target)
        self._urls[key] = Handed(repo, self._clock() + for_s, authorization)
        self._urls.move_to_end(key)
        while len(self._urls) > _MAX_URLS:
            self._urls.popitem(last=False)


def digest(value: bytes) -> bytes:
    """Return what a credential that was handed out is compared by."""
    return hashlib.sha256(value).digest()


def _key(host: str, method: str, target: str) -> bytes:
    return digest(f"{method} {host} {target}".encode())


def _authorization(header: Any) -> bytes:
    if not isinstance(header, dict):
        return b""
    for name, value in header.items():
        if isinstance(name, str) and isinstance(value, str) and name.lower() == "authorization":
            return digest(value.encode())
    return b""


def _member(value: Any, name: str) -> Any:
    members: Mapping[str, Any] = value if isinstance(value, dict) else {}
    return members.get(name)


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
