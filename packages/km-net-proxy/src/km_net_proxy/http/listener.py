"""
Accepting on a listener that was made inside the sandbox's namespace and handed out.

The destination is the client's claim: read once here, the same value for policy, dialling and audit.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import ipaddress
import os
import socket
from typing import TYPE_CHECKING

import structlog

from km_net_proxy.http.relay import reset_on_close

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from km_net_proxy.http.connections import Connection, Connections

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_BATCH = 64
_PAUSE_S = 0.05
_SO_ORIGINAL_DST = 80
_IP6T_SO_ORIGINAL_DST = 80
_EXHAUSTED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Listener:
    """
    Accepts connections and starts their handlers.

    Args:
        sock: the listening socket; closed by `close` only if it is owned.
        connections: the set that limits them.
        handler: serves one connection; closes its socket.
        redirect: destinations come from the kernel's NAT table instead of the socket's own name.
    """

    def __init__(
        self,
        sock: socket.socket,
        connections: Connections,
        handler: Callable[[Connection, socket.socket, Address, int], Awaitable[None]],
        *,
        redirect: bool = False,
    ) -> None:
        self._sock = sock
        self._connections = connections
        self._handler = handler
        self._redirect = redirect
        self._spare = -1
        self._resume: asyncio.TimerHandle | None = None
        self._log = structlog.get_logger("km.gate.listener")
        self.refused = 0

    def start(self) -> None:
        """Begin to accept."""
        self._sock.setblocking(False)
        self._take_spare()
        asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def _take_spare(self) -> None:
        with contextlib.suppress(OSError):
            self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _accept(self) -> None:
        for _ in range(_BATCH):
            try:
                sock, _ = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except ConnectionError:
                continue
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    self._exhausted()
                else:
                    self._log.error("accept_failed", error=str(error))
                    self._pause()
                return
            self._take(sock)

    def _take(self, sock: socket.socket) -> None:
        if self._connections.full:
            self.refused += 1
            reset_on_close(sock)
            sock.close()
            return
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            address, port = self.destination(sock)
        except (OSError, ValueError):
            reset_on_close(sock)
            sock.close()
            return

        async def serve(connection: Connection) -> None:
            await self._handler(connection, sock, address, port)

        self._connections.serve(serve)

    def _exhausted(self) -> None:
        """
        Out of descriptors: refuse one waiting client with the spare one, then rest a moment.

        A listener that is readable but cannot be accepted from would spin the loop.
        """
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1
            with contextlib.suppress(OSError):
                sock, _ = self._sock.accept()
                reset_on_close(sock)
                sock.close()
            self._take_spare()
        self.refused += 1
        self._pause()

    def _pause(self) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(self._sock.fileno())
        self._resume = loop.call_later(_PAUSE_S, self._again)

    def _again(self) -> None:
        self._resume = None
        if self._spare < 0:
            self._take_spare()
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().add_reader(self._sock.fileno(), self._accept)

    def destination(self, sock: socket.socket) -> tuple[Address, int]:
        """
        Return where the client of an accepted socket meant to go.

        Raises:
            OSError: the kernel does not know.
        """
        host, port = sock.getsockname()[:2]
        address = unmapped(host)
        if not self._redirect:
            return address, port
        if address.version == 4:
            try:
                raw = sock.getsockopt(socket.SOL_IP, _SO_ORIGINAL_DST, 16)
            except OSError:
                return address, port  # not redirected: the client dialled the listener itself
            return ipaddress.IPv4Address(raw[4:8]), int.from_bytes(raw[2:4], "big")
        try:
            raw = sock.getsockopt(socket.IPPROTO_IPV6, _IP6T_SO_ORIGINAL_DST, 28)
        except OSError:
            return address, port
        return unmapped(socket.inet_ntop(socket.AF_INET6, raw[8:24])), int.from_bytes(raw[2:4], "big")

    def close(self) -> None:
        """Stop accepting; the socket itself belongs to whoever handed it over."""
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        if self._sock.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
        if self._spare >= 0:
            os.close(self._spare)
            self._spare = -1


@functools.lru_cache(maxsize=4096)
def unmapped(host: str) -> Address:
    """Return an address from its text, a v4-mapped one as IPv4."""
    address = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address
