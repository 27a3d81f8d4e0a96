"""What the TCP half needs from the other parts of the gate, as narrow interfaces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence
    from ipaddress import IPv4Address, IPv6Address

    from km_core.types import Verdict


class Resolution(Protocol):
    """The answer of the upstream resolver for one name."""

    @property
    def addresses(self) -> Sequence[object]:
        """Addresses (text or `ipaddress` objects); empty when there are none."""

    @property
    def rcode(self) -> int:
        """DNS response code (RFC 1035 section 4.1.1); 0 is no error."""

    @property
    def ttl(self) -> int:
        """Seconds for which the addresses are the name's."""

    @property
    def denied(self) -> Verdict | None:
        """Why the name was not asked for, or None."""


class Resolver(Protocol):
    """Asks the operator's resolver; every name it is asked for was allowed before."""

    async def resolve(self, name: str) -> Resolution:
        """Return the addresses of a canonical name; raises OSError or TimeoutError when nobody answers."""


class NamesByAddress(Protocol):
    """The names behind the addresses that the DNS filter hands out."""

    def lookup(self, address: IPv4Address | IPv6Address) -> str | None:
        """Return the name of a synthetic address, or None."""


class DnsOverTcp(Protocol):
    """The DNS filter, for connections to port 53."""

    async def handle_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a connection to its end and close it."""


class Secrets(Protocol):
    """Credentials that are put on requests."""

    async def value(self, name: str, host: str = "") -> str | None:
        """Return a secret's value for *host*, or None when the operator has set none."""

    def doubt(self, name: str) -> None:
        """Note that a host refused the value: ask for it anew next time."""


class LeaseView(Protocol):
    """Whether the control plane lets the gate work."""

    @property
    def valid(self) -> bool:
        """True while the lease has not run out and no deadline has passed."""
