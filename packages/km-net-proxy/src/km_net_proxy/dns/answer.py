"""
DNS messages without sockets: reading questions, building answers.

The hot path slices the question from the packet; nothing is parsed that no decision needs.  Wire format:
RFC 1035 section 4.1, EDNS RFC 6891, extended errors RFC 8914.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

NOERROR, FORMERR, SERVFAIL, NXDOMAIN, NOTIMP, REFUSED = range(6)
BADVERS = 16

A, NS, CNAME, SOA, NULL, PTR, MX, TXT, AAAA, SRV, OPT, SVCB, HTTPS = (
    1,
    2,
    5,
    6,
    10,
    12,
    15,
    16,
    28,
    33,
    41,
    64,
    65,
)
TYPE_NAMES = {
    1: "A", 2: "NS", 5: "CNAME", 6: "SOA", 10: "NULL", 12: "PTR", 15: "MX", 16: "TXT", 28: "AAAA", 33: "SRV",
    64: "SVCB", 65: "HTTPS", 251: "IXFR", 252: "AXFR", 255: "ANY", 257: "CAA",
}  # fmt: skip
REFUSED_TYPES = frozenset({0, NULL, OPT, 48, 249, 250, 251, 252, 253, 254, 255})
"""Types that are refused: NULL, OPT as a question, DNSKEY, TKEY, TSIG, IXFR, AXFR, MAILB, MAILA, ANY."""

CLASS_IN = 1

EDE_NOT_READY = 14
EDE_BLOCKED = 15
EDE_FILTERED = 17
EDE_PROHIBITED = 18
EDE_NOT_SUPPORTED = 21
EDE_NO_REACHABLE_AUTHORITY = 22

UDP_PLAIN = 512
UDP_MAX = 1232
"""Largest UDP answer sent, in bytes: what passes every path unfragmented (DNS Flag Day 2020)."""

_OPT_START = b"\0\0\x29"
# With the longest question the answer still fits into 512 bytes: 12 + 255 + 4 + 11 + 6 + 200.
_MAX_EDE_TEXT = 200


class MalformedError(ValueError):
    """A message breaks the format; *rcode* is what the sender gets, None that it gets nothing."""

    def __init__(self, why: str, rcode: int | None = FORMERR) -> None:
        super().__init__(why)
        self.rcode = rcode


class Question(NamedTuple):
    """
    The one question of a message (a plain tuple: one is made per packet).

    Attributes:
        key: the name in lower-case wire form; the same name always has the same key.
        qtype: type number.
        qclass: class number.
        end: where the question section ends in the packet.
        edns: whether the sender speaks EDNS.
        limit: how many bytes a UDP answer may have.
        bad_version: the sender speaks an EDNS version above 0.
    """

    key: bytes
    qtype: int
    qclass: int
    end: int
    edns: bool
    limit: int
    bad_version: bool


def name_end(packet: bytes, start: int = 12) -> int:
    """
    Return the index after the name at *start*; compression is not accepted.

    Raises:
        MalformedError: the name runs out of the packet, is compressed, or longer than 255 bytes.
    """
    at = start
    try:
        length = packet[at]
        while length:
            if length > 63:
                raise MalformedError("a compressed or extended label in a question")
            at += length + 1
            length = packet[at]
    except IndexError:
        raise MalformedError("a name runs out of the message") from None
    if at - start > 254:
        raise MalformedError("a name is longer than 255 bytes")
    return at + 1


def name_text(wire: bytes) -> str | None:
    """
    Return an uncompressed wire name as lower-case text.

    None when a label holds a dot or a byte outside ASCII: such a name has no text that means it alone,
    and what international names mean is settled in their ``xn--`` form, never by bytes.
    """
    labels = []
    at = 0
    length = wire[0]
    while length:
        labels.append(wire[at + 1 : at + 1 + length])
        at += length + 1
        length = wire[at]
    joined = b".".join(labels)
    if (joined.count(b".") != len(labels) - 1 and labels) or not joined.isascii():
        return None
    return joined.decode("ascii").lower()


def wire_name(name: str) -> bytes:
    """Return a canonical name in wire form; the empty name is the root."""
    if not name:
        return b"\0"
    return b"".join(bytes((len(label),)) + label.encode("ascii") for label in name.split(".")) + b"\0"


def read_query(packet: bytes) -> Question:
    """
    Read a query's header, its question and its EDNS record.

    Raises:
        MalformedError: not one plain query with one question; its *rcode* says what to answer.
    """
    size = len(packet)
    if size < 12:
        raise MalformedError("shorter than a header", None)
    flags = packet[2]
    if flags & 0xF8:
        if flags & 0x80:
            raise MalformedError("an answer, not a query", None)
        raise MalformedError("an opcode other than QUERY", NOTIMP)
    # QDCOUNT 1, ANCOUNT 0, NSCOUNT 0; ARCOUNT may hold EDNS.
    if packet[4:10] != b"\0\1\0\0\0\0":
        raise MalformedError("not exactly one question and nothing else")
    after = name_end(packet)
    end = after + 4
    if end > size:
        raise MalformedError("a question without type and class")
    # Length bytes are below 64, so lower() changes letters only.
    key = packet[12:after].lower()
    qtype = (packet[after] << 8) | packet[after + 1]
    qclass = (packet[after + 2] << 8) | packet[after + 3]
    additional = packet[10:12]
    if additional == b"\0\0":
        if size != end:
            raise MalformedError("bytes after the question")
        return Question(key, qtype, qclass, end, False, UDP_PLAIN, False)
    if additional != b"\0\1" or size < end + 11 or packet[end : end + 3] != _OPT_START:
        raise MalformedError("something else than one OPT record after the question")
    _check_options(packet, end + 9)
    limit = min(max((packet[end + 3] << 8) | packet[end + 4], UDP_PLAIN), UDP_MAX)
    return Question(key, qtype, qclass, end, True, limit, packet[end + 6] != 0)


def _check_options(packet: bytes, at: int) -> None:
    """
    Check that the options whose length stands at *at* fill the packet; what they say is nobody's concern.

    Raises:
        MalformedError: bytes are missing or left over (RFC 6891 section 6.1.1: FORMERR).
    """
    size = len(packet)
    if at + 2 + ((packet[at] << 8) | packet[at + 1]) != size:
        raise MalformedError("an OPT record that does not end the message")
    at += 2
    while at < size:
        if at + 4 > size:
            raise MalformedError("half an option")
        at += 4 + ((packet[at + 2] << 8) | packet[at + 3])
    if at != size:
        raise MalformedError("an option that runs out of the message")


def opt_record(*, rcode: int = NOERROR, ede: int | None = None, text: str = "") -> bytes:
    """
    Return our OPT record: own payload size, version 0, no option of the client's, an extended error if given.

    Args:
        rcode: the whole response code; its upper bits go here.
        ede: an extended error code (RFC 8914).
        text: what it says, shortened to 200 bytes.
    """
    option = b""
    if ede is not None:
        extra = text.encode("utf-8")[:_MAX_EDE_TEXT].decode("utf-8", "ignore").encode("utf-8")
        option = struct.pack("!HHH", 15, 2 + len(extra), ede) + extra
    return _OPT_START + struct.pack("!HBBHH", UDP_MAX, rcode >> 4, 0, 0, len(option)) + option


def header_only(packet: bytes, rcode: int) -> bytes:
    """Answer a message whose question cannot be repeated."""
    return packet[:2] + bytes((0x80 | (packet[2] & 0x79), 0x80 | rcode)) + b"\0" * 8


def empty_answer(packet: bytes, end: int, rcode: int, opt: bytes = b"") -> bytes:
    """
    Answer with an empty answer section; the question is repeated byte for byte (0x20).

    Args:
        packet: the query.
        end: where its question ends.
        rcode: response code.
        opt: our OPT record when the client speaks EDNS.
    """
    flags = bytes((0x80 | (packet[2] & 0x79), 0x80 | (rcode & 15)))
    counts = b"\0\1\0\0\0\0\0\1" if opt else b"\0\1\0\0\0\0\0\0"
    return packet[:2] + flags + counts + packet[12:end] + opt


def address_answer(
    packet: bytes, end: int, qtype: int, rdata: tuple[bytes, ...], ttl: int, *, opt: bytes = b""
) -> bytes:
    """
    Answer with address records for the question's own name.

    Args:
        packet: the query.
        end: where its question ends.
        qtype: `A` or `AAAA`.
        rdata: the addresses, 4 or 16 bytes each.
        ttl: seconds.
        opt: our OPT record when the client speaks EDNS.
    """
    head = packet[:2] + bytes((0x80 | (packet[2] & 0x79), 0x80))
    counts = struct.pack("!4H", 1, len(rdata), 0, 1 if opt else 0)
    records = b"".join(
        b"\xc0\x0c" + struct.pack("!HHIH", qtype, CLASS_IN, ttl, len(address)) + address for address in rdata
    )
    return head + counts + packet[12:end] + records + opt


def name_answer(packet: bytes, end: int, qtype: int, target: str, ttl: int, *, opt: bytes = b"") -> bytes:
    """Answer with one record that holds a name (PTR)."""
    wire = wire_name(target)
    head = packet[:2] + bytes((0x80 | (packet[2] & 0x79), 0x80))
    counts = struct.pack("!4H", 1, 1, 0, 1 if opt else 0)
    record = b"\xc0\x0c" + struct.pack("!HHIH", qtype, CLASS_IN, ttl, len(wire)) + wire
    return head + counts + packet[12:end] + record + opt


def truncate(answer: bytes, end: int, limit: int, opt: bytes = b"") -> bytes:
    """Return *answer*, or when it is longer than *limit* its header and question with TC set."""
    if len(answer) <= limit:
        return answer
    counts = b"\0\1\0\0\0\0\0\1" if opt else b"\0\1\0\0\0\0\0\0"
    return answer[:2] + bytes((answer[2] | 0x02, answer[3])) + counts + answer[12:end] + opt


_PLAIN_OPT = opt_record()
_QUERY_HEAD = struct.pack("!5H", 0x0100, 1, 0, 0, 1)
"""Recursion desired, one question, one additional record."""


def build_query(query_id: int, question: bytes) -> bytes:
    """Return a recursive query: header, *question* (name, type, class), and an OPT without options."""
    return query_id.to_bytes(2, "big") + _QUERY_HEAD + question + _PLAIN_OPT
