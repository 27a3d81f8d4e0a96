"""
Model calls: recognised, bounded, reserved, sent with the operator's credential, metered, settled.

Order per request (spec/metering-budget.md section 6): endpoint, credential, body, reservation, forward,
meter, settle.  Only these requests are buffered: what a call may cost must be known before it leaves.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.errors import KmError
from km_core.policy.ai_paths import store_denied, stored_at
from km_core.types import EndpointKind, Verdict
from km_net_proxy.budget import Refused, unavailable
from km_net_proxy.http.coding import CodingError, acceptable, decode_whole
from km_net_proxy.http.connections import CALL_TIMEOUT_S, IDLE_TIMEOUT_S
from km_net_proxy.http.exchange import (
    ClientBodyError,
    Exchange,
    UpstreamLostError,
    body_of,
    request_head,
)
from km_net_proxy.http.head import HeadError
from km_net_proxy.http.injection import ControlPlaneLostError, CredentialError, outgoing
from km_net_proxy.http.refusal import printable
from km_net_proxy.http.scope import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.types import CallPlan, Endpoint, InjectionRule, Meter, Usage
    from km_core.types.meter import Decoder, ResponseFilter, UsageParser
    from km_net_proxy.budget import Reservation
    from km_net_proxy.http.context import BodyRoom
    from km_net_proxy.http.head import RequestHead, ResponseHead
    from km_net_proxy.http.injection import Sending
    from km_net_proxy.http.scope import Target
    from km_net_proxy.http.session import Session

MAX_BODY = 32 * 1024 * 1024
"""Largest body of a metered request, in bytes, before and after its content coding is taken off."""
DRAIN_S = 60.0
"""How long an answer is read on after its client has gone, for its usage."""
DRAIN_BYTES = 8 * 1024 * 1024

_MAX_CONTAINERS = 1_000_000
"""Brackets and braces in a body: each may become an object of 64 bytes where the text has two."""
_MAX_MEMBERS = 4_000_000
_MAX_MODEL = 256
"""Longest model name, as in the ledger."""

_CODING_DROPPED = frozenset({b"accept-encoding", b"content-encoding", b"expect", b"content-md5", b"digest"})


class _DrainEnoughError(UpstreamLostError):
    """The client is gone and the answer runs on for longer than is worth waiting."""


class MeterTap:
    """
    Reads a response's usage as it passes, in constant memory.

    Args:
        meter: the provider's rules.
        endpoint: what was called.
        plan: the call.
    """

    def __init__(self, meter: Meter, endpoint: Endpoint, plan: CallPlan) -> None:
        self._meter = meter
        self._endpoint = endpoint
        self._plan = plan
        self._parser: UsageParser | None = None
        self._decoder: Decoder | None = None
        self._filter: ResponseFilter | None = None
        self._loop = asyncio.get_running_loop()
        self._drain_until = 0.0
        self._drained = 0
        self.status = 0

    @property
    def rewrites(self) -> bool:
        """Whether the client gets other bytes than came."""
        return self._filter is not None

    def drain(self) -> None:
        """Note that the client is gone."""
        self._drain_until = self._loop.time() + DRAIN_S

    def begin(self, response: ResponseHead) -> None:
        """Set the parser up for a response."""
        headers = response.headers()
        self.status = response.status
        self._parser = self._meter.parser(self._endpoint, self._plan, response.status, headers)
        coding = headers.get("content-encoding", "")
        self._decoder = self._meter.decoder(coding)
        if response.status < 300 and coding.strip().lower() in ("", "identity"):
            self._filter = self._meter.response_filter(self._plan)

    def feed(self, data: bytes) -> bytes:
        """Meter *data* and return what the client gets."""
        if self._drain_until:
            self._drained += len(data)
            if self._drained > DRAIN_BYTES or self._loop.time() > self._drain_until:
                raise _DrainEnoughError("the client is gone", started=True)
        decoder, parser = self._decoder, self._parser
        if decoder is not None and parser is not None and not decoder.failed:
            plain = decoder.feed(data)
            parser.feed(plain)
        return data if self._filter is None else self._filter.feed(data)

    def more(self) -> bool:
        """Meter the next piece of what inflates to many; False when there is none."""
        decoder, parser = self._decoder, self._parser
        if decoder is None or parser is None or decoder.failed or not decoder.pending:
            return False
        parser.feed(decoder.feed(b""))
        return True

    def end(self) -> bytes:
        """Return what the filter still holds."""
        return b"" if self._filter is None else self._filter.finish()

    def usage(self) -> Usage | None:
        """Return the usage seen, or None when none could be read; may be called once."""
        parser, decoder = self._parser, self._decoder
        if parser is None or decoder is None:
            return None
        rest = decoder.finish()
        if rest:
            parser.feed(rest)
        self._parser = None
        # What could not be decoded may have held anything: it counts as not heard.
        return None if decoder.failed else parser.finish()


class _Hold:
    """What one call's body takes of the gate's `BodyRoom`."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._taken = 0

    def more(self, count: int) -> None:
        if not self._room.take(count):
            raise Refused("gate_busy", "too many large model calls are under way at once; try again")
        self._taken += count

    def release(self) -> None:
        self._room.give(self._taken)
        self._taken = 0


