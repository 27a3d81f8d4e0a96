"""Anthropic answers: figures, merging, truncation, damage."""

from __future__ import annotations

import json

import pytest

from km_core.ledger import price
from km_core.types import CallPlan, Endpoint, EndpointKind
from km_net_proxy.meter import AnthropicMeter, whole

METER = AnthropicMeter()
MESSAGES = Endpoint("messages", EndpointKind.METERED)
COMPLETE = Endpoint("complete", EndpointKind.METERED)
PLAN = CallPlan(
    model="claude-haiku-4-5", stream=False, input_bound=5000, output_limit=4096, body=b"", cache_write="5m"
)
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream; charset=utf-8"}


def body(data, *, status=200, headers=JSON, endpoint=MESSAGES, plan=PLAN):
    parser = METER.parser(endpoint, plan, status, headers)
    parser.feed(data if isinstance(data, bytes) else json.dumps(data).encode())
    return parser.finish()


def events(*items, plan=PLAN, endpoint=MESSAGES):
    raw = "".join(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n" for kind, data in items)
    return body(raw.encode(), headers=SSE, plan=plan, endpoint=endpoint)


def message(**usage):
    return {
        "id": "msg_1",
        "type": "message",
        "model": "claude-haiku-4-5-20251001",
        "content": [],
        "usage": usage,
    }


def start(**usage):
    return ("message_start", {"message": message(**usage)})


def test_figures_are_disjoint_and_priced_by_hand():
    usage = body(
        message(input_tokens=11, output_tokens=7, cache_creation_input_tokens=3, cache_read_input_tokens=5)
    )
    assert (usage.provider, usage.model) == ("anthropic", "claude-haiku-4-5-20251001")
    assert (usage.input_tokens, usage.output_tokens) == (11, 7)
    assert (usage.cache_read_tokens, usage.cache_write_tokens, usage.cache_write_1h_tokens) == (5, 3, 0)
    assert (usage.complete, usage.response_id, usage.status) == (True, "msg_1", 200)
    # 11*1 + 7*5 + 3*1.25 + 5*0.1 = 50.25 micro-dollars
    assert price(usage).cost_nusd == 50_250


def test_cache_writes_are_split_by_their_lifetime():
    split = {"ephemeral_5m_input_tokens": 100, "ephemeral_1h_input_tokens": 40}
    usage = body(
        message(input_tokens=1, output_tokens=1, cache_creation_input_tokens=140, cache_creation=split)
    )
    assert (usage.cache_write_tokens, usage.cache_write_1h_tokens) == (140, 40)
    for absent in ({}, {"cache_creation_input_tokens": None}):
        usage = body(message(input_tokens=1, output_tokens=1, cache_creation=split, **absent))
        assert (usage.cache_write_tokens, usage.cache_write_1h_tokens) == (140, 40)


def test_a_stream_equals_the_same_answer_in_one_piece():
    usage = events(
        start(input_tokens=11, output_tokens=1, cache_creation_input_tokens=3, cache_read_input_tokens=5),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "pong"}}),
        ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}),
        ("message_stop", {}),
    )
    assert price(usage).cost_nusd == 50_250
    assert usage.complete


def test_cumulative_figures_count_once():
    usage = events(
        start(input_tokens=11, output_tokens=1),
        (
            "message_delta",
            {
                "delta": {},
                "usage": {
                    "input_tokens": 11,
                    "output_tokens": 4,
                    "server_tool_use": {"web_search_requests": 1},
                },
            },
        ),
        (
            "message_delta",
            {
                "delta": {"stop_reason": "end_turn"},
                "usage": {
                    "input_tokens": 30,
                    "output_tokens": 9,
                    "server_tool_use": {"web_search_requests": 2},
                },
            },
        ),
        ("message_stop", {}),
    )
    assert (usage.input_tokens, usage.output_tokens, usage.web_search_requests) == (30, 9, 2)


def test_an_end_without_final_figures_is_not_complete():
    usage = events(start(input_tokens=11, output_tokens=1), ("message_stop", {}))
    assert not usage.complete
    late = ("message_delta", {"delta": {}, "usage": {"output_tokens": 9}})
    assert events(start(input_tokens=11, output_tokens=1), late, ("message_stop", {})).complete
    assert not events(start(input_tokens=11, output_tokens=1), late).complete


def test_truncated_stream_settles():
    usage = events(
        start(input_tokens=11, output_tokens=2),
        ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": "h\u00e9llo"}}),
        (
            "content_block_delta",
            {"index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a": 1}'}},
        ),
    )
    assert not usage.complete
    assert usage.output_tokens == 2
    assert usage.estimated_output_tokens == 4  # ceil((6 + 8) / 3.5)
    assert usage.output_bound_tokens == usage.estimated_input_tokens == 0
    assert price(usage).cost_nusd == 11 * 1000 + 4 * 5000


def test_a_stream_cut_while_thinking_settles_at_the_limit():
    usage = events(
        start(input_tokens=11, output_tokens=1),
        ("content_block_start", {"index": 0, "content_block": {"type": "thinking", "thinking": ""}}),
    )
    assert usage.output_bound_tokens == 4096
    assert price(usage).cost_nusd == 11 * 1000 + 4096 * 5000


def test_a_stream_cut_before_its_start_settles_the_input_at_its_bound():
    usage = body(b"event: message_sta", headers=SSE)
    assert (usage.complete, usage.estimated_input_tokens, usage.model) == (False, 5000, "claude-haiku-4-5")
    assert price(usage).cost_nusd == 5000 * 1250


