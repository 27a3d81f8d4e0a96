"""OpenAI answers: figures made disjoint, terminal events, compatible servers."""

from __future__ import annotations

import json

import pytest

from km_core.ledger import price
from km_core.types import CallPlan, Endpoint, EndpointKind
from km_net_proxy.meter import OpenAIMeter

METER = OpenAIMeter()
PLAN = CallPlan(model="gpt-4o", stream=False, input_bound=5000, output_limit=4096, body=b"", cache_write="5m")
JSON = {"content-type": "application/json"}
SSE = {"content-type": "text/event-stream"}


def body(data, *, name="chat", status=200, headers=JSON, plan=PLAN, meter=METER):
    parser = meter.parser(Endpoint(name, EndpointKind.METERED), plan, status, headers)
    parser.feed(data if isinstance(data, bytes) else json.dumps(data).encode())
    return parser.finish()


def chunks(*items, done=True, plan=PLAN, name="chat"):
    raw = "".join(f"data: {json.dumps(item)}\n\n" for item in items) + ("data: [DONE]\n\n" if done else "")
    return body(raw.encode(), headers=SSE, plan=plan, name=name)


def responses(*items, plan=PLAN):
    raw = "".join(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n" for kind, data in items)
    return body(raw.encode(), headers=SSE, name="responses", plan=plan)


CHAT_USAGE = {
    "prompt_tokens": 11,
    "completion_tokens": 7,
    "total_tokens": 18,
    "prompt_tokens_details": {"cached_tokens": 5},
    "completion_tokens_details": {"reasoning_tokens": 2},
}
RESPONSE_USAGE = {
    "input_tokens": 11,
    "input_tokens_details": {"cached_tokens": 5},
    "output_tokens": 7,
    "output_tokens_details": {"reasoning_tokens": 2},
    "total_tokens": 18,
}


def text_chunk(text, **more):
    return {
        "id": "c1",
        "model": "gpt-4o-2024-08-06",
        "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}],
        **more,
    }


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (
            "chat",
            {
                "id": "c1",
                "object": "chat.completion",
                "model": "gpt-4o-2024-08-06",
                "choices": [],
                "usage": CHAT_USAGE,
            },
        ),
        (
            "responses",
            {
                "id": "c1",
                "object": "response",
                "model": "gpt-4o-2024-08-06",
                "output": [],
                "usage": RESPONSE_USAGE,
            },
        ),
        (
            "compact",
            {
                "id": "c1",
                "object": "response.compaction",
                "model": "gpt-4o-2024-08-06",
                "usage": RESPONSE_USAGE,
            },
        ),
        ("completions", {"id": "c1", "model": "gpt-4o-2024-08-06", "choices": [], "usage": CHAT_USAGE}),
    ],
)
def test_cached_tokens_are_not_counted_twice(name, answer):
    usage = body(answer, name=name)
    assert (usage.provider, usage.model, usage.response_id) == ("openai", "gpt-4o-2024-08-06", "c1")
    assert (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens, usage.reasoning_tokens) == (
        6,
        5,
        7,
        2,
    )
    # 6*2.5 + 5*1.25 + 7*10 = 91.25 micro-dollars
    assert price(usage).cost_nusd == 91_250


def test_cache_writes_are_told_apart():
    details = {
        "cached_tokens": 100,
        "cache_write_tokens": 50,
        "cache_write_tokens_details": {"ttl_12h_tokens": 20, "ttl_30m_tokens": 30},
    }
    usage = body(
        {
            "model": "gpt-6.1-sol",
            "usage": {"input_tokens": 1000, "output_tokens": 1, "input_tokens_details": details},
            "object": "response",
        },
        name="responses",
    )
    assert (
        usage.input_tokens,
        usage.cache_read_tokens,
        usage.cache_write_tokens,
        usage.cache_write_1h_tokens,
    ) == (850, 100, 50, 20)
    # 850*2 + 100*0.1 + 30*2.5 + 20*4 + 1*10
    assert price(usage).cost_nusd == (1700 + 10 + 75 + 80 + 10) * 1000


def test_more_cached_than_there_was_is_clamped():
    usage = body(
        {
            "model": "gpt-4o",
            "choices": [],
            "usage": {
                "prompt_tokens": 3,
                "prompt_tokens_details": {"cached_tokens": 9, "cache_write_tokens": 9},
            },
        }
    )
    assert (usage.input_tokens, usage.cache_read_tokens, usage.cache_write_tokens) == (0, 3, 0)


def test_embeddings_have_input_only():
    usage = body(
        {
            "object": "list",
            "model": "text-embedding-3-small",
            "data": [],
            "usage": {"prompt_tokens": 1000, "total_tokens": 1000},
        },
        name="embeddings",
    )
    assert (usage.input_tokens, usage.output_tokens, usage.complete) == (1000, 0, True)
    assert price(usage).cost_nusd == 20_000


def test_a_chat_stream_equals_the_same_answer_in_one_piece():
    usage = chunks(
        text_chunk("po", usage=None),
        text_chunk("ng", usage=None),
        {"id": "c1", "model": "gpt-4o-2024-08-06", "choices": [], "usage": CHAT_USAGE},
    )
    assert usage.complete
    assert price(usage).cost_nusd == 91_250


def test_chat_stream_without_include_usage():
    usage = chunks(text_chunk("x" * 20), text_chunk("y" * 15))
    assert not usage.complete
    assert (usage.estimated_input_tokens, usage.estimated_output_tokens, usage.output_bound_tokens) == (
        5000,
        10,
        0,
    )
    assert price(usage).cost_nusd == 5000 * 2500 + 10 * 10_000


