"""What every meter promises; subclass `MeterContract`."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.ledger import worst_case_nusd
from km_core.testing.exchange import Exchange, planned, usage_of
from km_core.testing.meter_reading import TRIES, MeterReading
from km_core.testing.probes import canary, impure, sealed
from km_core.types import CallPlan, EndpointKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.types import Meter

__all__ = ["Exchange", "MeterContract"]

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(\.[a-z0-9-]{1,63})+\Z")
_UNKNOWN = (
    "/km-contract/no-such-endpoint",
    "/",
    "",
    "//",
    "/%2e%2e/km-contract",
    "/v1/../km-contract?model=x",
    "/km-contract;x=1",
    "http://other.example/km-contract",
)


class MeterContract(MeterReading):
    """
    Promises M1 to M15; M10 to M15 stand in `km_core.testing.meter_reading`.

    Must override: `meter`, `exchanges`.

    Attributes:
        codings: content codings that the meter's decoder must undo.
        memory_bound: most bytes that reading an answer of any size may hold.
    """

    def test_m1_the_meter_owns_exact_hosts(self, meter: Meter) -> None:
        """M1: a name, and canonical host names without port, wildcard and upper case."""
        assert meter.name
        assert meter.hosts
        for host in meter.hosts:
            assert _HOST.match(host), f"{host!r} is not an exact canonical host name"
        assert len(set(meter.hosts)) == len(meter.hosts)

    def test_m2_what_is_not_known_is_refused(self, meter: Meter) -> None:
        """M2: an unknown endpoint is refused with a reason: it might bill without saying so."""

        def check(method: str, path: str) -> None:
            endpoint = meter.endpoint(method, path, {})
            assert endpoint.kind is EndpointKind.REFUSED, f"{method} {path!r} is {endpoint.kind}"
            assert endpoint.reason, f"{method} {path!r} is refused without a reason"

        for path in _UNKNOWN:
            for method in ("POST", "PUT", "PATCH", "DELETE", "post", "BREW"):
                check(method, path)
        TRIES(given(st.just("POST"), st.text(max_size=60).map("/km-contract/".__add__))(check))()

    def test_m3_known_calls_are_metered_and_bounded(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M3: each known call is metered, and its worst case covers what the provider bills."""
        for exchange in exchanges:
            _, plan = planned(meter, exchange)
            assert plan.stream is exchange.stream or not exchange.stream, f"{exchange.name}: stream is lost"
            assert plan.input_bound >= exchange.input_tokens, f"{exchange.name}: the input bound is too low"
            assert plan.output_limit >= exchange.output_tokens, (
                f"{exchange.name}: the output limit is too low"
            )

    def test_m4_a_worst_case_is_never_below_the_cost(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M4: whatever part of the answer arrives, its cost is within what was reserved."""
        for exchange in exchanges:
            _, plan = planned(meter, exchange)
            reserved = worst_case_nusd(meter.name, plan.model, plan, plan.output_limit)
            size = len(exchange.response)
            for end in (0, 1, size // 4, size // 2, size - 1, size):
                usage = usage_of(meter, exchange, [exchange.response[:end]])
                assert self.cost(usage) <= reserved, f"{exchange.name}: {end} bytes cost more than reserved"

    def test_m5_a_request_that_cannot_be_read_is_refused(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M5: any bytes as a request are read without an exception; what is unclear has no low bound."""
        for exchange in exchanges:
            endpoint, plan = planned(meter, exchange)

            @TRIES
            @given(st.binary(max_size=200))
            def anything(body: bytes) -> None:
                read = meter.plan_call(endpoint, exchange.headers, body)  # noqa: B023 - called at once
                assert isinstance(read, CallPlan)
                assert read.refusal or _is_json_object(body), f"{body!r} is neither refused nor readable"

            anything()
            for end in range(1, len(exchange.request), max(1, len(exchange.request) // 40)):
                read = meter.plan_call(endpoint, exchange.headers, exchange.request[:end])
                assert read.refusal or read.input_bound >= plan.input_bound, f"{exchange.name}: cut at {end}"
            for body, low in _doubled(exchange.request):
                read = meter.plan_call(endpoint, exchange.headers, body)
                assert read.refusal or read.output_limit >= plan.output_limit, (
                    f"{exchange.name}: a member written twice was taken for {low}"
                )

    def test_m6_a_lowered_limit_keeps_the_meaning(self, meter: Meter, exchanges: Sequence[Exchange]) -> None:
        """M6: clamping lowers limits and changes nothing else of the request."""
        tried = False
        for exchange in exchanges:
            endpoint, plan = planned(meter, exchange)
            assert meter.clamp(endpoint, plan, plan.output_limit + 1) == plan.body, "a limit was raised"
            if plan.output_limit <= plan.min_output:
                continue
            tried = True
            middle = (plan.output_limit + plan.min_output) // 2
            for limit in (plan.min_output, middle, plan.output_limit - 1):
                body = meter.clamp(endpoint, plan, limit)
                again = meter.plan_call(endpoint, exchange.headers, body)
                assert not again.refusal, f"{exchange.name}: the lowered request is refused: {again.refusal}"
                assert 0 < again.output_limit <= limit, (
                    f"{exchange.name}: lowered to {limit}, it still asks for {again.output_limit}"
                )
                _same_but_lower(json.loads(plan.body), json.loads(body), exchange.name)
            try:
                low = meter.clamp(endpoint, plan, plan.min_output - 1)
            except ValueError:
                continue
            asked = meter.plan_call(endpoint, exchange.headers, low).output_limit
            assert asked < plan.min_output, f"{exchange.name}: asked below min_output, it spends more"
        if not tried:
            pytest.skip("no exchange asks for more output than min_output: there is nothing to lower")

    def test_m7_a_refusal_has_the_providers_shape(self, meter: Meter) -> None:
        """M7: refusals are 403 (503 without a control plane), a JSON object, with the `km` member."""
        km = {"pool": "ai", "spent": 1.5, "limit": 2.0, "model": "m", "top_up": "km budget add"}
        for code in ("budget_exhausted", "not_metered", "control_plane_unavailable"):
            status, body = meter.refusal(code, 'no "room" left\n', km)
            assert status == (503 if code == "control_plane_unavailable" else 403), code
            data = json.loads(body)
            assert isinstance(data, dict)
            assert data["km"] == {"code": code, **km}
            assert 'no "room" left' in json.dumps(data, ensure_ascii=False).replace('\\"', '"')

    def test_m8_nothing_is_read_or_written(
        self, meter: Meter, exchanges: Sequence[Exchange], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """M8: every method is pure: no files, sockets, processes or environment, and the same every time."""
        once = [self.everything(meter, exchange) for exchange in exchanges]
        secret = canary()
        for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", f"{meter.name.upper()}_API_KEY"):
            monkeypatch.setenv(name, secret)
        with sealed(impure) as touched:
            again = [self.everything(meter, exchange) for exchange in exchanges]
        assert touched == []
        assert again == once
        assert secret not in repr((once, again, meter.injection))

    def test_m9_a_credential_has_one_way_in(self, meter: Meter) -> None:
        """M9: the rule of injection names a secret, strips what it sets, and shows placeholders only."""
        rule = meter.injection
        if rule is None:
            pytest.skip("the meter injects no credential")
        assert re.fullmatch(r"[a-z][a-z0-9-]*", rule.secret), rule.secret
        assert "{secret}" in rule.template
        assert rule.header in rule.strip, "the client's own credential would go along"
        for name in (rule.header, *rule.strip):
            assert name == name.lower(), f"{name} must be lower case"
        for name, value in rule.env:
            assert "placeholder" in value.lower(), f"{name} must say that it is a placeholder"


def _is_json_object(body: bytes) -> bool:
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _doubled(request: bytes) -> list[tuple[bytes, str]]:
    """Return requests in which a whole-number member stands twice, the low value first and last."""
    data = json.loads(request)
    end = request.rindex(b"}")
    start = request.index(b"{") + 1
    found = []
    for key, value in data.items():
        if isinstance(value, int) and not isinstance(value, bool):
            member = f"{json.dumps(key)}:1".encode()
            found.append((request[:end] + b"," + member + request[end:], f"{key}: 1"))
            found.append((request[:start] + member + b"," + request[start:], f"{key}: 1"))
    return found


def _same_but_lower(old: Any, new: Any, where: str) -> None:
    """Fail unless *new* is *old* with some whole numbers lowered, or with new whole numbers at its top."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key, value in old.items():
            assert key in new, f"{where}.{key} was removed"
            _same_but_lower(value, new[key], f"{where}.{key}")
        for key in new.keys() - old.keys():
            assert isinstance(new[key], int), f"{where}.{key} was added"
        return
    if old == new and type(old) is type(new):
        return
    lowered = isinstance(old, int) and isinstance(new, int) and new < old
    assert lowered, f"{where} was changed from {old!r} to {new!r}"
