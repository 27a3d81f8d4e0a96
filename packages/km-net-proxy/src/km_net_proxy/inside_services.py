"""
Services that plugins add to the inside API, ``http://km.internal/NAME``.

What a service is asked comes from inside the sandbox; what it may do is what its `Relay` does, for this
sandbox alone.  A service that raises, hangs, or answers with something else is 503 for that request and
never harms the gate or another service: each call runs in a thread of its own, few of a service at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections import Counter
from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define, frozen

from km_core.errors import ControlUnavailableError, GuardError, UsageError
from km_core.types import InsideRequest, InsideResponse
from km_core.types.inside import PLATFORM_EVENTS, RELAYED
from km_net_proxy.http.connections import IDLE_TIMEOUT_S
from km_net_proxy.http.exchange import UpstreamLostError, body_of
from km_net_proxy.http.head import HeadError
from km_net_proxy.http.refusal import json_error
from km_net_proxy.http.scope import RequestRefused

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.types import InsideService
    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.context import BodyRoom
    from km_net_proxy.http.credentials import Control
    from km_net_proxy.http.head import RequestHead
    from km_net_proxy.http.stream import Stream

MAX_BODY = 1024 * 1024
"""Longest body of a request and of an answer, in bytes."""
TIMEOUT_S = 10.0
MAX_RUNNING = 8
"""Calls of one service at a time; one that hangs keeps its place until it ends, and takes none of the others'."""
MAX_RELAYED = 64 * 1024
"""Longest arguments of a relayed operation, in bytes on the wire."""
MAX_DEPTH = 16
"""Deepest nesting of them."""

_LOG = structlog.get_logger("km.gate.inside")
_BODILESS = frozenset({204, 205, 304})


@frozen
class Answer:
    """What goes back: a status and a JSON document."""

    status: int
    body: bytes


@define
class _Call:
    """One running call; *abandoned* once nobody waits for it any more."""

    abandoned: bool = False


