"""
Connections to servers: verified TLS, kept alive, never shared between two names.

A kept connection belongs to one (name, port, scheme); a request for another name opens its own, whatever
addresses the two share (spec/network.md section 4.4).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import ssl
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from km_net_proxy.http.dial import DialError
from km_net_proxy.http.stream import Stream

if TYPE_CHECKING:
    import ipaddress
    import socket

    from km_net_proxy.http.dial import Dialer, Dialled, Override

KEEP_S = 20.0
"""How long an idle connection is kept; servers commonly keep theirs for 30 s and more."""
_KEEP_PER_HOST = 64
_KEEP_TOTAL = 256
_HANDSHAKE_S = 10.0
_HOSTNAME_MISMATCH = 62

Key = tuple[str, int, bool]


@frozen
class Upstream:
    """
    An open connection to a server.

    Attributes:
        stream: its bytes.
        key: what it may be used for again.
        address: where it leads, for the record.
        reused: it has carried a request before.
        until: loop time until which *address* is the name's.
    """

    stream: Stream
    key: Key
    address: str
    reused: bool = False
    until: float = math.inf


class Trust:
    """TLS contexts for servers: the system's roots, read once, and the operator's for stand-ins."""

    def __init__(self, overrides: dict[str, Override]) -> None:
        self._overrides = overrides
        self._system: ssl.SSLContext | None = None
        self._own: dict[str, ssl.SSLContext] = {}

    def context(self, name: str) -> ssl.SSLContext:
        """Return the context that verifies the server *name*."""
        override = self._overrides.get(name)
        if override is not None and override.ca_pem:
            context = self._own.get(name)
            if context is None:
                context = self._own[name] = _strict(ssl.create_default_context(cadata=override.ca_pem))
            return context
        if self._system is None:
            self._system = _strict(ssl.create_default_context())
        return self._system


def _strict(context: ssl.SSLContext) -> ssl.SSLContext:
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    return context


class Upstreams:
    """
    Opens and keeps connections.

    Args:
        dialer: reaches the outside.
        trust: verifies servers.
    """

    def __init__(self, dialer: Dialer, trust: Trust) -> None:
        self._dialer = dialer
        self._trust = trust
        self._idle: dict[Key, list[tuple[float, Upstream]]] = {}
        self._count = 0
        self._alternate: set[str] = set()
        self._sweeper: asyncio.Task[None] | None = None

    async def open(self, name: str, port: int, *, tls: bool, fresh: bool = False) -> Upstream:
        """
        Return a connection for one exchange with a canonical name that policy has allowed.

        Args:
            name: the host.
            port: its port.
            tls: whether the client asked for https; a stand-in's own scheme wins.
            fresh: never a kept one.

        Raises:
            DialDenied: the name leads nowhere it may.
            DialError: no connection; code ``upstream_tls_failed`` when the handshake failed.
        """
        override = self._dialer.overrides.get(name)
        if override is not None:
            tls = override.tls
        key = (name, port, tls)
        if not fresh:
            kept = await self._kept(key)
            if kept is not None:
                return kept
        dialled = await self._dialer.name(name, port)
        if not tls:
            return await _plain(dialled, key)
        names = [name] if override is None else [name, override.host]
        if name in self._alternate:
            names.reverse()
        try:
            return await self._secure(dialled, key, names[0])
        except ssl.SSLCertVerificationError as error:
            # A stand-in's certificate may name the host it replaces or its own.
            if len(names) == 1 or error.verify_code != _HOSTNAME_MISMATCH:
                raise DialError("upstream_tls_failed", f"{name}: {error.verify_message}") from error
        except (ssl.SSLError, OSError, TimeoutError) as error:
            raise _tls_failed(name, error) from error
        try:
            upstream = await self._secure(await self._dialer.name(name, port), key, names[1])
        except (ssl.SSLError, OSError, TimeoutError) as error:
            raise _tls_failed(name, error) from error
        self._alternate ^= {name}
        return upstream

    async def open_literal(
        self, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int, *, tls: bool = False
    ) -> Upstream:
        """Return a connection to an address that policy has allowed; raises as `open`."""
        key = (str(address), port, tls)
        kept = self._take(key)
        if kept is not None:
            return kept
        dialled = await self._dialer.literal(address, port)
        if not tls:
            return await _plain(dialled, key)
        try:
            return await self._secure(dialled, key, str(address))
        except (ssl.SSLError, OSError, TimeoutError) as error:
            raise _tls_failed(str(address), error) from error

    async def _secure(self, dialled: Dialled, key: Key, server_name: str) -> Upstream:
        try:
            _, stream = await asyncio.get_running_loop().create_connection(
                Stream,
                sock=dialled.sock,
                ssl=self._trust.context(key[0]),
                server_hostname=server_name,
                ssl_handshake_timeout=_HANDSHAKE_S,
                ssl_shutdown_timeout=1.0,
            )
        except BaseException:
            dialled.sock.close()
            raise
        return Upstream(stream, key, dialled.address, until=dialled.until)

    async def _kept(self, key: Key) -> Upstream | None:
        """Return a kept connection that still leads where its name does."""
        while True:
            upstream = self._take(key)
            if upstream is None or upstream.until > asyncio.get_running_loop().time():
                return upstream
            stream = upstream.stream
            try:
                until = await self._dialer.still(key[0], key[1], upstream.address)
            except BaseException:
                stream.abort()
                raise
            if until is not None and not (stream.ended or stream.lost or stream.pending):
                return evolve(upstream, until=until)
            stream.abort()

    def _take(self, key: Key) -> Upstream | None:
        kept = self._idle.get(key)
        while kept:
            expires, upstream = kept.pop()
            self._count -= 1
            stream = upstream.stream
            if stream.ended or stream.lost or stream.pending or expires < asyncio.get_running_loop().time():
                stream.abort()
                continue
            return upstream
        return None

    def keep(self, upstream: Upstream) -> None:
        """Give a connection back whose exchange is over on both sides."""
        stream = upstream.stream
        kept = self._idle.setdefault(upstream.key, [])
        if stream.ended or stream.pending or len(kept) >= _KEEP_PER_HOST or self._count >= _KEEP_TOTAL:
            stream.abort()
            return
        if self._sweeper is None:
            self._sweeper = asyncio.get_running_loop().create_task(self._sweep())
        again = upstream if upstream.reused else evolve(upstream, reused=True)
        kept.append((asyncio.get_running_loop().time() + KEEP_S, again))
        self._count += 1

    def forget(self) -> None:
        """Close what is kept and not in use: it was opened under rules that no longer count."""
        for kept in self._idle.values():
            for _, upstream in kept:
                upstream.stream.abort()
        self._idle.clear()
        self._count = 0

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(5)
            now = asyncio.get_running_loop().time()
            for key, kept in list(self._idle.items()):
                gone = [item for item in kept if item[0] < now or item[1].stream.ended]
                for item in gone:
                    kept.remove(item)
                    self._count -= 1
                    item[1].stream.abort()
                if not kept:
                    del self._idle[key]

    async def close(self) -> None:
        """Close what is kept."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._sweeper
            self._sweeper = None
        self.forget()


async def _plain(dialled: Dialled, key: Key) -> Upstream:
    try:
        stream = await attach(dialled.sock)
    except BaseException:
        dialled.sock.close()
        raise
    return Upstream(stream, key, dialled.address, until=dialled.until)


async def attach(sock: socket.socket, context: ssl.SSLContext | None = None) -> Stream:
    """Give an accepted or connected socket to the event loop; *context* makes it the TLS server."""
    loop = asyncio.get_running_loop()
    # Kept by ourselves: with TLS uvloop returns its own protocol object instead of the factory's.
    stream = Stream()
    if context is None:
        await loop.connect_accepted_socket(lambda: stream, sock)
    else:
        await loop.connect_accepted_socket(
            lambda: stream, sock, ssl=context, ssl_handshake_timeout=_HANDSHAKE_S, ssl_shutdown_timeout=1.0
        )
    return stream


def _tls_failed(name: str, error: BaseException) -> DialError:
    reason = error.reason if isinstance(error, ssl.SSLError) and error.reason else type(error).__name__
    return DialError("upstream_tls_failed", f"{name}: {reason}")
