"""The promises of a meter about answers; part of `km_core.testing.meter.MeterContract`."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from km_core.ledger import price
from km_core.testing.exchange import Exchange, cut, planned, usage_of
from km_core.testing.probes import must_override

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.types import Decoder, Meter, Usage

TRIES = settings(max_examples=50, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow])
"""How often a contract tries generated input."""

_JUNK = (b"\xff\xfe\x00", b"data: {", b": comment", b'data: {"usage": null}', b"data: [DONE", b"event: \xf0")
_PIECE = 1 << 20


class MeterReading:
    """Fixtures of a meter's contract, and the promises M10 to M15."""

    codings: tuple[str, ...] = ("gzip",)
    memory_bound = 128 * 1024 * 1024

    @pytest.fixture
    def meter(self) -> Meter:
        """The meter."""
        must_override("meter", "return the Meter that your plugin offers")

    @pytest.fixture
    def exchanges(self) -> Sequence[Exchange]:
        """Calls with their true figures: at least one, and one of each kind of answer."""
        must_override("exchanges", "return Exchange values: requests and answers with their true figures")

    def cost(self, usage: Usage) -> int:
        """Return the price of a usage in nano-dollars, as the ledger would settle it."""
        return price(usage).cost_nusd

    def everything(self, meter: Meter, exchange: Exchange) -> tuple[Any, ...]:
        """Return what every method of the meter makes of an exchange."""
        endpoint, plan = planned(meter, exchange)
        usage = usage_of(meter, exchange, [exchange.response])
        clamped = meter.clamp(endpoint, plan, plan.min_output)
        return endpoint, plan, usage, clamped, meter.refusal("budget_exhausted", "no", {}), meter.hosts

    def test_m10_answers_are_read_as_the_provider_bills_them(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M10: the figures of a whole answer are the provider's."""
        assert exchanges, "give at least one exchange"
        for exchange in exchanges:
            usage = usage_of(meter, exchange, [exchange.response])
            billed = usage.input_tokens + usage.cache_read_tokens + usage.cache_write_tokens
            assert usage.provider == meter.name, exchange.name
            assert usage.complete, f"{exchange.name}: the final figures were not seen"
            assert (billed, usage.output_tokens) == (exchange.input_tokens, exchange.output_tokens), (
                exchange.name
            )

    def test_m11_the_splits_of_the_wire_do_not_matter(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M11: the usage does not depend on how the answer was cut into pieces."""
        for exchange in exchanges:
            data = exchange.response
            whole = usage_of(meter, exchange, [data])
            single = [data[at : at + 1] for at in range(len(data))]
            assert usage_of(meter, exchange, single) == whole, f"{exchange.name}: byte by byte"

            @TRIES
            @given(st.lists(st.integers(0, len(data)), max_size=12))
            def check(places: list[int]) -> None:
                assert usage_of(meter, exchange, cut(data, places)) == whole, (  # noqa: B023 - called at once
                    f"{exchange.name}: the usage depends on the split"  # noqa: B023 - likewise
                )

            check()

    def test_m12_no_answer_is_free(self, meter: Meter, exchanges: Sequence[Exchange]) -> None:
        """M12: a call that went through costs something wherever its answer breaks off."""
        for exchange in exchanges:
            size = len(exchange.response)
            for end in sorted({0, 1, *range(0, size, max(1, size // 60)), size}):
                usage = usage_of(meter, exchange, [exchange.response[:end]])
                assert self.cost(usage) > 0, f"{exchange.name}: free when it breaks off after {end} bytes"

    def test_m13_damage_never_raises_and_never_saves(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M13: any bytes are read without an exception; what is added to an answer never lowers its cost."""
        for exchange in exchanges:
            full = self.cost(usage_of(meter, exchange, [exchange.response]))

            @TRIES
            @given(st.binary(max_size=400))
            def anything(data: bytes) -> None:
                assert self.cost(usage_of(meter, exchange, [data])) > 0, exchange.name  # noqa: B023 - called at once

            anything()
            for junk in _JUNK:
                for damaged in _with_junk(exchange, junk):
                    assert self.cost(usage_of(meter, exchange, [damaged])) >= full, (
                        f"{exchange.name}: {junk!r} lowers the cost"
                    )

    def test_m14_an_endless_answer_does_not_fill_the_memory(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M14: reading holds at most `memory_bound` bytes, however large the answer is."""
        for exchange in exchanges[:2]:
            endpoint, plan = planned(meter, exchange)
            parser = meter.parser(endpoint, plan, exchange.status, exchange.response_headers)
            tracemalloc.start()
            try:
                for number in range(3 * self.memory_bound // (2 * _PIECE)):
                    parser.feed(bytes([97 + number % 26]) * _PIECE)
                usage = parser.finish()
                held = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert held <= self.memory_bound, f"{exchange.name}: it held {held >> 20} MiB"
            assert self.cost(usage) > 0, f"{exchange.name}: an endless answer is free"

    def test_m15_codings_are_undone_in_bounded_pieces(
        self, meter: Meter, exchanges: Sequence[Exchange]
    ) -> None:
        """M15: decoding never raises, does not depend on splits, and says so when it cannot go on."""
        makers: dict[str, Callable[[bytes], bytes]] = {"gzip": gzip.compress, "deflate": zlib.compress}
        for coding in ("", *self.codings):
            for exchange in exchanges:
                encoded = makers.get(coding, bytes)(exchange.response)
                for step in (1, 7, len(encoded)):
                    pieces = [encoded[at : at + step] for at in range(0, len(encoded), step)]
                    decoder = meter.decoder(coding)
                    assert _decoded(decoder, pieces) == exchange.response, (coding, step)
                    assert not decoder.failed, (coding, step)

            @TRIES
            @given(st.binary(max_size=200))
            def anything(data: bytes) -> None:
                _decoded(meter.decoder(coding), [data])  # noqa: B023 - called at once

            anything()
        unknown = meter.decoder("km-contract")
        assert _decoded(unknown, [b"abc"]) == b""
        assert unknown.failed, "an unknown coding must count as failed"
        for exchange in exchanges:
            _, plan = planned(meter, exchange)
            outputs = set()
            for step in (1, 5, len(exchange.response)):
                stream = meter.response_filter(plan)
                if stream is None:
                    break
                pieces = [exchange.response[at : at + step] for at in range(0, len(exchange.response), step)]
                outputs.add(b"".join([*(stream.feed(piece) for piece in pieces), stream.finish()]))
            assert len(outputs) <= 1, f"{exchange.name}: what the client sees depends on the split"


def _with_junk(exchange: Exchange, junk: bytes) -> list[bytes]:
    """Return the answer with junk where it can stand beside whole events; behind it for one document."""
    data = exchange.response
    if not exchange.stream:
        return [data + junk]
    events = data.split(b"\n\n")
    places = range(len(events))
    return [b"\n\n".join([*events[:place], junk, *events[place:]]) for place in places]


def _decoded(decoder: Decoder, pieces: Sequence[bytes]) -> bytes:
    found = []
    for piece in pieces:
        found.append(decoder.feed(piece))
        while decoder.pending:
            found.append(decoder.feed(b""))
    found.append(decoder.finish())
    return b"".join(found)
