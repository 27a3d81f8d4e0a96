"""
The operator's credential is taken out of what a server answers.

Some services show a request back: echo and debug pages, error texts, redirects.  What they show of the
credential is overwritten before it reaches the sandbox.  This is a net below the rule that says where a
credential goes: a server that encodes it in a way of its own, or gives it out in parts, is not seen.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from km_net_proxy.http.exchange import UpstreamLostError
from km_net_proxy.meter.decode import new_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from km_core.types import Decoder
    from km_net_proxy.http.head import ResponseHead

SHORTEST = 8
"""Characters below which a value is no secret that could be told from other text."""
_FILL = b"*"
_PLAIN = frozenset({"", "identity"})


def forms(value: str, secret: str) -> tuple[bytes, ...]:
    """
    Return the forms that are looked for, the longest first.

    Args:
        value: of the field that carries the credential.
        secret: what stands in it.
    """
    last = value.rpartition(" ")[2]
    found = {secret, last, quote(secret, safe=""), secret.replace("/", "\\/")}
    return tuple(sorted((form.encode() for form in found if len(form) >= SHORTEST), key=len, reverse=True))


class Withheld:
    """
    A tap that overwrites a credential in a response, byte for byte, so that lengths stay.

    A body in a content coding is searched and broken off instead.

    Args:
        needles: from `forms`.
        found: called once when there was one.
    """

    rewrites = False

    def __init__(self, needles: Iterable[bytes], found: Callable[[], None]) -> None:
        self._needles = tuple(needles)
        self._told = found
        self._found = False
        self._held = b""
        self._coded = b""
        self._decoder: Decoder | None = None

    def begin(self, response: ResponseHead) -> None:
        """Overwrite it in the head; raises `UpstreamLostError` for a coding that cannot be read."""
        response.reason = self._clean(response.reason)
        # A session that the credential opened is the operator's too; no cookie goes back to this host.
        response.fields = [
            (name, self._clean(value)) for name, value in response.fields if name.lower() != b"set-cookie"
        ]
        coding = response.index.get(b"content-encoding", b"").decode("latin-1")
        if coding.strip().lower() not in _PLAIN and response.length:
            self._decoder = new_decoder(coding)
            self._readable(self._decoder)

    def feed(self, data: bytes) -> bytes:
        """Return what may go on: all but an end that could be the start of a credential."""
        if self._decoder is not None:
            plain = self._decoder.feed(data)
            self._search(plain)
            while self._decoder.pending:
                self._search(self._decoder.feed(b""))
            self._readable(self._decoder)
            # The bytes that hold the start of one wait until it is known what follows.
            self._coded += data
            if self._held:
                return b""
            data, self._coded = self._coded, b""
            return data
        data = self._clean(self._held + data)
        kept = self._begun(data)
        self._held = data[len(data) - kept :]
        return data[: len(data) - kept]

    def more(self) -> bool:
        """Return False: nothing is put off."""
        return False

    def end(self) -> bytes:
        """Return what was held back."""
        if self._decoder is not None:
            self._search(self._decoder.finish())
            return self._coded
        held, self._held = self._held, b""
        return held

    def _clean(self, data: bytes) -> bytes:
        for needle in self._needles:
            if needle in data:
                data = data.replace(needle, _FILL * len(needle))
                self._tell()
        return data

    def _search(self, plain: bytes) -> None:
        data = self._held + plain
        if any(needle in data for needle in self._needles):
            self._tell()
            raise UpstreamLostError("the answer shows the operator's credential", started=True)
        self._held = data[len(data) - self._begun(data) :]

    def _begun(self, data: bytes) -> int:
        """Return how many bytes at the end could be the start of a needle."""
        longest = 0
        for needle in self._needles:
            first = needle[:1]
            at = data.find(first, max(len(data) - len(needle) + 1, 0))
            while at >= 0 and not needle.startswith(data[at:]):
                at = data.find(first, at + 1)
            longest = max(longest, len(data) - at if at >= 0 else 0)
        return longest

    def _readable(self, decoder: Decoder) -> None:
        if decoder.failed:
            raise UpstreamLostError("the answer is in a coding that cannot be read", started=False)

    def _tell(self) -> None:
        if not self._found:
            self._found = True
            self._told()
