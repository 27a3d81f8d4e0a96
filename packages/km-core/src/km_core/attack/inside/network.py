"""Attempts to send something past the gate, over every transport."""

from __future__ import annotations

import glob
import os
import socket
import stat
import struct
from typing import TYPE_CHECKING

from km_core.attack.inside.base import TIMEOUT_S, Args, attempt, datagram, family_of, held, stream

if TYPE_CHECKING:
    from collections.abc import Iterator


def tcp(args: Args) -> None:
    """Connect to every address and port of the canary."""
    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", stream, family_of(address), address, port, args["token"])


def v4_mapped(args: Args) -> None:
    """The same through IPv6 sockets, to v4-mapped addresses."""
    for address in args["addresses"]:
        if ":" not in address:
            mapped = "::ffff:" + address
            for port in args["tcp_ports"]:
                attempt(mapped, stream, socket.AF_INET6, mapped, port, args["token"])
            for port in args["udp_ports"]:
                attempt(mapped, datagram, socket.AF_INET6, mapped, port, args["token"])


def udp(args: Args) -> None:
    """Send a datagram to every address and port."""
    for address in args["addresses"]:
        for port in args["udp_ports"]:
            attempt(f"{address}:{port}", datagram, family_of(address), address, port, args["token"])


def udplite(args: Args) -> None:
    """The same over UDP-Lite (RFC 3828)."""
    for address in args["addresses"]:
        for port in args["udp_ports"]:
            attempt(f"{address}:{port}", datagram, family_of(address), address, port, args["token"], 136)


def quic(args: Args) -> None:
    """A QUIC version 1 Initial (RFC 9000 section 17.2.2), padded to 1200 bytes, token as connection id."""
    cid = args["token"][:20]
    packet = b"\xc0" + struct.pack("!I", 1) + bytes([len(cid)]) + cid + b"\0\0" + args["token"]
    for address in args["addresses"]:
        attempt(address, datagram, family_of(address), address, 443, packet.ljust(1200, b"\x00"))


def mptcp(args: Args) -> None:
    """Connect over Multipath TCP (RFC 8684)."""
    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", stream, family_of(address), address, port, args["token"], 262)


def fast_open(args: Args) -> None:
    """Data in the SYN (RFC 7413)."""

    def one(address: str, port: int) -> None:
        with socket.socket(family_of(address), socket.SOCK_STREAM) as sock:
            # A Python timeout makes the socket non-blocking, which sends no data with the SYN.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 2, 0))
            sock.sendto(args["token"], 0x20000000, (address, port))

    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", one, address, port)