def test_an_error_event_keeps_what_was_reported():
    error = ("error", {"error": {"type": "overloaded_error", "message": "x"}})
    usage = events(start(input_tokens=11, output_tokens=1), error)
    assert (usage.complete, usage.input_tokens, usage.output_tokens) == (False, 11, 1)
    nothing = events(error)
    assert price(nothing).cost_nusd == 0


def test_a_refused_call_costs_nothing():
    for status in (304, 400, 401, 403, 404, 413, 429, 500, 529):
        usage = body({"type": "error", "error": {"type": "x"}}, status=status)
        assert (usage.complete, price(usage).cost_nusd, usage.status) == (True, 0, status)
        assert body(b"<html>", status=status, headers={"content-type": "text/html"}).complete


@pytest.mark.parametrize(
    "damaged",
    [b"", b"{", b'{"usage": ', b"[]", b"null", b"{}", b'{"content":[{"usage":{"output_tokens":1}}]}'],
)
def test_a_lost_body_settles_at_the_worst_case(damaged):
    usage = body(damaged)
    assert not usage.complete
    assert (usage.estimated_input_tokens, usage.output_bound_tokens) == (5000, 4096)


def test_usage_inside_content_does_not_count():
    answer = message(input_tokens=11, output_tokens=7)
    answer["content"] = [
        {"type": "tool_use", "input": {"usage": {"input_tokens": 0, "output_tokens": 10**6}}}
    ]
    assert body(answer).output_tokens == 7


@pytest.mark.parametrize("value", [None, -5, "7", 1.5, True, [], {}])
def test_missing_and_absurd_figures_are_zero(value):
    usage = body(message(input_tokens=value, output_tokens=7.0))
    assert (usage.input_tokens, usage.output_tokens, usage.notes) == (0, 7, ())


def test_garbage_figures_are_zero_and_noted():
    usage = body(message(input_tokens=10**9 + 1, output_tokens=7))
    assert (usage.input_tokens, usage.notes) == (0, ("usage_implausible",))


def test_cache_only_call_recorded():
    usage = body(message(input_tokens=0, output_tokens=0, cache_read_input_tokens=1000))
    assert (usage.complete, price(usage).cost_nusd) == (True, 100_000)


def test_surcharges_are_taken_from_the_answer():
    usage = body(
        message(input_tokens=1, output_tokens=1, service_tier="standard", speed="fast", inference_geo="us")
    )
    assert usage.multipliers == ("inference_geo:us", "service_tier:standard", "speed:fast")
    assert usage.service_tier == "standard"


def test_rounds_outside_the_totals_are_added():
    usage = body(
        message(
            input_tokens=10,
            output_tokens=5,
            iterations=[
                {"type": "message", "input_tokens": 10, "output_tokens": 5},
                {
                    "type": "compaction",
                    "input_tokens": 900,
                    "output_tokens": 80,
                    "cache_creation_input_tokens": 7,
                },
            ],
        )
    )
    assert (usage.input_tokens, usage.output_tokens, usage.cache_write_tokens) == (910, 85, 7)


@pytest.mark.parametrize(
    ("answer", "asked", "recorded"),
    [
        ("Claude-X[1m]", "y", "claude-x"),
        ("", "y", "y"),
        (None, "us.anthropic.z", "anthropic.z"),
        (None, "", "unknown"),
    ],
)
def test_model_of_the_answer_then_of_the_request(answer, asked, recorded):
    data = {**message(input_tokens=1, output_tokens=1), "model": answer}
    plan = CallPlan(model=asked, stream=False, input_bound=1, output_limit=1, body=b"")
    assert body(data, plan=plan).model == recorded


def test_legacy_completions_are_charged_by_estimate():
    usage = body(
        {"completion": "x" * 35, "stop_reason": "stop_sequence", "model": "claude-2.1"}, endpoint=COMPLETE
    )
    assert (usage.complete, usage.estimated_input_tokens, usage.estimated_output_tokens) == (False, 5000, 10)
    streamed = events(
        ("completion", {"completion": "x" * 34}),
        ("completion", {"completion": "x", "stop_reason": "s"}),
        endpoint=COMPLETE,
    )
    assert streamed.estimated_output_tokens == 10
    assert body(b"", endpoint=COMPLETE).output_bound_tokens == 4096
    assert price(body({"error": {}}, status=400, endpoint=COMPLETE)).cost_nusd == 0


def test_a_body_beyond_the_bound_is_let_go(monkeypatch):
    monkeypatch.setattr(whole, "MAX_BODY", 1000)
    parser = METER.parser(MESSAGES, PLAN, 200, JSON)
    for _ in range(20):
        parser.feed(b"x" * 100)
    usage = parser.finish()
    assert (usage.complete, usage.notes, usage.output_bound_tokens) == (False, ("body_too_large",), 4096)


def test_the_answers_own_type_tells_events_from_json():
    streaming = CallPlan(model="m", stream=True, input_bound=1, output_limit=1, body=b"")
    assert body(message(input_tokens=3, output_tokens=1), plan=streaming).input_tokens == 3
    raw = b'data: {"type":"message_start","message":{"usage":{"input_tokens":3}}}\n\n'
    assert body(raw, headers=SSE).input_tokens == 3
    assert body(raw, headers={}, plan=streaming).input_tokens == 3