class InsideServices:
    """
    The services of one gate.

    Args:
        offers: by name.
        control: the sandbox's connection to the control plane.
        sandbox_id: whose gate it is.
        timeout_s: how long a call may take.
    """

    def __init__(
        self,
        offers: Mapping[str, InsideService],
        control: Control,
        *,
        sandbox_id: str,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._offers = dict(offers)
        self._control = control
        self._sandbox_id = sandbox_id
        self._timeout_s = timeout_s
        self._targets: dict[str, Callable[..., Any]] = {}
        self._running: Counter[str] = Counter()

    @property
    def summaries(self) -> dict[str, str]:
        """What each path is for."""
        return {f"/{name}": offer.summary for name, offer in sorted(self._offers.items())}

    def find(self, target: str) -> InsideService | None:
        """Return the service that a request target in origin form asks, or None."""
        path = target.partition("?")[0]
        return self._offers.get(path[1:].partition("/")[0])

    async def answer(
        self, service: InsideService, method: str, target: str, *, headers: Mapping[str, str], body: bytes
    ) -> Answer:
        """Call a service; whatever it does, there is an answer in time."""
        path, _, query = target.partition("?")
        request = InsideRequest(
            method=method,
            path=path[1 + len(service.name) :],
            query=query,
            body=body,
            sandbox_id=self._sandbox_id,
            headers=dict(headers),
        )
        if self._running[service.name] >= MAX_RUNNING:
            return _unavailable(service, "too many requests are being answered")
        call = _Call()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._start(service, request, call)
        except TimeoutError:
            _LOG.warning("inside_service_hangs", service=service.name, timeout_s=self._timeout_s)
            return _unavailable(service, "the service does not answer")
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; its text may hold a secret
            _LOG.warning("inside_service_failed", service=service.name, error=type(error).__name__)
            return _unavailable(service, "the service cannot answer")
        finally:
            call.abandoned = True

    def _start(self, service: InsideService, request: InsideRequest, call: _Call) -> asyncio.Future[Answer]:
        """Run a call in a thread; the future is the answer, its place is given back when the thread ends."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Answer] = loop.create_future()

        def relay(op: str, /, **args: Any) -> Any:
            if op not in RELAYED:
                raise GuardError("an inside service cannot ask for this", where=op)
            if op == "event" and args.get("kind") in PLATFORM_EVENTS:
                raise GuardError("this event is the platform's own", where=op)
            _check_relayed(op, args)
            if call.abandoned:
                raise ControlUnavailableError("the request has been given up", where=op)
            asked = asyncio.run_coroutine_threadsafe(_ask(self._control, op, args), loop)
            try:
                return asked.result(self._timeout_s)
            except TimeoutError:
                asked.cancel()
                raise ControlUnavailableError("the control plane does not answer", where=op) from None

        def done(answer: Answer | None, error: BaseException | None) -> None:
            self._running[service.name] -= 1
            if future.done():
                return
            if answer is not None:
                future.set_result(answer)
            else:
                future.set_exception(RuntimeError(type(error).__name__))

        def run() -> None:
            answer, failure = None, None
            try:
                answer = _encoded(self._target(service)(request, relay))
            except BaseException as error:  # noqa: BLE001 - SystemExit must not end the thread unheard
                failure = error
            # The gate may have ended meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(done, answer, failure)

        threading.Thread(target=run, name=f"inside {service.name}", daemon=True).start()
        # After it: what could not be started holds no place, and *done* comes through this loop.
        self._running[service.name] += 1
        return future

    def _target(self, service: InsideService) -> Callable[..., Any]:
        found = self._targets.get(service.name)
        if found is None:
            module, _, function = service.target.partition(":")
            found = self._targets[service.name] = getattr(import_module(module), function)
        return found


async def read_body(client: Stream, connection: Connection, request: RequestHead, room: BodyRoom) -> bytes:
    """
    Read the whole body of a request to a service; afterwards the connection can be used on.

    Raises:
        RequestRefused: 413 above `MAX_BODY`, 503 without memory for it, 400 when it is malformed.
    """
    if request.length > MAX_BODY:
        raise _too_large()
    if not request.length:
        return b""
    if not room.take(MAX_BODY):
        raise RequestRefused.error(503, "gate_busy", "too much is being read at once", close=True)
    try:
        if b"expect" in request.index:
            client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = bytearray()
        async for piece in body_of(client, request.length):
            connection.extend(IDLE_TIMEOUT_S)
            body += piece
            if len(body) > MAX_BODY:
                raise _too_large()
    except (HeadError, UpstreamLostError) as error:
        raise RequestRefused.error(400, "http_malformed", str(error), close=True) from error
    finally:
        room.give(MAX_BODY)
    request.length = 0
    return bytes(body)


async def _ask(control: Control, op: str, args: dict[str, Any]) -> Any:
    return await control.call(op, **args)


def _check_relayed(op: str, args: dict[str, Any]) -> None:
    """
    Refuse arguments that the control plane would not read.

    The connection is the gate's own, for leases and the ledger too, and a line that is too long, too deep
    or no JSON (RFC 8259 has no NaN) ends it.
    """
    if _too_deep(args, MAX_DEPTH):
        raise UsageError(f"what is relayed is nested deeper than {MAX_DEPTH} levels", where=op)
    try:
        size = len(json.dumps(args, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError("what is relayed is not plain JSON data", where=op) from error
    if size > MAX_RELAYED:
        raise UsageError(f"what is relayed is longer than {MAX_RELAYED} bytes", where=op)


def _too_deep(value: Any, levels: int) -> bool:
    if isinstance(value, Mapping):
        return not levels or any(_too_deep(item, levels - 1) for item in value.values())
    if isinstance(value, list | tuple):
        return not levels or any(_too_deep(item, levels - 1) for item in value)
    return False


def _encoded(answer: Any) -> Answer:
    """Check and encode what a service returned, in its own thread."""
    if not isinstance(answer, InsideResponse) or not isinstance(answer.data, Mapping):
        raise TypeError("a service returns an InsideResponse with a mapping")
    status: Any = answer.status
    if type(status) is not int or not 200 <= status <= 599 or status in _BODILESS:
        raise ValueError("a service's status is that of an answer with a body")
    body = bytearray()
    # Piece by piece: one that is far too large never stands in memory whole.
    for piece in json.JSONEncoder(indent=2, allow_nan=False).iterencode(dict(answer.data)):
        body += piece.encode()
        if len(body) >= MAX_BODY:
            raise ValueError("a service's answer is too large")
    return Answer(status, bytes(body) + b"\n")


def _unavailable(service: InsideService, message: str) -> Answer:
    return Answer(503, json_error("service_unavailable", message, service=service.name))


def _too_large() -> RequestRefused:
    return RequestRefused.error(413, "request_too_large", f"at most {MAX_BODY} bytes", close=True)
