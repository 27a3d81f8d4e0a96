"""
HTTP on one client connection: every request is judged anew, then carried out or refused.

The same functions serve the transparent path, the explicit proxy and decrypted TLS; what differs is the
`Scope`, which says what the connection itself was allowed for.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.errors import AuditError, KmError
from km_core.policy import INSIDE_NAME, is_public_resolver
from km_core.types import Verdict
from km_net_proxy.aws import judge_aws_request
from km_net_proxy.git.requests import GitRequests
from km_net_proxy.http.account import Account
from km_net_proxy.http.connections import HEAD_TIMEOUT_S, IDLE_TIMEOUT_S, Destination
from km_net_proxy.http.dial import DialDenied, DialError
from km_net_proxy.http.doh import asks_resolver
from km_net_proxy.http.exchange import ClientBodyError, Exchange, UpstreamLostError, request_head
from km_net_proxy.http.head import HeadError, RequestHead, as_read, check_partial, overridden, parse_request
from km_net_proxy.http.injection import ControlPlaneLostError, CredentialError, Sending, outgoing
from km_net_proxy.http.metered import ModelCalls
from km_net_proxy.http.refusal import printable
from km_net_proxy.http.scope import RequestRefused, Scope, Target, authority_of
from km_net_proxy.http.websocket import SWITCH, accept_for, carry
from km_net_proxy.http.withheld import Withheld
from km_net_proxy.inside_services import read_body
from km_net_proxy.lease import LAPSED

if TYPE_CHECKING:
    from km_core.policy import Authority
    from km_core.types import Meter
    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.context import GateContext
    from km_net_proxy.http.exchange import Outcome
    from km_net_proxy.http.stream import Stream
    from km_net_proxy.http.upstream import Upstream

_LINGER_S = 1.0
_LINGER_BYTES = 1 << 20
_UPGRADE_REQUIRED = 426
_CODINGS = frozenset({b"accept-encoding", b"sec-websocket-extensions"})
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
_UNRECORDED = Verdict(False, "builtin:audit", "http", "the decision cannot be recorded")
_METHOD = Verdict(False, "builtin:http-method", "http", "this method is not served here")


class Session:
    """
    Serves requests on one stream.

    Args:
        gate: the shared parts.
        connection: whose time this uses.
        client: the stream.
        scope: what the connection was made to.
    """

    def __init__(self, gate: GateContext, connection: Connection, client: Stream, scope: Scope) -> None:
        self.gate = gate
        self.connection = connection
        self.client = client
        self.scope = scope
        self._account = Account(gate.evidence, connection, client)

    async def run(self) -> None:
        """Serve until the client is done, then close the stream."""
        try:
            await self._requests()
        except BaseException as error:
            self._account.close("cut" if isinstance(error, asyncio.CancelledError) else type(error).__name__)
            raise
        self._account.close()
        self.client.close()

    async def _requests(self) -> None:
        while True:
            self.connection.extend(HEAD_TIMEOUT_S)
            try:
                head = await self.client.read_head(check_partial)
                if not head:
                    break
                request = parse_request(head)
            except HeadError as error:
                await self._malformed(str(error))
                break
            if not await self._serve(request):
                break
        self.client.close()

    async def _serve(self, request: RequestHead) -> bool:
        """Answer one request; True when the connection can carry another."""
        try:
            return await self._answer(request)
        except RequestRefused as refusal:
            close = refusal.close or not request.keep_alive or request.minor == 0 or request.length != 0
            self.client.write(refusal.wire(close=close, head_only=request.method == "HEAD"))
            if close:
                await self.linger()
            return not close
        except AuditError:
            self.client.write(self._refused(503, "audit_unavailable", _UNRECORDED).wire(close=True))
            await self.linger()
            return False

    async def _answer(self, request: RequestHead) -> bool:
        target = self.target_of(request)
        host, port = target.authority.host, target.authority.port
        if host == INSIDE_NAME and not self.scope.tls and port == 80:
            return await self._inside(request, target)
        self._judge(request, target)
        if not self.gate.lease.valid:
            self._unleased(host)
        meter = self.gate.meters.get(host)
        accept = self._upgrade(request, target, meter)
        if asks_resolver(request, target.path) and not is_public_resolver(host):
            # Only an exact rule opens a public resolver's host: that is the profile's own word.
            self.deny("builtin:dns-over-https", "http", "DNS over HTTPS would pass the DNS filter by", target)
        if self.gate.intercepts(host):
            if not self.scope.tls:
                self.deny("builtin:intercepted-host", "http", "this host is reached over https only", target)
            if overridden(request.index):
                self.deny(
                    "builtin:method-override", "http", "a field asks for another method or path", target
                )
            if request.method in ("CONNECT", "TRACE"):
                raise self._refused(405, "method_not_allowed", _METHOD, str(target.authority))
        if meter is not None:
            return await ModelCalls(self, meter).serve(request, target)
        git = self.gate.policy.git
        if git is not None and self.gate.filters_git(host):
            return await GitRequests(self, git).serve(request, target)
        if self.gate.aws is not None and self.gate.aws.covers(host):
            body = await judge_aws_request(self, self.gate.aws, request, target)
            return await self.forward(request, target, body, accept=accept)
        return await self.forward(request, target, accept=accept)

    def _upgrade(self, request: RequestHead, target: Target, meter: Meter | None) -> bytes:
        """
        Judge a protocol upgrade: WebSockets pass where nothing in them has to be read.

        Returns:
            What a server answers to a WebSocket handshake (`accept_for`); empty for a plain request.
        """
        upgrade = request.index.get(b"upgrade", b"").lower()
        if not upgrade or (upgrade == b"h2c" and meter is None):
            return b""  # h2c is an offer, which the gate does not pass on
        if upgrade != b"websocket":
            self.deny("builtin:upgrade", "http", "only upgrades to WebSocket pass the HTTP filter", target)
        if meter is not None:
            # Clients that can do without take this status for "then over HTTP"; others give up at once.
            reason = "what a WebSocket to a model host costs is not metered"
            self.deny("builtin:upgrade", "http", reason, target, status=_UPGRADE_REQUIRED)
        if self.gate.filters_git(target.authority.host):
            self.deny("builtin:upgrade", "http", "a WebSocket cannot be judged by repository", target)
        try:
            return accept_for(request)
        except HeadError as error:
            raise self._refused(400, "http_malformed", self._malformed_event(str(error))) from error

    async def _sending(self, request: RequestHead, target: Target) -> Sending:
        """Return what goes out: with the operator's credential where a rule says so."""
        host = target.authority.host
        rule = self.gate.injections.get(host)
        if rule is None:
            return Sending(target.path, request.fields)
        try:
            sending = await outgoing(self.gate, rule, request, target)
        except ControlPlaneLostError as error:
            raise self._refused(503, "control_plane_unavailable", LAPSED, close=False) from error
        except CredentialError as error:
            verdict = Verdict(False, "builtin:credential", "http", error.message)
            self.gate.evidence.decided(verdict, "http_request", name=host, port=target.authority.port)
            raise self._refused(403, error.code, verdict, str(target.authority), close=False) from error
        # Asked for plain, so that the answer can be read.
        kept = [f for f in sending.fields if as_read(f[0]) not in _CODINGS]
        return evolve(sending, fields=kept, own=(*sending.own, (b"Accept-Encoding", b"identity")))

    def _withholding(self, sending: Sending, target: Target) -> Withheld | None:
        """Return what keeps the operator's credential out of the answer, where there is one."""
        if not sending.withheld:
            return None
        named, event = target.authority, self.gate.evidence.event

        def found() -> None:
            event("credential_withheld", layer="http", name=named.host, port=named.port)

        return Withheld(sending.withheld, found)

    def target_of(self, request: RequestHead) -> Target:
        """
        Work out where a request goes, and refuse one whose parts contradict each other.

        Raises:
            RequestRefused: 400 for a malformed target, 421 for another host than the connection's.
        """
        scope = self.scope
        if request.method in ("CONNECT", "PRI"):
            raise self._refused(405, "method_not_allowed", _METHOD)
        try:
            host = request.index.get(b"host", b"").decode("ascii")
            if request.target.startswith("/") or request.target == "*":
                if scope.explicit:
                    raise ValueError("a proxy request needs an absolute URL")
                if request.target == "*" and request.method != "OPTIONS":
                    raise ValueError("only OPTIONS has the target *")
                path = request.target
                named = authority_of(host, scope.port)
            else:
                named, path = self._absolute(request.target, host)
        except (ValueError, UnicodeDecodeError) as error:
            raise self._refused(400, "http_malformed", self._malformed_event(str(error))) from error
        if not scope.explicit:
            self._same_host(named, request)
        default = 443 if scope.tls else 80
        text = f"[{named.host}]" if ":" in named.host else named.host
        return Target(named, path, text if named.port == default else f"{text}:{named.port}")

    def _absolute(self, target: str, host: str) -> tuple[Authority, str]:
        scheme, mark, rest = target.partition("://")
        if not mark or scheme.lower() != self.scope.scheme:
            raise ValueError(f"the target is neither a path nor an {self.scope.scheme}:// URL")
        cut = min((rest.find(c) for c in "/?" if c in rest), default=len(rest))
        text, path = rest[:cut], rest[cut:]
        default = 443 if self.scope.tls else 80
        named = authority_of(text, default)
        if host not in ("", text) and authority_of(host, default) != named:
            raise ValueError("the URL and the Host field name different hosts")
        return named, path if path.startswith("/") else "/" + path

    def _same_host(self, named: Authority, request: RequestHead) -> None:
        """Refuse a request for another host than the one dialled (SNI = Host = dialled name)."""
        scope = self.scope
        if scope.name:
            same = named.address is None and named.host == scope.name
        else:
            same = named.address is None or named.address == scope.address
        if same and named.port == scope.port:
            return
        verdict = Verdict(
            False, "builtin:host-mismatch", "http", "the Host field names another host than the connection"
        )
        self.gate.evidence.decided(
            verdict,
            "http_request",
            name=scope.name or str(scope.address),
            port=scope.port,
            detail=f"{request.method} Host: {printable(str(named), 260)}",
        )
        raise RequestRefused.denied(
            verdict, sandbox=self.gate.sandbox_id, target=str(named), status=421, close=True
        )

    def _judge(self, request: RequestHead, target: Target) -> None:
        """Ask policy about one request; record the answer before it has any effect."""
        named, policy = target.authority, self.gate.policy
        if named.address is not None:
            verdict = policy.address(named.address, named.port, "http")
        else:
            verdict = policy.connect(named.host, named.port, "http")
            if verdict.allow and self.scope.address is not None:
                # A name on a connection to a literal address: both must be allowed.
                verdict = policy.address(self.scope.address, self.scope.port, "http")
                if verdict.allow and self.gate.intercepts(named.host):
                    verdict = Verdict(
                        False, "builtin:host-mismatch", "http", "this host is not reached by address"
                    )
        if verdict.allow and policy.https_only and not self.scope.tls:
            verdict = Verdict(False, "builtin:https-only", "http", "the profile allows HTTPS only")
        detail = request.method
        if not verdict.allow:
            detail += " " + printable(target.path.partition("?")[0], 200)
        name = "" if named.address is not None else named.host
        self.gate.evidence.decided(
            verdict,
            "http_request",
            name=name,
            address="" if named.address is None else str(named.address),
            port=named.port,
            detail=detail,
        )
        if not verdict.allow:
            raise self._denied(verdict, named)
        self.connection.destination = Destination(name, named.address or self.scope.address, named.port)
        self._account.request(self.connection.destination)

    def deny(self, rule: str, layer: str, reason: str, target: Target, *, status: int = 403) -> None:
        """Record and answer a denial that is not the network policy's."""
        verdict = Verdict(False, rule, layer, reason)
        named = target.authority
        self.gate.evidence.decided(verdict, "http_request", name=named.host, port=named.port)
        refused = self._denied(verdict, named)
        refused.status = status
        if status == _UPGRADE_REQUIRED:
            # What to speak instead (RFC 9110 section 15.5.22).
            refused.headers += (("Upgrade", "HTTP/1.1"),)
        raise refused

    def _denied(self, verdict: Verdict, named: Authority) -> RequestRefused:
        entry = self.gate.entry_for(verdict, named)
        return RequestRefused.denied(verdict, sandbox=self.gate.sandbox_id, target=str(named), entry=entry)

    def _refused(
        self, status: int, code: str, verdict: Verdict, target: str = "", *, close: bool = True
    ) -> RequestRefused:
        """Return a refusal in the gate's own JSON; *target* is the connection's unless given."""
        target = target or str(self.scope)
        return RequestRefused.told(
            status, code, verdict, sandbox=self.gate.sandbox_id, target=target, close=close
        )

    def _unleased(self, host: str) -> None:
        self.gate.evidence.decided(LAPSED, "http_request", name=host)
        if host in self.gate.meters and self.scope.tls:
            return  # answered in the provider's own shape
        raise self._refused(503, "control_plane_unavailable", LAPSED, close=False)

    async def _inside(self, request: RequestHead, target: Target) -> bool:
        inside = self.gate.inside
        service = inside.added(target.path)
        verdict = self.gate.policy.connect(INSIDE_NAME, 80, "http")
        # Only names that exist are told apart: others could make ever new records.
        detail = request.method if service is None else f"{request.method} /{service.name}"
        self.gate.evidence.decided(verdict, "inside_request", name=INSIDE_NAME, port=80, detail=detail)
        if service is None:
            close = not request.keep_alive or request.minor == 0 or request.length != 0
            self.client.write(await inside.answer(request.method, target.path, close=close))
        else:
            if not self.gate.lease.valid:
                self._unleased(INSIDE_NAME)
            body = await read_body(self.client, self.connection, request, self.gate.room)
            close = not request.keep_alive or request.minor == 0
            self.connection.extend(IDLE_TIMEOUT_S)
            self.client.write(
                await inside.answer_added(
                    service, request.method, target.path, headers=request.headers(), body=body, close=close
                )
            )
        if close:
            await self.linger()
        return not close

    async def forward(
        self, request: RequestHead, target: Target, body: bytes | None = None, *, accept: bytes = b""
    ) -> bool:
        """
        Carry out a request that no meter is concerned with.

        Args:
            request: the head.
            target: where it goes.
            body: when it has been read already.
            accept: of a WebSocket handshake, see `_upgrade`.
        """
        sending = await self._sending(request, target)
        length = None if body is None else len(body)
        head = request_head(
            request,
            sending.path,
            target.host,
            sending.fields,
            length=length,
            own=(*sending.own, *(SWITCH if accept else ())),
        )
        tap = self._withholding(sending, target)
        exchange = Exchange(
            self.connection, self.client, request, idle_s=IDLE_TIMEOUT_S, accept=accept, tap=tap
        )
        upstream = await self.open(target, fresh=accept != b"")
        while True:
            try:
                outcome, reusable = await exchange.run(upstream, head, body)
            except UpstreamLostError as error:
                upstream.stream.abort()
                replay = (
                    upstream.reused and not error.started and request.length == 0 and request.method in _SAFE
                )
                if replay and not self.client.lost:
                    # The server closed a kept connection while the request was on its way.
                    upstream = await self.open(target, fresh=True)
                    continue
                return self.lost(error, started=exchange.started)
            except ClientBodyError as error:
                upstream.stream.abort()
                raise self._refused(400, "http_malformed", self._malformed_event(str(error))) from error
            except BaseException:
                upstream.stream.abort()
                raise
            break
        if outcome.status == 101:
            await carry(self, upstream, target, tap)
            return False
        rule = self.gate.injections.get(target.authority.host)
        if rule is not None and outcome.status == 401:
            self.gate.secrets.doubt(rule.secret)
        return await self.finish(upstream, outcome, reusable=reusable)

    async def finish(self, upstream: Upstream, outcome: Outcome, *, reusable: bool) -> bool:
        """Give the server's connection back; True when the client's can carry another request."""
        if reusable:
            self.gate.upstreams.keep(upstream)
        else:
            upstream.stream.close()
        if not outcome.keep_client:
            await self.linger()
        return outcome.keep_client

    async def open(self, target: Target, *, fresh: bool = False) -> Upstream:
        """Return a connection for *target*; raises RequestRefused with 403 or 502."""
        named = target.authority
        try:
            if self.scope.address is not None:
                return await self.gate.upstreams.open_literal(
                    self.scope.address, self.scope.port, tls=self.scope.tls
                )
            if named.address is not None:
                return await self.gate.upstreams.open_literal(named.address, named.port)
            return await self.gate.upstreams.open(named.host, named.port, tls=self.scope.tls, fresh=fresh)
        except DialDenied as denied:
            self.gate.evidence.decided(denied.verdict, "http_request", name=named.host, port=named.port)
            raise self._denied(denied.verdict, named) from denied
        except DialError as error:
            raise RequestRefused.error(502, error.code, printable(str(error))) from error
        except KmError as error:
            raise RequestRefused.error(502, error.code, error.what) from error

    def lost(self, error: UpstreamLostError, *, started: bool) -> bool:
        """Tell the client that the server went away: 502, or a broken connection once bytes have gone."""
        if self.client.lost:
            return False
        if started:
            # An orderly end would make a cut-off body look whole.
            self.client.reset()
            return False
        raise RequestRefused.error(502, "upstream_lost", str(error))

    async def _malformed(self, why: str) -> None:
        verdict = Verdict(False, "builtin:http-malformed", "http", why)
        with contextlib.suppress(AuditError):
            self._malformed_event(why)
        self.client.write(self._refused(400, "http_malformed", verdict).wire(close=True))
        await self.linger()

    def _malformed_event(self, why: str) -> Verdict:
        verdict = Verdict(False, "builtin:http-malformed", "http", why)
        scope = self.scope
        self.gate.evidence.decided(
            verdict, "http_malformed", name=scope.name, address=str(scope.address or ""), port=scope.port
        )
        return verdict

    async def linger(self) -> None:
        """
        Let the client read its answer before the connection goes.

        Closing a socket with unread bytes in it sends a reset, which destroys the answer on its way.
        """
        client = self.client
        with contextlib.suppress(TimeoutError, OSError):
            async with asyncio.timeout(_LINGER_S):
                await client.drain()
                if not client.lost and client.transport.can_write_eof():
                    client.transport.write_eof()
                seen = 0
                while seen < _LINGER_BYTES:
                    data = await client.read()
                    if not data:
                        break
                    seen += len(data)
