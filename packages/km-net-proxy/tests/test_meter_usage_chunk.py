"""The chunk that the meter asked for never reaches the client; every other byte does."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.types import Endpoint, EndpointKind
from km_net_proxy.meter import OpenAIMeter
from km_net_proxy.meter.usage_chunk import UsageChunkFilter

TEXT = [
    {"choices": [{"delta": {"content": 'say {"choices": [], "usage": {"a": 1}}\n\ndata: x'}}], "usage": None},
    {"choices": [], "prompt_filter_results": [], "usage": None},
    {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": None},
]
CHUNK = {"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 7}}
DONE = "data: [DONE]\n\n"


def lines(items):
    return "".join(f"data: {json.dumps(item)}\n\n" for item in items)


KEPT = lines(TEXT) + DONE
SENT = lines([*TEXT, CHUNK]) + DONE


def run(pieces):
    chunk_filter = UsageChunkFilter()
    return b"".join([*(chunk_filter.feed(piece) for piece in pieces), chunk_filter.finish()])


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_only_the_usage_chunk_is_taken_out_at_every_split(end):
    sent, kept = (text.replace("\n", end).encode() for text in (SENT, KEPT))
    for at in range(len(sent) + 1):
        assert run([sent[:at], sent[at:]]) == kept
    assert run([sent]) == kept


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=120) | st.text("\r\nda:t {}x", max_size=80).map(str.encode), st.data())
def test_what_is_not_the_chunk_passes_byte_for_byte(raw, data):
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=6)))
    edges = [0, *cuts, len(raw)]
    assert run([raw[a:b] for a, b in itertools.pairwise(edges)]) == raw


def test_an_event_leaves_the_moment_it_is_whole():
    chunk_filter = UsageChunkFilter()
    first = lines(TEXT[:1]).encode()
    assert chunk_filter.feed(first[:-1]) == b""
    assert chunk_filter.feed(first[-1:]) == first
    assert chunk_filter.feed(first + b"data: par") == first


def test_a_chunk_cut_off_at_the_end_is_taken_out_as_well():
    assert run([lines(TEXT).encode(), b"data: " + json.dumps(CHUNK).encode()]) == lines(TEXT).encode()


def test_an_endless_event_is_not_held(monkeypatch):
    monkeypatch.setattr("km_net_proxy.meter.usage_chunk.MAX_EVENT", 1000)
    chunk_filter = UsageChunkFilter()
    assert sum(len(chunk_filter.feed(b"x" * 100)) for _ in range(50)) >= 4000


def test_the_meter_reads_what_the_client_does_not_see():
    meter = OpenAIMeter()
    endpoint = Endpoint("chat", EndpointKind.METERED)
    body = json.dumps({"model": "gpt-4o", "stream": True, "messages": []}).encode()
    plan = meter.plan_call(endpoint, {}, body)
    parser = meter.parser(endpoint, plan, 200, {"content-type": "text/event-stream"})
    chunk_filter = meter.response_filter(plan)
    raw = SENT.encode()
    out = b""
    for at in range(0, len(raw), 13):
        parser.feed(raw[at : at + 13])
        out += chunk_filter.feed(raw[at : at + 13])
    assert out + chunk_filter.finish() == KEPT.encode()
    usage = parser.finish()
    assert (usage.complete, usage.input_tokens, usage.output_tokens) == (True, 11, 7)
