"""Authorities: ``host``, ``host:port`` and ``[v6]:port`` as they stand in requests."""

from __future__ import annotations

import re

from attrs import frozen

from km_core.policy.addresses import Address, parse_address
from km_core.policy.names import canonical_name

_PORT = re.compile(r"[1-9][0-9]{0,4}\Z")
_NEVER = re.compile(r"[\x00-\x20\x7f-\xa0%/\\@?#<>^|`{}\"',;]")
_MAX_AUTHORITY = 1100


@frozen
class Authority:
    """
    A parsed authority.

    Attributes:
        host: canonical name, or the address in its usual notation (no brackets).
        port: 1 to 65535.
        address: the address when the host is a literal, else None.
    """

    host: str
    port: int
    address: Address | None = None

    def __str__(self) -> str:
        """Return ``host:port``, an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_authority(text: str, default_port: int | None) -> Authority:
    """
    Read an authority, strictly.

    Args:
        text: ``host``, ``host:port``, ``[v6]`` or ``[v6]:port``.
        default_port: the port when *text* has none; None when it must have one.

    Raises:
        ValueError: userinfo, percent encoding, control bytes, double or misplaced brackets, a second
            port, a port outside 1-65535 or with leading zeros, no port where one is needed, a bare
            IPv6 address, or a host that is neither a name nor an address.
    """
    if not text:
        raise ValueError("the authority is empty")
    if len(text) > _MAX_AUTHORITY:
        raise ValueError("the authority is too long")
    if _NEVER.search(text):
        raise ValueError("the authority holds a character that no host or port has")
    if text.startswith("["):
        inner, closed, rest = text[1:].partition("]")
        if not closed or "[" in inner or ":" not in inner or (rest and not rest.startswith(":")):
            raise ValueError("brackets must hold one IPv6 address")
        address = parse_address(inner)
        if address is None:
            raise ValueError("brackets must hold one IPv6 address")
        return Authority(str(address), _port(rest[1:] if rest else None, default_port), address)
    host, colon, port_text = text.partition(":")
    if ":" in port_text:
        raise ValueError("more than one port, or an IPv6 address without brackets")
    port = _port(port_text if colon else None, default_port)
    address = parse_address(host)
    if address is not None:
        # "443:80" would read as the address 0.0.1.187: nobody means that, a smuggler means a port.
        if host.isdigit() and int(host) <= 65535:
            raise ValueError("a port where a host is expected")
        return Authority(str(address), port, address)
    return Authority(canonical_name(host), port)


def _port(text: str | None, default: int | None) -> int:
    if text is None:
        if default is None:
            raise ValueError("the authority needs a port")
        return default
    if _PORT.match(text) is None or int(text) > 65535:
        raise ValueError("a port is a number from 1 to 65535")
    return int(text)