def test_a_cut_stream_of_a_reasoning_model_settles_at_the_limit():
    plan = CallPlan(
        model="gpt-5.5", stream=True, input_bound=10, output_limit=2000, body=b"", cache_write="none"
    )
    hidden = text_chunk("x") | {"model": "gpt-5.5-2026-04-23"}
    usage = chunks(hidden, done=False, plan=plan)
    assert usage.output_bound_tokens == 2000
    assert price(usage).cost_nusd == 10 * 5000 + 2000 * 30_000


def test_usage_in_every_chunk_counts_once_and_needs_the_end():
    steps = [text_chunk("a", usage={"prompt_tokens": 11, "completion_tokens": n}) for n in (1, 2, 3)]
    cut = chunks(*steps, done=False)
    assert (cut.complete, cut.output_tokens) == (False, 3)
    assert chunks(*steps).complete
    last = text_chunk("", usage={"prompt_tokens": 11, "completion_tokens": 4})
    last["choices"][0]["finish_reason"] = "stop"
    whole = chunks(*steps, last, done=False)
    assert (whole.complete, whole.input_tokens, whole.output_tokens) == (True, 11, 4)


def test_the_end_mark_in_a_later_block_counts():
    parser = METER.parser(Endpoint("chat", EndpointKind.METERED), PLAN, 200, SSE)
    parser.feed(
        (
            "data: "
            + json.dumps(text_chunk("a" * 20_000, usage={"prompt_tokens": 1, "completion_tokens": 1}))
            + "\n\n"
        ).encode()
    )
    parser.feed(b"data: [DONE]\n\n")
    assert parser.finish().complete


def test_tool_arguments_count_for_the_estimate():
    call = text_chunk("")
    call["choices"][0]["delta"] = {
        "tool_calls": [{"index": 0, "function": {"arguments": '{"path": "a\\b"}'}}]
    }
    usage = chunks(call)
    assert usage.estimated_output_tokens == -(-len('{"path": "a\\b"}') * 2 // 7)


@pytest.mark.parametrize("terminal", ["completed", "incomplete", "failed", "cancelled"])
def test_responses_incomplete_counts(terminal):
    usage = responses(
        ("response.created", {"response": {"id": "r1", "model": "gpt-4o-2024-08-06", "usage": None}}),
        ("response.output_text.delta", {"delta": "pong"}),
        (
            f"response.{terminal}",
            {
                "response": {
                    "id": "r1",
                    "model": "gpt-4o-2024-08-06",
                    "usage": RESPONSE_USAGE,
                    "service_tier": "default",
                }
            },
        ),
    )
    assert (usage.complete, usage.response_id, usage.service_tier) == (True, "r1", "default")
    assert price(usage).cost_nusd == 91_250


def test_a_cut_responses_stream_is_charged_by_estimate():
    created = ("response.created", {"response": {"id": "r1", "model": "gpt-4o", "usage": None}})
    usage = responses(created, ("response.output_text.delta", {"delta": "x" * 7}))
    assert (usage.complete, usage.model, usage.estimated_output_tokens) == (False, "gpt-4o", 2)
    hidden = responses(created, ("response.output_item.added", {"item": {"type": "reasoning"}}))
    assert hidden.output_bound_tokens == 4096


def test_a_response_that_failed_without_figures_costs_nothing():
    failed = responses(
        ("response.created", {"response": {"id": "r1", "model": "gpt-4o", "usage": None}}),
        (
            "response.failed",
            {"response": {"id": "r1", "model": "gpt-4o", "usage": None, "error": {"code": "server_error"}}},
        ),
    )
    assert price(failed).cost_nusd == 0
    assert price(chunks({"error": {"message": "overloaded"}}, done=False)).cost_nusd == 0


def test_searches_are_counted_from_the_output():
    output = [{"type": "web_search_call"}, {"type": "message"}, {"type": "web_search_call"}]
    answer = {"id": "r", "object": "response", "model": "gpt-4o", "output": output, "usage": RESPONSE_USAGE}
    assert body(answer, name="responses").web_search_requests == 2
    streamed = responses(("response.completed", {"response": answer}))
    assert streamed.web_search_requests == 2


def test_the_tier_that_served_is_priced():
    answer = {
        "id": "c",
        "model": "gpt-4o",
        "choices": [],
        "usage": {"prompt_tokens": 100, "completion_tokens": 0},
        "service_tier": "priority",
    }
    assert price(body(answer)).cost_nusd == 625_000


def test_a_lost_body_settles_at_the_worst_case():
    usage = body(b'{"id": "c", "model": "gpt')
    assert (usage.complete, usage.estimated_input_tokens, usage.output_bound_tokens) == (False, 5000, 4096)


def test_a_background_answer_without_figures_is_not_free():
    usage = body(
        {"id": "r", "object": "response", "status": "queued", "model": "gpt-4o", "usage": None},
        name="responses",
    )
    assert (usage.complete, usage.output_bound_tokens) == (False, 4096)


def test_a_refused_call_costs_nothing():
    for status in (400, 401, 403, 429, 500):
        usage = body({"error": {"message": "no"}}, status=status)
        assert (usage.complete, price(usage).cost_nusd) == (True, 0)


def test_compatible_hosts_are_priced_like_the_providers_models():
    meter = OpenAIMeter(["llm.example.org"])
    usage = body({"id": "c", "model": "gpt-4o", "choices": [], "usage": CHAT_USAGE}, meter=meter)
    assert usage.provider == "openai-compatible"
    assert price(usage).cost_nusd == 91_250
    unknown = body({"id": "c", "model": "house-model", "choices": [], "usage": CHAT_USAGE}, meter=meter)
    assert price(unknown).rate_source == "fallback"
    assert price(unknown).cost_nusd > 91_250
