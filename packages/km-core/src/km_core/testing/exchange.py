"""One call of a model with its true figures: what a meter's author knows about the provider."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from attrs import field, frozen

from km_core.types import EndpointKind

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from km_core.types import CallPlan, Endpoint, Meter, Usage


@frozen
class Exchange:
    """
    A request and its whole answer.

    Attributes:
        name: how failures call it.
        path: raw target with its query.
        request: body, content-decoded.
        response: whole body, content-decoded.
        input_tokens: all input tokens the provider bills for it, cache reads and writes included.
        output_tokens: all output tokens it bills.
        headers: of the request, names lower-case.
        response_headers: of the answer, names lower-case.
        stream: the answer is a stream of events, separated by empty lines.
    """

    name: str
    path: str
    request: bytes
    response: bytes
    input_tokens: int
    output_tokens: int
    method: str = "POST"
    headers: Mapping[str, str] = field(factory=dict)
    response_headers: Mapping[str, str] = field(factory=lambda: {"content-type": "application/json"})
    status: int = 200
    stream: bool = False


def planned(meter: Meter, exchange: Exchange) -> tuple[Endpoint, CallPlan]:
    """Return endpoint and plan of an exchange's request, which must be metered."""
    endpoint = meter.endpoint(exchange.method, exchange.path, exchange.headers)
    assert endpoint.kind is EndpointKind.METERED, f"{exchange.name} is {endpoint.kind}: {endpoint.reason}"
    plan = meter.plan_call(endpoint, exchange.headers, exchange.request)
    assert not plan.refusal, f"{exchange.name} is refused: {plan.refusal}"
    return endpoint, plan


def usage_of(meter: Meter, exchange: Exchange, pieces: Iterable[bytes]) -> Usage:
    """Return what the meter reads from an answer that comes in *pieces*."""
    endpoint, plan = planned(meter, exchange)
    parser = meter.parser(endpoint, plan, exchange.status, exchange.response_headers)
    for piece in pieces:
        parser.feed(piece)
    return parser.finish()


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Return *data* in pieces, cut at *places*; empty pieces included."""
    marks = [0, *sorted(min(max(place, 0), len(data)) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(marks)]
