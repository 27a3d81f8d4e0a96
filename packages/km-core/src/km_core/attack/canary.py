"""
The canary: everything that arrives anywhere outside a sandbox, written down.

It listens on every address of the network namespace it is made in, over TCP (MPTCP included), UDP and
UDP-Lite, at a port of its own and at `PORTS` where they are free, on named and abstract Unix sockets and on
vsock.  It holds a bounded part of what arrives, and answers whether a token did.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import subprocess
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from attrs import define, field

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_MPTCP = 262
_UDPLITE = 136
_MOST_OF_ONE = 16384
_MOST_ARRIVALS = 4096
PORTS = (80, 443, 53, 853, 3128, 123, 137, 5353, 5355)
"""Ports that attempts like: web, DNS and its neighbours, time, and the gate's own."""


@define
class Canary:
    """
    Listens until it is left.

    Args:
        directory: where the named Unix socket goes.
        ports: tried besides a port of its own.
    """

    directory: Path
    ports: tuple[int, ...] = PORTS
    tcp_ports: list[int] = field(factory=list)
    udp_ports: list[int] = field(factory=list)
    abstract: str = field(factory=lambda: f"km-canary-{secrets.token_hex(4)}")
    vsock_port: int = 0
    arrivals: deque[tuple[str, bytes]] = field(factory=lambda: deque(maxlen=_MOST_ARRIVALS))
    _leaving: threading.Event = field(factory=threading.Event)
    _sockets: list[socket.socket] = field(factory=list)
    _threads: list[threading.Thread] = field(factory=list)

    @property
    def unix_path(self) -> str:
        """Where the named Unix socket is."""
        return str(self.directory / "canary.sock")

    def __enter__(self) -> Self:
        own = self._free_port()
        for port in (own, *self.ports):
            if self._stream(socket.AF_INET6, ("::", port), f"tcp:{port}", protocol=_MPTCP):
                self.tcp_ports.append(port)
            if self._datagram(("::", port), f"udp:{port}"):
                self.udp_ports.append(port)
        self._datagram(("::", own), f"udplite:{own}", protocol=_UDPLITE)
        self._stream(socket.AF_UNIX, self.unix_path, "unix path")
        self._stream(socket.AF_UNIX, "\0" + self.abstract, "unix abstract")
        self.vsock_port = own
        with contextlib.suppress(OSError, AttributeError):
            self._stream(socket.AF_VSOCK, (socket.VMADDR_CID_ANY, own), "vsock")
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening; again is harmless, and what arrived stays known."""
        self._leaving.set()
        for thread in self._threads:
            thread.join(2)
        for sock in self._sockets:
            sock.close()

    def saw(self, token: str, wait_s: float = 0.5) -> list[str]:
        """Return where *token* arrived, waiting *wait_s* for stragglers."""
        deadline = time.monotonic() + wait_s
        while True:
            places = [place for place, data in list(self.arrivals) if token.encode() in data]
            if places or time.monotonic() > deadline:
                return places
            time.sleep(0.02)

    @staticmethod
    def _free_port() -> int:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::", 0))
            return int(probe.getsockname()[1])

    def _stream(self, family: int, address: tuple[Any, ...] | str, place: str, protocol: int = 0) -> bool:
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, protocol)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
            sock.listen(64)
        except OSError:
            if sock is not None:
                sock.close()
            if protocol:
                return self._stream(family, address, place)
            return False
        self._start(sock, lambda: self._accept(sock, place))
        return True

    def _datagram(self, address: tuple[Any, ...] | str, place: str, protocol: int = 0) -> bool:
        sock = None
        try:
            sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM, protocol)
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sock.bind(address)
        except OSError:
            if sock is not None:
                sock.close()
            return False
        self._start(sock, lambda: self._receive(sock, place))
        return True

    def _start(self, sock: socket.socket, target: Callable[[], None]) -> None:
        # Not every family wakes a blocked accept at shutdown, so the threads look up now and then.
        sock.settimeout(0.2)
        self._sockets.append(sock)
        thread = threading.Thread(target=target, daemon=True)
        thread.start()
        self._threads.append(thread)

    def _accept(self, sock: socket.socket, place: str) -> None:
        while not self._leaving.is_set():
            try:
                connection, _ = sock.accept()
            except TimeoutError:
                continue
            except OSError:
                return
            threading.Thread(target=self._read, args=(connection, place), daemon=True).start()

    def _read(self, connection: socket.socket, place: str) -> None:
        data = b""
        with connection, contextlib.suppress(OSError):
            connection.settimeout(3)
            while chunk := connection.recv(4096):
                data = (data + chunk)[:_MOST_OF_ONE]
                self.arrivals.append((place, data))
                connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\ncanary")
        self.arrivals.append((place, data))

    def _receive(self, sock: socket.socket, place: str) -> None:
        while not self._leaving.is_set():
            try:
                data, _ = sock.recvfrom(65536)
            except TimeoutError:
                continue
            except OSError:
                return
            self.arrivals.append((place, data))


def host_addresses() -> list[str]:
    """Return every address of this network namespace, loopback and link-local included."""
    links = json.loads(subprocess.run(["ip", "-j", "addr"], capture_output=True, check=True).stdout)
    found = []
    for link in links:
        for info in link.get("addr_info", []):
            scope = f"%{link['ifname']}" if info["local"].startswith("fe80") else ""
            found.append(info["local"] + scope)
    return found
