"""
From an accepted socket to what serves it: by its destination, its first byte, its server name.

Every connection is judged before anything is dialled; what is denied is told so at once in the way its
protocol allows (a page, a TLS alert, a reset) and never left hanging.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import time
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.errors import AuditError
from km_core.policy import INSIDE_NAME
from km_core.types import Verdict
from km_net_proxy.git import ssh
from km_net_proxy.http.connections import HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, Destination
from km_net_proxy.http.dial import DialDenied, DialError
from km_net_proxy.http.head import MAX_HEAD, HeadError, check_partial, parse_request
from km_net_proxy.http.hello import ClientHello, HelloError
from km_net_proxy.http.judge import METHODS, Judge
from km_net_proxy.http.peek import peek, peek_hello
from km_net_proxy.http.refusal import ACCESS_DENIED, printable
from km_net_proxy.http.relay import Relay, reset_on_close
from km_net_proxy.http.scope import RequestRefused, Scope, authority_of
from km_net_proxy.http.session import Session
from km_net_proxy.http.upstream import attach
from km_net_proxy.lease import LAPSED

if TYPE_CHECKING:
    from km_core.policy import Authority
    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.context import GateContext
    from km_net_proxy.http.dial import Dialled

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

PROXY_PORT = 3128
_DNS_PORT = 53
_TLS_BYTE = 0x16
_V4_SYNTHETIC = ipaddress.IPv4Network("198.18.0.0/15")
_V6_SYNTHETIC = ipaddress.IPv6Network("fdc0:6b6d::/64")
_ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"
_REFUSAL_WAIT_S = 2.0
_GLANCE_S = 0.03


class Dispatcher:
    """
    Serves accepted connections.

    Args:
        gate: the shared parts.
        proxy_port: port of the listener itself, where explicit proxying is served on loopback.
    """

    def __init__(self, gate: GateContext, *, proxy_port: int = PROXY_PORT) -> None:
        self._gate = gate
        self._judge = Judge(gate)
        self._proxy_port = proxy_port

    async def serve(self, connection: Connection, sock: socket.socket, address: Address, port: int) -> None:
        """
        Serve one connection to its end; closes *sock*.

        Args:
            connection: its entry.
            sock: accepted, non-blocking.
            address: where the client meant to go, read once.
            port: its port.
        """
        try:
            await self._route(connection, sock, address, port)
        except AuditError:
            reset_on_close(sock)
        except (OSError, TimeoutError):
            pass
        finally:
            sock.close()

    async def _route(self, connection: Connection, sock: socket.socket, address: Address, port: int) -> None:
        if port == _DNS_PORT:
            await self._dns(connection, sock)
            return
        if address.is_loopback and port == self._proxy_port:
            await self._explicit(connection, sock)
            return
        if address in (_V4_SYNTHETIC if address.version == 4 else _V6_SYNTHETIC):
            name = self._gate.names.lookup(address)
            if name is None:
                verdict = Verdict(
                    False, "builtin:unknown-synthetic-address", "tcp", "the address was never given out here"
                )
                await self._refuse(connection, sock, verdict, Scope("", address, port))
                return
            await self.to_name(connection, sock, name, port, layer="tcp")
            return
        await self._to_literal(connection, sock, address, port, layer="tcp")

    # -- the two kinds of destination -------------------------------------------------------------

    async def to_name(
        self, connection: Connection, sock: socket.socket, name: str, port: int, *, layer: str
    ) -> None:
        """Serve a connection to a name: the transparent path and CONNECT alike."""
        scope = Scope(name, None, port)
        if name == INSIDE_NAME and port == 80:
            await self._http(connection, sock, scope)
            return
        verdict = self._gate.policy.connect(name, port, layer)
        if await self._allowed(connection, sock, verdict, scope):
            await self._serve_name(connection, sock, scope)

    async def _serve_name(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        """Serve a connection to a name that is allowed."""
        name, port = scope.name, scope.port
        if port == 80:
            first = await peek(sock)
            if first[:1] != bytes([_TLS_BYTE]):
                await self._http(connection, sock, scope)
                return
        elif port != 443 and not self._gate.intercepts(name):
            await self._opaque(connection, sock, scope)
            return
        await self._tls(connection, sock, scope)

    async def _to_literal(
        self, connection: Connection, sock: socket.socket, address: Address, port: int, *, layer: str
    ) -> None:
        scope = Scope("", address, port)
        verdict = self._gate.policy.address(address, port, layer)
        if await self._allowed(connection, sock, verdict, scope):
            await self._serve_literal(connection, sock, scope)

    async def _serve_literal(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        """Serve a connection to a literal address that is allowed."""
        if scope.port == 80:
            first = await peek(sock)
            if first[:1] != bytes([_TLS_BYTE]):
                await self._http(connection, sock, scope)
                return
        elif scope.port == 443:
            await self._tls(connection, sock, scope)
            return
        await self._opaque(connection, sock, scope)

    async def _allowed(
        self, connection: Connection, sock: socket.socket, verdict: Verdict, scope: Scope
    ) -> bool:
        """Record the decision; refuse what is denied or not covered by a lease."""
        self._judge.decided(verdict, scope)
        if not verdict.allow:
            await self._refuse(connection, sock, verdict, scope, recorded=True)
            return False
        connection.destination = Destination(scope.name, scope.address, scope.port)
        if not self._gate.lease.valid:
            # HTTP and intercepted hosts answer 503 in their own words; the rest is just closed.
            if scope.port == 80 or (scope.port == 443 and self._gate.intercepts(scope.name)):
                return True
            await self._refuse(connection, sock, LAPSED, scope)
            return False
        return True

    # -- refusals ---------------------------------------------------------------------------------

    async def _refuse(
        self,
        connection: Connection,
        sock: socket.socket,
        verdict: Verdict,
        scope: Scope,
        *,
        recorded: bool = False,
    ) -> None:
        """Tell a client no: a page where HTTP speaks, an alert where TLS does, SSH's words, else a reset."""
        if not recorded:
            self._judge.decided(verdict, scope)
        if scope.port == ssh.PORT:
            words = ssh.goodbye(verdict, sandbox=self._gate.sandbox_id, name=scope.name)
            await self._last_words(connection, sock, words)
            return
        # Who speaks first on another port is not known: a client that waits is not kept waiting.
        patience = _REFUSAL_WAIT_S if scope.port in (80, 443) else _GLANCE_S
        connection.extend(_REFUSAL_WAIT_S)
        first = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                first = await peek(sock)
        if not first:
            reset_on_close(sock)
        elif first[0] == _TLS_BYTE:
            await self._last_words(connection, sock, ACCESS_DENIED)
        elif scope.port == 80 or first.startswith(METHODS):
            await self._last_words(connection, sock, self._page(verdict, authority_of(str(scope), None)))
        else:
            reset_on_close(sock)

    async def _last_words(self, connection: Connection, sock: socket.socket, data: bytes) -> None:
        """
        Send *data* and close so that it arrives.

        Unread bytes would turn the close into a reset that destroys the answer, so what the client
        sends is read and thrown away for a moment.
        """
        loop = asyncio.get_running_loop()
        connection.extend(HEAD_TIMEOUT_S)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1.0):
                # What the client has sent so far is taken first: an answer to a whole request.
                with contextlib.suppress(BlockingIOError):
                    sock.recv(65536)
                await loop.sock_sendall(sock, data)
                sock.shutdown(socket.SHUT_WR)
                for _ in range(16):
                    if not await loop.sock_recv(sock, 65536):
                        break

    # -- protocols --------------------------------------------------------------------------------

    async def _http(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        stream = await attach(take(sock))
        try:
            await Session(self._gate, connection, stream, scope).run()
        except BaseException:
            stream.reset()
            raise
        stream.close()

    async def _tls(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        """Judge a TLS connection by its ClientHello; open it or pass it on."""
        try:
            hello = await peek_hello(sock)
        except HelloError as error:
            verdict = Verdict(False, "builtin:tunnel-not-tls", "tls", f"tunnel_not_tls: {error}")
            self._judge.decided(verdict, scope)
            reset_on_close(sock)
            return
        verdict = self._judge.hello(hello, scope)
        if not verdict.allow:
            self._judge.decided(verdict, scope, sni=hello.sni or "")
            await self._last_words(connection, sock, ACCESS_DENIED)
            return
        if self._gate.intercepts(scope.name):
            await self._intercept(connection, sock, scope)
            return
        await self._tunnel(connection, sock, scope, hello=hello)

    async def _intercept(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        # A handshake is signed for: many at once would hold everybody up.
        await connection.turns.take()
        context = self._gate.authority.context(scope.name)
        try:
            stream = await attach(take(sock), context)
        except (OSError, TimeoutError):
            # The client does not trust the sandbox's CA, or pins another: it says so by an alert.
            self._gate.evidence.event(
                "tls_handshake_failed",
                layer="tls",
                name=scope.name,
                port=scope.port,
                connection=connection.number,
            )
            return
        try:
            await Session(self._gate, connection, stream, evolve(scope, tls=True)).run()
        except BaseException:
            stream.reset()
            raise
        stream.close()

    async def _opaque(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        """Pass on a connection on a port of its own; TLS inside it is still judged by its name."""
        await self._tunnel(connection, sock, scope)

    async def _tunnel(
        self,
        connection: Connection,
        sock: socket.socket,
        scope: Scope,
        *,
        hello: ClientHello | None = None,
    ) -> None:
        """Dial and move bytes both ways; its end is recorded with what it moved."""
        started = time.monotonic()
        connection.unopened = True
        if not self._gate.lease.valid:
            # Asked here too: the client may have taken its time, and nothing is dialled without a lease.
            self._judge.decided(LAPSED, scope)
            reset_on_close(sock)
            return
        try:
            dialled = await self._dial(scope)
        except DialDenied as denied:
            await self._refuse(connection, sock, denied.verdict, scope)
            return
        except DialError as error:
            self._gate.evidence.event(
                "dial_failed", layer="tcp", name=scope.name, port=scope.port, error=error.code
            )
            reset_on_close(sock)
            return
        connection.peer = "" if " via " in dialled.address else dialled.address
        error_text = ""
        relay: Relay | None = None
        try:
            check = self._judge.tunnel(scope, hello)
            relay = Relay(
                sock,
                dialled.sock,
                connection,
                idle_s=IDLE_TIMEOUT_S,
                check=check.up,
                answer_check=check.down,
            )
            await relay.run()
        except OSError as error:
            error_text = type(error).__name__
        except asyncio.CancelledError:
            error_text = "cut"
            reset_on_close(sock)
            reset_on_close(dialled.sock)
            raise
        finally:
            dialled.sock.close()
            up, down = relay.moved if relay is not None else (0, 0)
            self._gate.evidence.event(
                "tunnel_closed",
                layer="tcp",
                name=scope.name,
                address=dialled.address,
                port=scope.port,
                sni="" if hello is None else hello.sni or "",
                bytes_up=up,
                bytes_down=down,
                duration_ms=int((time.monotonic() - started) * 1000),
                connection=connection.number,
                error=error_text,
            )

    async def _dial(self, scope: Scope) -> Dialled:
        if scope.address is not None:
            return await self._gate.dialer.literal(scope.address, scope.port)
        return await self._gate.dialer.name(scope.name, scope.port)

    # -- explicit proxy ---------------------------------------------------------------------------

    async def _explicit(self, connection: Connection, sock: socket.socket) -> None:
        """Serve a client that talks to the gate as a proxy; CONNECT leads to the transparent path."""
        head = await peek(sock)
        while head and b"CONNECT ".startswith(head[:8]) and _incomplete(head):
            more = await peek(sock, len(head) + 1)
            if len(more) == len(head):
                return
            head = more
        end = head.find(b"\r\n\r\n") + 4
        if not head.startswith(b"CONNECT ") or end < 4:
            # Anything else, and heads that are wrong: the session has the words for it.
            await self._http(connection, sock, Scope("", None, self._proxy_port, explicit=True))
            return
        sock.recv(end)
        scope = self._judge_connect(head[:end], more=len(head) > end)
        if isinstance(scope, bytes):
            await self._last_words(connection, sock, scope)
            return
        connection.destination = Destination(scope.name, scope.address, scope.port)
        sock.send(_ESTABLISHED)  # the first bytes into an empty buffer
        if scope.address is not None:
            await self._serve_literal(connection, sock, scope)
        elif scope.name == INSIDE_NAME:
            await self._http(connection, sock, scope)
        else:
            await self._serve_name(connection, sock, scope)

    def _judge_connect(self, head: bytes, *, more: bool) -> Scope | bytes:
        """Judge a CONNECT request; returns what it leads to, or the refusal to send."""
        try:
            request = parse_request(head)
            host = request.index.get(b"host", b"").decode("ascii")
            if more or request.length:
                raise ValueError("bytes follow the head before the tunnel is open")
            authority = authority_of(request.target, None)
            if host not in ("", request.target) and authority_of(host, authority.port) != authority:
                raise ValueError("the target and the Host field differ")
        except ValueError as error:
            verdict = Verdict(False, "builtin:http-malformed", "connect", printable(str(error)))
            self._gate.evidence.decided(verdict, "http_malformed", port=self._proxy_port)
            return self._told(400, "http_malformed", verdict, f"km proxy:{self._proxy_port}")
        policy = self._gate.policy
        if authority.address is not None:
            verdict = policy.address(authority.address, authority.port, "connect")
        else:
            verdict = policy.connect(authority.host, authority.port, "connect")
        if verdict.allow and not self._gate.lease.valid:
            verdict = LAPSED
        literal = authority.address
        scope = Scope("" if literal is not None else authority.host, literal, authority.port)
        self._judge.decided(verdict, scope)
        if verdict.allow:
            return scope
        if verdict.layer == "lease":
            return self._told(503, "control_plane_unavailable", verdict, str(authority))
        return self._page(verdict, authority)

    def _page(self, verdict: Verdict, named: Authority) -> bytes:
        sandbox, entry = self._gate.sandbox_id, self._gate.entry_for(verdict, named)
        return RequestRefused.denied(verdict, sandbox=sandbox, target=str(named), entry=entry).wire(
            close=True
        )

    def _told(self, status: int, code: str, verdict: Verdict, target: str) -> bytes:
        sandbox = self._gate.sandbox_id
        return RequestRefused.told(status, code, verdict, sandbox=sandbox, target=target).wire(close=True)

    # -- DNS over TCP -----------------------------------------------------------------------------

    async def _dns(self, connection: Connection, sock: socket.socket) -> None:
        """Answer length-prefixed DNS messages (RFC 7766) with the verdicts that UDP gets."""
        dns = self._gate.dns
        if dns is None or not self._gate.lease.valid:
            self._judge.decided(LAPSED, Scope("", None, _DNS_PORT))
            reset_on_close(sock)
            return
        connection.extend(IDLE_TIMEOUT_S)
        reader, writer = await asyncio.open_connection(sock=take(sock))
        await dns.handle_tcp(reader, writer)


def _incomplete(head: bytes) -> bool:
    """Say whether more bytes may still make *head* a well-formed request head."""
    if b"\r\n\r\n" in head or len(head) > MAX_HEAD:
        return False
    try:
        check_partial(head)
    except HeadError:
        return False
    return True


def take(sock: socket.socket) -> socket.socket:
    """Return a socket object that owns *sock*'s descriptor; closing *sock* then does nothing."""
    return socket.socket(sock.family, sock.type, sock.proto, fileno=sock.detach())
