"""Attempts at name resolution."""

from __future__ import annotations

import socket
import struct

from km_core.attack.inside.base import TIMEOUT_S, Args, attempt, datagram, family_of, held, say, stream

_REFUSED = {3, 5}  # NXDOMAIN and REFUSED
A, AAAA = 1, 28
TYPES = {"A": 1, "AAAA": 28, "TXT": 16, "MX": 15, "NULL": 10, "SRV": 33, "HTTPS": 65, "SVCB": 64}
TYPES.update({"ANY": 255, "CNAME": 5, "PTR": 12, "NS": 2, "SOA": 6})


def query(name: str, kind: int = A) -> bytes:
    """Return a question for *name* (RFC 1035 section 4.1.2) with recursion desired."""
    labels = b"".join(bytes([len(label)]) + label for label in name.encode().split(b".") if label)
    return b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00" + labels + b"\0" + struct.pack("!HH", kind, 1)


def exchange(address: str, packet: bytes, *, over_tcp: bool) -> bytes:
    """Ask *address* at port 53 and return the reply without its length."""
    if over_tcp:
        with socket.create_connection((address, 53), TIMEOUT_S) as sock:
            sock.sendall(struct.pack("!H", len(packet)) + packet)
            return sock.recv(4096)[2:]
    with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT_S)
        sock.sendto(packet, (address, 53))
        return sock.recv(4096)


def dns_udp(args: Args) -> None:
    """Ask the canary over UDP."""
    for address in args["addresses"]:
        attempt(address, datagram, family_of(address), address, 53, query(args["name"]))


def dns_tcp(args: Args) -> None:
    """Ask the canary over TCP."""
    packet = query(args["name"])
    for address in args["addresses"]:
        attempt(address, stream, family_of(address), address, 53, struct.pack("!H", len(packet)) + packet)


def ask_resolver(args: Args) -> None:
    """Ask the configured resolver for a name, over UDP and TCP, for several types."""

    def one(kind: int, over_tcp: bool) -> None:
        reply = exchange("127.0.0.1", query(args["name"], kind), over_tcp=over_tcp)
        say(type=kind, tcp=over_tcp, rcode=reply[3] & 15)

    for kind in (1, 28, 16, 15, 65, 255, 5, 12):
        for over_tcp in (False, True):
            attempt(f"type {kind} tcp {over_tcp}", one, kind, over_tcp)


def denied_name(args: Args) -> None:
    """Ask for a name that nothing allows, its labels full of data, in every type over both transports."""

    def one(word: str, over_tcp: bool) -> None:
        reply = exchange("127.0.0.1", query(args["name"], TYPES[word]), over_tcp=over_tcp)
        answers = int.from_bytes(reply[6:8], "big")
        how = f"{word} over {'TCP' if over_tcp else 'UDP'}"
        held(how, reply[3] & 15 in _REFUSED and answers == 0, f"rcode {reply[3] & 15}, {answers} records")

    for word in TYPES:
        for over_tcp in (False, True):
            attempt(word, one, word, over_tcp)


def allowed_types(args: Args) -> None:
    """Ask for types that carry data, under a name that is allowed: only addresses may come back."""

    def one(word: str) -> None:
        reply = exchange("127.0.0.1", query(args["allowed"], TYPES[word]), over_tcp=False)
        answers = int.from_bytes(reply[6:8], "big")
        held(f"{word} of {args['allowed']}", answers == 0, f"rcode {reply[3] & 15}, {answers} records")

    for word in sorted(set(TYPES) - {"A", "AAAA"}):
        attempt(word, one, word)


def other_resolvers(args: Args) -> None:
    """Ask resolvers of the host and of clouds for a name that nothing allows: no data may come back."""

    def one(address: str, over_tcp: bool) -> None:
        try:
            reply = exchange(address, query(args["name"]), over_tcp=over_tcp)
        except OSError as error:
            held(address, True, type(error).__name__)
            return
        answers = int.from_bytes(reply[6:8], "big")
        held(address, len(reply) > 3 and reply[3] & 15 in _REFUSED and answers == 0, f"{answers} records")

    for address in args["resolvers"]:
        for over_tcp in (False, True):
            attempt(address, one, address, over_tcp)
