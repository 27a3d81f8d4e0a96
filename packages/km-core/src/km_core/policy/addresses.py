"""Addresses: recognising them in every notation, and the ranges no name may lead to (section 6.6)."""

from __future__ import annotations

import re
from bisect import bisect_right
from ipaddress import AddressValueError, IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_DIGITS = re.compile(r"[0-9]+\Z")
_OCTAL = re.compile(r"0[0-7]*\Z")
_HEX = re.compile(r"0[xX][0-9a-fA-F]*\Z")
_MAX_LITERAL = 128


@frozen
class ForbiddenRange:
    """
    A range that is not reachable unless the operator names it.

    Attributes:
        network: the range.
        what: what it is, for people.
        never: True when no rule for literal addresses opens it either: loopback, link-local,
            instance metadata, multicast, and km's own synthetic range.
        whole: True when only an exception for exactly one address opens it (instance metadata).
    """

    network: Network
    what: str
    never: bool = False
    whole: bool = False


# Most specific first.  Sources: spec/network.md section 6.6, RFC 6890, RFC 8215, and the metadata
# services of AWS (169.254.169.254, 169.254.170.2, fd00:ec2::/32), Azure (168.63.129.16) and GCP.
_RANGES: tuple[tuple[str, str, bool, bool], ...] = (
    ("169.254.169.254/32", "instance metadata", True, True),
    ("169.254.170.2/32", "container credentials", True, True),
    ("169.254.170.23/32", "container credentials", True, True),
    ("168.63.129.16/32", "cloud platform metadata", True, True),
    ("fd00:ec2::/32", "instance metadata", True, True),
    ("fd20:ce::254/128", "instance metadata", True, True),
    ("127.0.0.0/8", "loopback", True, False),
    ("::1/128", "loopback", True, False),
    ("0.0.0.0/8", "this host", True, False),
    ("::/128", "this host", True, False),
    ("169.254.0.0/16", "link-local", True, False),
    ("fe80::/10", "link-local", True, False),
    ("198.18.0.0/15", "km's synthetic addresses", True, False),
    ("fdc0:6b6d::/64", "km's synthetic addresses", True, False),
    ("224.0.0.0/4", "multicast", True, False),
    ("ff00::/8", "multicast", True, False),
    ("255.255.255.255/32", "broadcast", True, False),
    ("10.0.0.0/8", "private", False, False),
    ("172.16.0.0/12", "private", False, False),
    ("192.168.0.0/16", "private", False, False),
    ("100.64.0.0/10", "carrier-grade NAT", False, False),
    ("192.0.0.0/24", "protocol assignments", False, False),
    ("240.0.0.0/4", "reserved", False, False),
    ("fc00::/7", "unique local", False, False),
    ("fec0::/10", "site-local", False, False),
    ("100::/64", "discard-only", False, False),
    ("64:ff9b:1::/48", "local-use NAT64", False, False),
)


class _Ranges:
    """Ranges cut into stretches that do not overlap: one search instead of a look at each range."""

    def __init__(self, ranges: Sequence[ForbiddenRange]) -> None:
        bounds = {0}
        for entry in ranges:
            bounds |= {int(entry.network[0]), int(entry.network[-1]) + 1}
        self._starts = sorted(bounds)
        self._found = [_first_with(start, ranges) for start in self._starts]

    def find(self, address: Address) -> ForbiddenRange | None:
        return self._found[bisect_right(self._starts, int(address)) - 1]


def _first_with(value: int, ranges: Sequence[ForbiddenRange]) -> ForbiddenRange | None:
    for entry in ranges:
        if int(entry.network[0]) <= value <= int(entry.network[-1]):
            return entry
    return None


def _build() -> tuple[_Ranges, _Ranges]:
    v4: list[ForbiddenRange] = []
    v6: list[ForbiddenRange] = []
    for text, what, never, whole in _RANGES:
        if ":" in text:
            v6.append(ForbiddenRange(IPv6Network(text), what, never, whole))
        else:
            v4.append(ForbiddenRange(IPv4Network(text), what, never, whole))
    return _Ranges(v4), _Ranges(v6)


_V4_RANGES, _V6_RANGES = _build()


