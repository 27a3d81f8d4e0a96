"""What a connection was made to, where one request goes, and the refusal of a request."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.policy import parse_authority
from km_net_proxy.http.refusal import (
    blocked_page,
    denial_fields,
    denial_members,
    json_error,
    printable,
    response,
)

if TYPE_CHECKING:
    import ipaddress

    from km_core.policy import Authority
    from km_core.types import Verdict

_JSON = "application/json"

authority_of = functools.lru_cache(maxsize=1024)(parse_authority)
"""`parse_authority`, remembered: a kept connection names the same host in every request."""


@frozen
class Scope:
    """
    What a connection was made to.

    Attributes:
        name: canonical name the client dialled; empty for a literal address and an explicit proxy.
        address: literal address the client dialled, else None.
        port: TCP port it dialled.
        tls: whether the gate took TLS off.
        explicit: whether the client talks to the gate as a proxy.
    """

    name: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    port: int
    tls: bool = False
    explicit: bool = False

    @property
    def scheme(self) -> str:
        """The scheme of origin-form requests here."""
        return "https" if self.tls else "http"

    def __str__(self) -> str:
        """Return ``host:port``, an IPv6 address in brackets."""
        host = self.name or ("km proxy" if self.address is None else str(self.address))
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"


class RequestRefused(Exception):  # noqa: N818 - an answer, not a defect
    """A request is answered by the gate itself."""

    def __init__(
        self,
        status: int,
        body: bytes,
        *,
        content_type: str = "text/plain; charset=utf-8",
        headers: tuple[tuple[str, str], ...] = (),
        close: bool = False,
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body
        self.content_type = content_type
        self.headers = headers
        self.close = close

    @classmethod
    def error(cls, status: int, code: str, message: str, *, close: bool = False) -> RequestRefused:
        """Return a refusal with the gate's own JSON body."""
        return cls(status, json_error(code, message), content_type=_JSON, close=close)

    @classmethod
    def denied(
        cls,
        verdict: Verdict,
        *,
        sandbox: str,
        target: str,
        entry: str = "",
        status: int = 403,
        close: bool = False,
    ) -> RequestRefused:
        """Return a refusal by policy, as a page and in header fields."""
        return cls(
            status,
            blocked_page(verdict, sandbox=sandbox, target=target, entry=entry),
            headers=denial_fields(verdict, sandbox=sandbox, target=target, entry=entry),
            close=close,
        )

    @classmethod
    def told(
        cls, status: int, code: str, verdict: Verdict, *, sandbox: str, target: str, close: bool = False
    ) -> RequestRefused:
        """Return a refusal for programs: the gate's JSON body with what `denied` says in it."""
        members = denial_members(verdict, sandbox=sandbox, target=target)
        return cls(
            status,
            json_error(code, printable(verdict.reason), **members),
            content_type=_JSON,
            headers=denial_fields(verdict, sandbox=sandbox, target=target),
            close=close,
        )

    def wire(self, *, close: bool, head_only: bool = False) -> bytes:
        """Return the whole answer."""
        return response(
            self.status,
            self.body,
            content_type=self.content_type,
            headers=self.headers,
            close=close,
            head_only=head_only,
        )


@frozen
class Target:
    """Where one request goes: the authority it names and the path to ask there."""

    authority: Authority
    path: str
    host: str
