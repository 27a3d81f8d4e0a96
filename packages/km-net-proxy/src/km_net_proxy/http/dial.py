"""
Dialling out: a name is resolved once, every address is judged, and one that passed is dialled.

Nothing resolves a second time, so what was judged is what is reached (spec/network.md section 4.3).
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import ipaddress
import math
import os
import socket
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from attrs import evolve, frozen

from km_core.errors import ConfigError
from km_core.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.policy import NetworkPolicy
    from km_net_proxy.dns.name_budget import NameBudget
    from km_net_proxy.http.contracts import Resolver

CONNECT_TIMEOUT_S = 10.0
"""How long one address may take to answer."""
_MAX_ADDRESSES = 4
_OWN_CACHE_S = 30.0

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class DialDenied(Exception):  # noqa: N818 - a verdict, not a defect
    """No address of the name may be dialled."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class DialError(Exception):
    """The destination could not be reached; *code* is stable, the text is safe to show inside."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@frozen
class Override:
    """
    The operator's stand-in for a host.

    Attributes:
        host: where to dial, a name or address of the operator's choice.
        port: its port.
        tls: whether it speaks TLS.
        ca_pem: CA certificates trusted there, PEM; empty means the system's.
    """

    host: str
    port: int
    tls: bool
    ca_pem: str = ""

    @property
    def protected(self) -> bool:
        """Whether what is sent there is nobody else's to read: by TLS, or because it stays on this host."""
        if self.tls or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @classmethod
    def from_url(cls, name: str, url: str, ca_pem: str = "") -> Override:
        """
        Read an override as the bootstrap carries it.

        Raises:
            ConfigError: the URL is not ``http(s)://host[:port]``.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigError(f"upstreams.{name} is not a URL", why=str(error)) from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path.strip("/"):
            raise ConfigError(f"upstreams.{name} must be http(s)://HOST[:PORT], not {url!r}")
        tls = parts.scheme == "https"
        return cls(parts.hostname, port or (443 if tls else 80), tls, ca_pem)


@frozen
class Dialled:
    """
    An open connection.

    Attributes:
        sock: the socket.
        address: where it leads, ``address:port`` for the record.
        until: loop time until which the address is the name's; ask `Dialer.still` after it.
    """

    sock: socket.socket
    address: str
    until: float = math.inf


class Dialer:
    """
    Opens connections to the outside.

    Args:
        policy: judges what names resolve to.
        resolver: the operator's resolver.
        overrides: stand-ins by canonical name.
        proxy: the operator's own HTTP proxy, ``http://[user:password@]host:port``, or empty.
        name_budget: what names may carry outside; paid here for names that *proxy* resolves.
        own_allowed: addresses of this host that a rule names one by one.
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        resolver: Resolver,
        *,
        overrides: Mapping[str, Override] | None = None,
        proxy: str = "",
        name_budget: NameBudget | None = None,
        own_allowed: frozenset[str] = frozenset(),
    ) -> None:
        self._policy = policy
        self._resolver = resolver
        self.overrides = dict(overrides or {})
        self._proxy = urlsplit(proxy) if proxy else None
        self._name_budget = name_budget
        self._own_allowed = own_allowed
        self._own: dict[str, tuple[float, bool]] = {}

    def use(self, policy: NetworkPolicy, own_allowed: frozenset[str]) -> None:
        """Judge by another policy from now on."""
        self._policy = policy
        self._own_allowed = own_allowed

    async def name(self, name: str, port: int) -> Dialled:
        """
        Connect to a canonical name that policy has allowed.

        Raises:
            DialDenied: it resolves to nothing that may be reached.
            DialError: it does not resolve, or nobody answers.
        """
        override = self.overrides.get(name)
        if override is not None:
            return await self._trusted(override.host, override.port)
        if self._proxy is not None:
            denied = None if self._name_budget is None else self._name_budget.charge(name)
            if denied is not None:
                raise DialDenied(denied)
            return await self._through_proxy(f"{name}:{port}")
        addresses, until = await self._resolve(name, port)
        error: Exception | None = None
        for address in addresses[:_MAX_ADDRESSES]:
            try:
                dialled = await self._connect(str(address), port)
            except (OSError, TimeoutError) as caught:
                error = caught
                continue
            # Asked again: another policy may have come while nobody answered.
            verdict = self._policy.resolved(name, address, port)
            if not verdict.allow:
                dialled.sock.close()
                raise DialDenied(verdict)
            return evolve(dialled, until=until)
        raise DialError("upstream_unreachable", f"{name}:{port} cannot be reached ({_why(error)})")

    async def still(self, name: str, port: int, address: str) -> float | None:
        """
        Say until when, in loop time, an open connection of *name* may carry further requests.

        Args:
            name: a canonical name that policy has allowed.
            port: its port.
            address: where the connection leads, as `Dialled` says.

        Returns:
            None when the name no longer leads there, to nothing that may be reached, or does not resolve.
        """
        try:
            addresses, until = await self._resolve(name, port)
        except (DialDenied, DialError):
            return None
        return until if address in {_endpoint(str(found), port) for found in addresses} else None

    async def literal(self, address: Address, port: int) -> Dialled:
        """Connect to an address that policy has allowed; raises as `name`."""
        if str(address) not in self._own_allowed and self._is_own(str(address)):
            raise DialDenied(_own_verdict(str(address)))
        if self._proxy is not None:
            return await self._through_proxy(_endpoint(str(address), port))
        try:
            return await self._connect(str(address), port)
        except (OSError, TimeoutError) as error:
            raise DialError(
                "upstream_unreachable", f"{address}:{port} cannot be reached ({_why(error)})"
            ) from error

    async def _resolve(self, name: str, port: int) -> tuple[list[Address], float]:
        """Return the judged addresses, and until when (loop time) they are the name's."""
        try:
            resolution = await self._resolver.resolve(name)
        except (OSError, TimeoutError) as error:
            raise DialError("dns_failed", f"the resolver did not answer for {name}") from error
        if resolution.denied is not None:
            raise DialDenied(resolution.denied)
        found = [ipaddress.ip_address(str(address)) for address in resolution.addresses]
        if not found:
            raise DialError("dns_failed", f"{name} does not resolve (rcode {resolution.rcode})")
        allowed: list[Address] = []
        denied: Verdict | None = None
        for address in found:
            verdict = self._policy.resolved(name, address, port)
            if verdict.allow and str(address) not in self._own_allowed and self._is_own(str(address)):
                verdict = _own_verdict(str(address))
            if verdict.allow:
                allowed.append(address)
            else:
                denied = denied or verdict
        if not allowed:
            raise DialDenied(denied or Verdict(False, "builtin:default-deny", "dns", "no address"))
        allowed.sort(key=lambda address: address.version)
        return allowed, asyncio.get_running_loop().time() + resolution.ttl

    def _is_own(self, text: str) -> bool:
        """
        Say whether *text* is an address of this host.

        Only an address of its own can be bound, which is one cheap question that needs no list of
        interfaces and is right for secondary addresses and for every family.
        """
        now = asyncio.get_running_loop().time()
        known = self._own.get(text)
        if known is not None and known[0] > now:
            return known[1]
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        own = False
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((text, 0))
            own = True
        if len(self._own) > 4096:
            self._own.clear()
        self._own[text] = (now + _OWN_CACHE_S, own)
        return own

    async def _connect(self, address: str, port: int) -> Dialled:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            code = sock.connect_ex((address, port))
            if code == errno.EINPROGRESS:
                await _writable(sock)
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        return Dialled(sock, _endpoint(address, port))

    async def _trusted(self, host: str, port: int) -> Dialled:
        """Connect to a place the operator named; its address is not judged."""
        try:
            ipaddress.ip_address(host)
            candidates = [host]
        except ValueError:
            loop = asyncio.get_running_loop()
            try:
                infos = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            except OSError as unresolved:
                raise DialError("dns_failed", "the configured stand-in does not resolve") from unresolved
            candidates = [str(info[4][0]) for info in infos]
        error: Exception | None = None
        for address in candidates:
            try:
                return await self._connect(address, port)
            except (OSError, TimeoutError) as caught:
                error = caught
        raise DialError("upstream_unreachable", f"the configured stand-in does not answer ({_why(error)})")

    async def _through_proxy(self, authority: str) -> Dialled:
        proxy = self._proxy
        if proxy is None or not proxy.hostname:
            raise DialError("upstream_proxy", "the configured proxy has no host name")
        dialled = await self._trusted(proxy.hostname, proxy.port or 3128)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                await self._ask_proxy(dialled.sock, authority)
        except (OSError, TimeoutError, ValueError) as error:
            dialled.sock.close()
            raise DialError("upstream_proxy", f"the configured proxy refused {authority}") from error
        except BaseException:
            dialled.sock.close()
            raise
        return Dialled(dialled.sock, f"{authority} via {dialled.address}")

    async def _ask_proxy(self, sock: socket.socket, authority: str) -> None:
        lines = [f"CONNECT {authority} HTTP/1.1", f"Host: {authority}"]
        if self._proxy is not None and self._proxy.username:
            pair = f"{unquote(self._proxy.username)}:{unquote(self._proxy.password or '')}"
            lines.append("Proxy-Authorization: Basic " + base64.b64encode(pair.encode()).decode())
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(sock, "\r\n".join([*lines, "", ""]).encode())
        answer = b""
        while not answer.endswith(b"\r\n\r\n"):
            # One byte at a time: what follows the answer belongs to the tunnel.
            byte = await loop.sock_recv(sock, 1)
            answer += byte
            if not byte or len(answer) > 16384:
                raise ValueError("no answer")
        if not answer.startswith((b"HTTP/1.1 200", b"HTTP/1.0 200")):
            raise ValueError("refused")


def _endpoint(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


async def _writable(sock: socket.socket) -> None:
    """
    Wait until a connection is made or has failed; raises TimeoutError.

    The loop's own `sock_connect` sends even a numeric address through the resolver's thread pool.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    timer = loop.call_later(CONNECT_TIMEOUT_S, _fail, done)
    loop.add_writer(sock.fileno(), _finish, done)
    try:
        await done
    finally:
        timer.cancel()
        loop.remove_writer(sock.fileno())


def _finish(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


def _fail(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_exception(TimeoutError())


def _own_verdict(address: str) -> Verdict:
    return Verdict(False, "builtin:own-host", "dns", f"{address} belongs to the host the gate runs on")


def _why(error: Exception | None) -> str:
    if isinstance(error, TimeoutError):
        return "timed out"
    if isinstance(error, OSError) and error.errno is not None:
        return error.strerror or "refused"
    return "refused" if error is None else type(error).__name__
