"""
Reading an upstream resolver's reply: nothing in it is believed that the question does not justify.

Only records whose owner is the question's name, or the end of a CNAME chain that starts there and stands
in the same answer section, count.  Bounded: jumps go backwards and are at most 32 in a name, names have
255 bytes, chains eight links; a reply beyond that, or with two aliases for one name, is no reply.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from attrs import frozen

from km_net_proxy.dns.answer import CLASS_IN, CNAME, SOA, A, MalformedError

if TYPE_CHECKING:
    from km_core.types import Verdict

MAX_CHAIN = 8
MAX_JUMPS = 32
"""Pointers in one name; a message of nothing but pointers would otherwise cost millions of steps."""
MAX_RECORDS = 256
MAX_ADDRESSES = 32
DEFAULT_NEGATIVE_TTL = 10


@frozen
class Reply:
    """
    What one reply says.

    Attributes:
        rcode: response code.
        truncated: the TC bit.
        addresses: addresses of the question's type, at most 32.
        ttl: smallest time to live on the way, in seconds; for an empty answer the negative one.
        denied: why nobody was asked (rcode is then REFUSED), or None.
    """

    rcode: int
    truncated: bool
    addresses: tuple[IPv4Address | IPv6Address, ...]
    ttl: int
    denied: Verdict | None = None


def read_name(packet: bytes, start: int) -> tuple[bytes, int]:
    """
    Read a possibly compressed name.

    Returns:
        The name in lower-case wire form without compression, and the index after it.

    Raises:
        MalformedError: a loop, a forward jump, a name that is too long or runs out of the message.
    """
    parts = []
    total = 0
    after = -1
    at = start
    lowest = start
    jumps = 0
    try:
        while True:
            length = packet[at]
            if length == 0:
                parts.append(b"\0")
                return b"".join(parts), after if after >= 0 else at + 1
            if length >= 0xC0:
                target = ((length & 0x3F) << 8) | packet[at + 1]
                if after < 0:
                    after = at + 2
                jumps += 1
                if target >= lowest or target < 12 or jumps > MAX_JUMPS:
                    raise MalformedError("a compression pointer that does not go back, or one too many")
                lowest = at = target
                continue
            if length > 63:
                raise MalformedError("a label of an unknown kind")
            label = packet[at : at + length + 1]
            total += length + 1
            if len(label) != length + 1 or total > 254:
                raise MalformedError("a name that is too long")
            parts.append(label.lower())
            at += length + 1
    except IndexError:
        raise MalformedError("a name runs out of the message") from None


def read_reply(packet: bytes, question_end: int, qtype: int) -> Reply:
    """
    Read a reply whose header and question have been matched with the query.

    Args:
        packet: the reply; its question is that of the query, uncompressed.
        question_end: where the question ends.
        qtype: `A` or `AAAA`.

    Raises:
        MalformedError: it breaks the format.
    """
    rcode = packet[3] & 15
    truncated = bool(packet[2] & 2)
    answers = (packet[6] << 8) | packet[7]
    authorities = (packet[8] << 8) | packet[9]
    if truncated:
        return Reply(rcode, True, (), 0)
    if answers + authorities > MAX_RECORDS:
        raise MalformedError("more records than any name needs")
    size = 4 if qtype == A else 16
    aliases: dict[bytes, tuple[bytes, int]] = {}
    found: dict[bytes, list[tuple[bytes, int]]] = {}
    negative: int | None = None
    at = question_end
    for number in range(answers + authorities):
        owner, at = read_name(packet, at)
        if at + 10 > len(packet):
            raise MalformedError("a record runs out of the message")
        rtype = (packet[at] << 8) | packet[at + 1]
        rclass = (packet[at + 2] << 8) | packet[at + 3]
        ttl = int.from_bytes(packet[at + 4 : at + 8], "big")
        length = (packet[at + 8] << 8) | packet[at + 9]
        data = at + 10
        at = data + length
        if at > len(packet):
            raise MalformedError("a record runs out of the message")
        if rclass != CLASS_IN:
            continue
        if number >= answers:
            if rtype == SOA and length >= 22:
                negative = min(ttl, int.from_bytes(packet[at - 4 : at], "big"))
        elif rtype == qtype and length == size:
            found.setdefault(owner, []).append((packet[data:at], ttl))
        elif rtype == CNAME:
            target, end = read_name(packet, data)
            if end != at or aliases.setdefault(owner, (target, ttl))[0] != target:
                raise MalformedError("an alias that cannot be followed")
    return _follow(packet[12 : question_end - 4].lower(), rcode, aliases, found, negative)


def _follow(
    name: bytes,
    rcode: int,
    aliases: dict[bytes, tuple[bytes, int]],
    found: dict[bytes, list[tuple[bytes, int]]],
    negative: int | None,
) -> Reply:
    ttl = 2**31
    for _ in range(MAX_CHAIN):
        alias = aliases.get(name)
        if alias is None or name in found:
            break
        name = alias[0]
        ttl = min(ttl, alias[1])
    else:
        if name in aliases and name not in found:
            raise MalformedError("a chain of aliases without an end")
    records = found.get(name, [])[:MAX_ADDRESSES]
    if rcode == 0 and records:
        ttl = min(ttl, *(record[1] for record in records))
        addresses = tuple(IPv4Address(data) if len(data) == 4 else IPv6Address(data) for data, _ in records)
        return Reply(rcode, False, addresses, ttl)
    return Reply(rcode, False, (), DEFAULT_NEGATIVE_TTL if negative is None else negative)