def raw_packets(args: Args) -> None:
    """ICMP echo through a raw socket, then a frame on every link."""

    def icmp(address: str) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
            body = struct.pack("!BBHHH", 8, 0, 0, 1, 1) + args["token"]
            total = sum(
                struct.unpack(
                    f"!{len(body.ljust(-(-len(body) // 2) * 2, b'0')) // 2}H",
                    body.ljust(-(-len(body) // 2) * 2, b"\0"),
                )
            )
            while total >> 16:
                total = (total & 0xFFFF) + (total >> 16)
            sock.sendto(body[:2] + struct.pack("!H", ~total & 0xFFFF) + body[4:], (address, 0))

    def raw_udp(address: str, port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP) as sock:
            sock.sendto(
                struct.pack("!HHHH", 4444, port, 8 + len(args["token"]), 0) + args["token"], (address, 0)
            )

    for address in args["addresses"]:
        if ":" not in address:
            attempt(f"icmp {address}", icmp, address)
            for port in args["udp_ports"]:
                attempt(f"raw udp {address}", raw_udp, address, port)
    for _, name in socket.if_nameindex():

        def frame(name: str = name) -> None:
            with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
                sock.bind((name, 0))
                sock.send(b"\xff" * 12 + b"\x88\xb5" + args["token"])

        attempt(f"frame on {name}", frame)


def vsock(args: Args) -> None:
    """Connect to the canary over AF_VSOCK."""
    for cid in (1, 2, socket.VMADDR_CID_ANY, args.get("own_cid", 3)):

        def one(cid: int = cid) -> None:
            with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as sock:
                sock.settimeout(TIMEOUT_S)
                sock.connect((cid, args["vsock_port"]))
                sock.sendall(args["token"])

        attempt(f"cid {cid}", one)


def vsock_opens(args: Args) -> None:  # noqa: ARG001 - every attempt takes them
    """Make a vsock socket: its peer would be the hypervisor, where no canary can stand."""

    def one() -> None:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()

    attempt("AF_VSOCK", one)


def unix(args: Args) -> None:
    """Named and abstract sockets of the host, and every socket file that can be found."""

    def one(path: str) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(TIMEOUT_S)
            sock.connect(path)
            sock.sendall(args["token"])

    places = list(args["paths"]) + ["\0" + name for name in args["abstract"]]
    if args.get("search"):
        for root in (
            "/run",
            "/var/run",
            "/tmp",  # noqa: S108 - searched, not written
            "/workspace",
            "/home",
            "/dev",
            "/proc/1/root/run",
            "/proc/1/root/tmp",
        ):
            for found in glob.glob(root + "/**", recursive=True)[:5000]:
                if os.path.exists(found) and stat.S_ISSOCK(os.stat(found).st_mode):
                    places.append(found)
    for place in places:
        attempt(repr(place), one, place)


def every_port(args: Args) -> None:
    """Connect to every port where the canary listens, over TCP and UDP."""
    tcp(args)
    udp(args)


def udp_forms(args: Args) -> None:
    """Send over UDP in the forms that different kernel hooks see: connect and send, sendmsg, a v6 socket."""

    def connected(address: str, port: int) -> None:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            sock.connect((address, port))
            sock.send(args["token"])

    def message(address: str, port: int) -> None:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            sock.sendmsg([args["token"]], [], 0, (address, port))

    for address in args["addresses"]:
        for port in args["udp_ports"]:
            attempt(f"connect {address}:{port}", connected, address, port)
            attempt(f"sendmsg {address}:{port}", message, address, port)


def sctp(args: Args) -> None:
    """Connect over SCTP (RFC 9260), which a host without the protocol refuses as well."""
    for address in args["addresses"]:
        for port in args["tcp_ports"]:
            attempt(f"{address}:{port}", stream, family_of(address), address, port, args["token"], 132)


def no_vsock(args: Args) -> None:
    """Make a vsock socket and, where that is possible, connect to the canary."""
    try:
        socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM).close()
    except (OSError, AttributeError) as error:
        attempt("AF_VSOCK", held, "AF_VSOCK", True, str(error))
        return
    attempt("AF_VSOCK", held, "AF_VSOCK", False, "a socket was made")
    vsock(args)


def host_sockets(args: Args) -> None:
    """
    Find sockets of the host: the canary's by path and name, and files named like those that steer sandboxes.

    Sockets of the sandbox's own services are left alone.
    """
    # Kept small: the control runs on the host, where nobody else's socket is to be knocked at.
    unix({**args, "search": False})
    if args.get("control"):
        return
    canary = [os.path.basename(path) for path in args["paths"]]
    found = 0
    for folder, _, names in _folders():
        for name in names:
            path = os.path.join(folder, name)
            if name in canary:
                attempt(path, unix, {**args, "search": False, "paths": [path], "abstract": []})
            if name in _STEERING and stat.S_ISSOCK(os.lstat(path).st_mode):
                found += 1
                held(path, False, "a socket")
    attempt("search", held, "search", found == 0, f"{found} found")


_STEERING = {"kmd.sock", "pod.sock", "exec.sock", "bootstrap.sock", "docker.sock", "containerd.sock"}


def _folders() -> Iterator[tuple[str, list[str], list[str]]]:
    for root in ("/run", "/var/run", "/tmp", "/workspace", "/home", "/proc/1/root/run"):  # noqa: S108 - searched
        yield from os.walk(root)