def parse_address(text: str) -> Address | None:
    """
    Recognise an address literal in any notation that some client understands.

    Decimal (``2130706433``), octal (``0177.1``), hexadecimal (``0x7f.1``) and short IPv4 forms are
    read as ``inet_aton`` reads them; IPv6 with or without brackets; a v4-mapped address is returned
    as the IPv4 address it stands for.  An address with a zone id is refused: it is None here and no
    name either, since ``%`` is in no name.

    Returns:
        The address, or None when *text* is not a literal.  Never raises.
    """
    if not text or len(text) > _MAX_LITERAL or not text.isascii():
        return None
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    if ":" in text:
        if "%" in text:
            return None
        try:
            return normalise_address(IPv6Address(text))
        except (AddressValueError, ValueError):
            return None
    return _ipv4(text.removesuffix("."))


def normalise_address(address: Address) -> Address:
    """Return *address*, or the IPv4 address that a v4-mapped one stands for (RFC 4291 2.5.5.2)."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _ipv4(text: str) -> IPv4Address | None:
    parts = text.split(".")
    if len(parts) > 4:
        return None
    values = []
    for part in parts:
        if _HEX.match(part):
            values.append(int(part[2:] or "0", 16))
        elif _OCTAL.match(part):
            values.append(int(part, 8))
        elif _DIGITS.match(part) and not part.startswith("0"):
            values.append(int(part))
        else:
            return None
    *leading, last = values
    if any(value > 255 for value in leading) or last >= 256 ** (5 - len(values)):
        return None
    number = last
    for position, value in enumerate(leading):
        number |= value << (24 - 8 * position)
    return IPv4Address(number)


def embedded_ipv4(address: IPv6Address) -> Iterator[IPv4Address]:
    """
    Yield the IPv4 addresses that an IPv6 address carries and a translator or tunnel would dial.

    v4-mapped, v4-compatible (RFC 4291), v4-translated ``::ffff:0:a.b.c.d`` (RFC 2765), NAT64
    ``64:ff9b::/96`` (RFC 6052) and ``64:ff9b:1::/48`` (RFC 8215), 6to4 (RFC 3056), Teredo server and
    client (RFC 4380), ISATAP (RFC 5214).
    """
    value = int(address)
    low = IPv4Address(value & 0xFFFFFFFF)
    high96 = value >> 32
    if high96 in {0, 0xFFFF, 0xFFFF0000, 0x64FF9B << 64}:
        if value > 1:  # :: and ::1 are not v4-compatible addresses
            yield low
    elif value >> 80 == 0x64FF9B0001:
        yield low
    elif value >> 112 == 0x2002:
        yield IPv4Address((value >> 80) & 0xFFFFFFFF)
    elif value >> 96 == 0x20010000:
        yield IPv4Address((value >> 64) & 0xFFFFFFFF)
        yield IPv4Address((value & 0xFFFFFFFF) ^ 0xFFFFFFFF)
    elif (value >> 32) & 0xFFFFFFFF in {0x00005EFE, 0x02005EFE}:
        yield low


def forbidden_range(address: Address) -> ForbiddenRange | None:
    """
    Return the forbidden range that *address*, or an IPv4 address it carries, lies in.

    Returns:
        The most specific range, or None for an address that anybody may be sent to.
    """
    address = normalise_address(address)
    if isinstance(address, IPv4Address):
        return _V4_RANGES.find(address)
    found = _V6_RANGES.find(address)
    if found is not None:
        return found
    for inner in embedded_ipv4(address):
        found = _V4_RANGES.find(inner)
        if found is not None:
            return found
    return None


def names_range(network: Network, entry: ForbiddenRange) -> bool:
    """
    Say whether an exception for *network* speaks about the forbidden range *entry*.

    ``0.0.0.0/0`` contains every private address and names none: an exception counts only when it
    lies inside the range, and for instance metadata only when it is that one address.
    """
    inside = (
        network.version == entry.network.version
        and network.prefixlen >= entry.network.prefixlen
        and network.network_address in entry.network
    )
    return inside and (not entry.whole or network.prefixlen == network.max_prefixlen)
