"""A name server for stand-ins: answers what it was told, counts what it is asked (RFC 1035)."""

from __future__ import annotations

import collections
import contextlib
import ipaddress
import socket
import struct
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

_A, _AAAA = 1, 28
_NOERROR, _FORMERR, _NXDOMAIN = 0, 1, 3


class NameServer:
    """
    Answers over UDP and TCP on one port of *host*.

    Args:
        names: host name to its addresses; a name that maps to several *lists* gives the next one at
            each query for an IPv4 address and then stays with the last (that is what rebinding is).
        forward: resolve other names as this machine does instead of answering NXDOMAIN.
    """

    def __init__(
        self,
        names: Mapping[str, Sequence[Sequence[str]]],
        *,
        host: str = "127.0.0.1",
        forward: bool = False,
    ) -> None:
        self.queries: collections.Counter[str] = collections.Counter()
        self._forward = forward
        self._names = {name: collections.deque(steps) for name, steps in names.items()}
        self._mutex = threading.Lock()
        self._udp, self._tcp = _bind(host)
        self._threads = [
            threading.Thread(target=target, daemon=True) for target in (self._serve_udp, self._serve_tcp)
        ]

    @property
    def address(self) -> str:
        """``ADDRESS:PORT`` for ``upstream_dns:``."""
        host, port = self._udp.getsockname()
        return f"{host}:{port}"

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError):
            self._tcp.shutdown(socket.SHUT_RDWR)
        with contextlib.suppress(OSError):
            self._udp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5)
        self._udp.close()
        self._tcp.close()

    def _serve_udp(self) -> None:
        while True:
            try:
                packet, peer = self._udp.recvfrom(4096)
            except OSError:
                return
            if not packet:
                return
            with contextlib.suppress(OSError):
                self._udp.sendto(self._answer(packet), peer)

    def _serve_tcp(self) -> None:
        while True:
            try:
                connection, _ = self._tcp.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError, struct.error):
                connection.settimeout(2)
                stream = connection.makefile("rb")
                (size,) = struct.unpack("!H", stream.read(2))
                reply = self._answer(stream.read(size))
                connection.sendall(struct.pack("!H", len(reply)) + reply)

    def _answer(self, packet: bytes) -> bytes:
        if len(packet) < 12:
            return packet[:2].ljust(2, b"\0") + struct.pack("!HHHHH", 0x8000 | _FORMERR, 0, 0, 0, 0)
        labels, end = _question(packet)
        question = packet[12:end]
        (kind,) = struct.unpack("!H", question[-4:-2])
        name = b".".join(labels).decode("ascii", "replace").lower()
        addresses = self._look_up(name, advance=kind == _A)
        if addresses is None:
            return packet[:2] + struct.pack("!HHHHH", 0x8180 | _NXDOMAIN, 1, 0, 0, 0) + question
        family = {_A: 4, _AAAA: 6}.get(kind)
        chosen = [ip for ip in map(ipaddress.ip_address, addresses) if ip.version == family]
        records = b"".join(
            b"\xc0\x0c" + struct.pack("!HHIH", kind, 1, 5, len(ip.packed)) + ip.packed for ip in chosen
        )
        header = struct.pack("!HHHHH", 0x8180 | _NOERROR, 1, len(chosen), 0, 0)
        return packet[:2] + header + question + records

    def _look_up(self, name: str, *, advance: bool) -> Sequence[str] | None:
        with self._mutex:
            self.queries[name] += 1
            steps = self._names.get(name)
            if steps is not None:
                if advance and len(steps) > 1:
                    return steps.popleft()
                return steps[0]
        if not self._forward:
            return None
        try:
            return [str(info[4][0]) for info in socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)]
        except OSError:
            return None


def _question(packet: bytes) -> tuple[list[bytes], int]:
    labels, at = [], 12
    while at < len(packet) and (size := packet[at]):
        labels.append(packet[at + 1 : at + 1 + size])
        at += 1 + size
    return labels, at + 5


def _bind(host: str) -> tuple[socket.socket, socket.socket]:
    """Take one port for both protocols; the kernel's choice for UDP may be taken for TCP."""
    while True:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            udp.bind((host, 0))
            tcp.bind((host, udp.getsockname()[1]))
            tcp.listen(64)
        except OSError:
            udp.close()
            tcp.close()
            continue
        return udp, tcp