class ModelCalls:
    """
    Serves requests to one metered host.

    Args:
        session: the client's.
        meter: the host's rules.
    """

    def __init__(self, session: Session, meter: Meter) -> None:
        self._session = session
        self._gate = session.gate
        self._meter = meter
        self._host = ""

    async def serve(self, request: RequestHead, target: Target) -> bool:
        """Carry out or refuse one request; True when the connection can carry another."""
        self._host = target.authority.host
        try:
            return await self._serve(request, target)
        except Refused as refused:
            self._record(refused, target)
            raise self._in_provider_shape(refused, request) from refused

    def _record(self, refused: Refused, target: Target) -> None:
        layer = "lease" if refused.code == "control_plane_unavailable" else "budget"
        verdict = Verdict(False, f"builtin:{refused.code}", layer, refused.message)
        self._gate.evidence.decided(
            verdict,
            "ai_call",
            name=target.authority.host,
            port=target.authority.port,
            detail=self._meter.name,
        )

    def _in_provider_shape(self, refused: Refused, request: RequestHead) -> RequestRefused:
        status, body = self._meter.refusal(refused.code, refused.message, refused.km)
        headers = [("X-Should-Retry", "false")] if status != 503 else []
        if refused.exhausted:
            headers.append(("X-Km-Budget", "exhausted"))
        return RequestRefused(
            status,
            body,
            content_type="application/json",
            headers=tuple(headers),
            # A body that nobody read would be taken for the next request.
            close=request.length != 0,
        )

    async def _serve(self, request: RequestHead, target: Target) -> bool:
        if not self._gate.lease.valid:
            raise unavailable()
        headers = request.headers()
        endpoint = self._meter.endpoint(request.method, target.path, headers)
        if (kept := stored_at(target.path, request.method)) is not None:
            raise Refused("ai_path_stores_data", store_denied(kept))
        if endpoint.kind is EndpointKind.REFUSED and await self._gate.budget.has_ceiling():
            raise Refused(
                "ai_endpoint_not_metered",
                endpoint.reason or "this endpoint bills without saying how much, and a ceiling is set",
            )
        sending = await self._credentials(request, target)
        if endpoint.kind is not EndpointKind.METERED:
            return await self._pass(request, target, sending)
        hold = _Hold(self._gate.room)
        try:
            body = await self._body(request, hold)
            plan = await self._plan(endpoint, headers, body)
            reservation = await self._gate.budget.reserve(self._meter.name, plan)
            return await self._call(request, target, sending, endpoint=endpoint, reservation=reservation)
        finally:
            hold.release()

    @property
    def _rule(self) -> InjectionRule | None:
        """The operator's rule for this host outweighs the provider's."""
        return self._gate.injections.get(self._host, self._meter.injection)

    async def _credentials(self, request: RequestHead, target: Target) -> Sending:
        """Return what is sent: the operator's credential instead of the client's, and a clean path."""
        try:
            return await outgoing(self._gate, self._rule, request, target, prefix="ai_")
        except ControlPlaneLostError as error:
            raise unavailable() from error
        except CredentialError as error:
            km: dict[str, object] = {"code": error.code, "next": error.next_step} if error.next_step else {}
            raise Refused(error.code, error.message, km) from error

    async def _pass(self, request: RequestHead, target: Target, sending: Sending) -> bool:
        """Carry out a request that costs nothing, or that nobody counts."""
        session = self._session
        head = request_head(request, sending.path, target.host, sending.fields, own=sending.own)
        exchange = Exchange(session.connection, session.client, request, idle_s=IDLE_TIMEOUT_S)
        upstream = await session.open(target)
        try:
            outcome, reusable = await exchange.run(upstream, head)
        except UpstreamLostError as error:
            upstream.stream.abort()
            return session.lost(error, started=exchange.started)
        except ClientBodyError as error:
            upstream.stream.abort()
            raise RequestRefused.error(400, "http_malformed", str(error), close=True) from error
        except BaseException:
            upstream.stream.abort()
            raise
        self._doubt(outcome.status)
        return await session.finish(upstream, outcome, reusable=reusable)

    def _doubt(self, status: int) -> None:
        if status == 401 and self._rule is not None:
            self._gate.secrets.doubt(self._rule.secret)

    async def _body(self, request: RequestHead, hold: _Hold) -> bytes:
        """Read the whole request body, decoded."""
        session = self._session
        if request.length > MAX_BODY:
            raise Refused("ai_request_too_large", f"a model call may have at most {MAX_BODY} bytes")
        if b"expect" in request.index and request.length:
            session.client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        pieces: list[bytes] = []
        size = 0
        try:
            async for piece in body_of(session.client, request.length):
                session.connection.extend(IDLE_TIMEOUT_S)
                size += len(piece)
                if size > MAX_BODY:
                    raise Refused("ai_request_too_large", f"a model call may have at most {MAX_BODY} bytes")
                hold.more(len(piece))
                pieces.append(piece)
        except (HeadError, UpstreamLostError) as error:
            raise RequestRefused.error(400, "http_malformed", str(error), close=True) from error
        # The body is read: the connection can be used on after a refusal.
        request.length = 0
        coding = request.index.get(b"content-encoding", b"").decode("latin-1")
        try:
            # Of a coded body the size says nothing.
            cost = MAX_BODY if coding else size
            body = await self._gate.room.read(cost, decode_whole, coding, b"".join(pieces), MAX_BODY)
        except CodingError as error:
            raise Refused("ai_request_unreadable", f"the request's body cannot be read: {error}") from error
        hold.more(max(len(body) - size, 0))
        return body

    async def _plan(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> CallPlan:
        if body.count(b"[") + body.count(b"{") > _MAX_CONTAINERS or body.count(b",") > _MAX_MEMBERS:
            raise Refused("ai_request_unreadable", "the request's body has too many parts to be read")
        try:
            plan = await self._gate.room.read(len(body), self._meter.plan_call, endpoint, headers, body)
        except (KmError, ValueError, TypeError, KeyError, RecursionError) as error:
            # What cannot be read cannot be bounded.
            raise Refused("ai_request_unreadable", "the request's body cannot be read") from error
        if len(plan.model) > _MAX_MODEL:
            raise Refused("ai_request_unreadable", f"a model's name has at most {_MAX_MODEL} characters")
        if plan.refusal and await self._gate.budget.has_ceiling():
            if plan.lesser is None:
                raise Refused("ai_call_unbounded", plan.refusal)
            return plan.lesser
        return plan

    async def _call(
        self,
        request: RequestHead,
        target: Target,
        sending: Sending,
        *,
        endpoint: Endpoint,
        reservation: Reservation,
    ) -> bool:
        """Send a reserved call and settle it, however it ends."""
        session, plan = self._session, reservation.plan
        clamped = reservation.output_limit
        # The answer is bounded by what was really sent: a clamped call by its lower limit.
        bounded = plan if clamped is None else evolve(plan, output_limit=clamped)
        tap = MeterTap(self._meter, endpoint, bounded)
        sent = settled = False

        def client_lost() -> None:
            # The provider bills what it produces whether somebody reads it or not.
            tap.drain()
            exchange.limit(DRAIN_S)

        try:
            body = plan.body
            if reservation.output_limit is not None:
                body = self._meter.clamp(endpoint, plan, reservation.output_limit)
            accepted = (
                None
                if plan.strips_usage_chunk
                else request.index.get(b"accept-encoding", b"").decode("latin-1")
            )
            self._allowed(endpoint, plan, target)
            kept = [field for field in sending.fields if field[0].lower() not in _CODING_DROPPED]
            # An Accept-Encoding the gate can read.
            own = (*sending.own, (b"Accept-Encoding", acceptable(accepted).encode("ascii")))
            head = request_head(request, sending.path, target.host, kept, length=len(body), own=own)
            exchange = Exchange(
                session.connection,
                session.client,
                request,
                idle_s=CALL_TIMEOUT_S,
                tap=tap,
                added=_changed(reservation),
                on_client_lost=client_lost,
            )
            upstream = await session.open(target)
            try:
                sent = True
                outcome, reusable = await exchange.run(upstream, head, body)
            except BaseException:
                upstream.stream.abort()
                raise
            self._settle(reservation, tap, sent=True)
            settled = True
            self._doubt(outcome.status)
            return await session.finish(upstream, outcome, reusable=reusable)
        except UpstreamLostError as error:
            return session.lost(error, started=tap.status != 0)
        finally:
            if not settled:
                self._settle(reservation, tap, sent=sent)

    def _allowed(self, endpoint: Endpoint, plan: CallPlan, target: Target) -> None:
        verdict = Verdict(True, "budget.ai", "budget", "the call is reserved")
        self._gate.evidence.decided(
            verdict,
            "ai_call",
            name=target.authority.host,
            port=target.authority.port,
            detail=f"{self._meter.name} {endpoint.name} {printable(plan.model, 100)}",
        )

    def _settle(self, reservation: Reservation, tap: MeterTap, *, sent: bool) -> None:
        """Hand the call's cost to the journal; never raises, never waits."""
        budget = self._gate.budget
        if not sent:
            budget.release(reservation)
            return
        try:
            usage = tap.usage()
        except Exception:  # noqa: BLE001 - a defect in a meter must not make a call free
            usage = None
        if usage is None:
            if tap.status >= 400:
                budget.release(reservation)
            else:
                budget.settle_lost(reservation)
            return
        billed = (
            usage.input_tokens or usage.output_tokens or usage.cache_read_tokens or usage.cache_write_tokens
        )
        if tap.status >= 400 and not billed:
            budget.release(reservation)
            return
        budget.settle(reservation, usage)


def _changed(reservation: Reservation) -> bytes:
    """Return the fields that tell the client what was asked of the provider instead of what it asked."""
    fields = b""
    if reservation.output_limit is not None:
        fields += b"X-Km-Clamped: %d\r\n" % reservation.output_limit
    if reservation.plan.left_out:
        names = ", ".join(printable(name, 40) for name in reservation.plan.left_out)
        fields += b"X-Km-Left-Out: %s\r\n" % names.encode("ascii", "replace")
    return fields
