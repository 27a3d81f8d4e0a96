"""Requests: bounds that hold, refusals where none does, clamping that changes nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.ledger import PriceTable, worst_case_nusd
from km_core.types import Endpoint, EndpointKind
from km_net_proxy.meter import AnthropicMeter, OpenAIMeter, request

ANTHROPIC = AnthropicMeter()
OPENAI = OpenAIMeter()
PNG = "iVBORw0KGgo" * 20_000


def plan(name, data, meter=None, headers=None, model=""):
    raw = data if isinstance(data, bytes) else json.dumps(data).encode()
    chosen = meter or (ANTHROPIC if name in ("messages", "complete") else OPENAI)
    return chosen.plan_call(Endpoint(name, EndpointKind.METERED, model=model), headers or {}, raw)


def clamp(name, call, limit):
    meter = ANTHROPIC if name in ("messages", "complete") else OPENAI
    return meter.clamp(Endpoint(name, EndpointKind.METERED), call, limit)


def ask(**more):
    return {
        "model": "claude-sonnet-4-6",
        "max_tokens": 4096,
        "messages": [{"role": "user", "content": "hi"}],
        **more,
    }


def chat(**more):
    return {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}], **more}


def respond(**more):
    return {"model": "gpt-5.5", "input": "hi", **more}


def test_a_plain_request_is_bounded_by_its_bytes():
    body = json.dumps(ask()).encode()
    call = plan("messages", body)
    assert (call.model, call.stream, call.output_limit, call.refusal) == (
        "claude-sonnet-4-6",
        False,
        4096,
        "",
    )
    assert len(body) <= call.input_bound <= len(body) + 2000
    assert (call.body, call.choices, call.min_output, call.server_tool_uses) == (body, 1, 512, 0)
    assert call.cache_write == "none"


def test_text_beyond_the_window_is_bounded_by_the_window():
    call = plan("messages", ask(model="claude-haiku-4-5", system="x" * 900_000))
    assert call.input_bound == 200_000
    wide = plan(
        "messages",
        ask(model="claude-sonnet-4-5", system="x" * 900_000),
        headers={"anthropic-beta": "a,context-1m-2025-08-07"},
    )
    assert wide.input_bound > 900_000


def test_an_image_counts_as_an_image_and_not_as_its_bytes():
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}
    plain = plan("messages", ask()).input_bound
    call = plan("messages", ask(messages=[{"role": "user", "content": [image]}]))
    assert plain + 5000 < call.input_bound < plain + 8000
    nested = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    assert plan("messages", ask(messages=[{"role": "user", "content": [nested]}])).input_bound < plain + 8000
    # The same object where it is not an image is text.
    schema = {"name": "t", "input_schema": {"content": [image]}}
    assert plan("messages", ask(tools=[schema])).input_bound > len(PNG)
    url = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + PNG}}
    call = plan("chat", chat(messages=[{"role": "user", "content": [url]}]))
    assert call.input_bound < 30_000


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("messages", ask(container="container_1")),
        ("messages", ask(thread={"type": "continue", "id": "t"})),
        (
            "messages",
            ask(
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "document", "source": {"type": "file", "file_id": "f"}}],
                    }
                ]
            ),
        ),
        (
            "messages",
            ask(
                messages=[
                    {
                        "role": "user",
                        "content": [{"type": "document", "source": {"type": "url", "url": "https://x"}}],
                    }
                ]
            ),
        ),
        (
            "messages",
            ask(messages=[{"role": "user", "content": [{"type": "container_upload", "file_id": "f"}]}]),
        ),
        ("messages", ask(messages=[{"role": "user", "content": [{"type": "brand_new"}]}])),
        ("messages", ask(messages=[{"role": "user", "content": 7}])),
        ("messages", ask(messages="hi")),
        ("responses", respond(previous_response_id="r")),
        ("responses", respond(conversation="c")),
        ("responses", respond(input=[{"type": "item_reference", "id": "i"}])),
        ("responses", respond(input=[{"role": "user", "content": [{"type": "input_file", "file_id": "f"}]}])),
        ("responses", respond(input=[{"type": "compaction", "encrypted_content": "x"}])),
        ("compact", {"model": "gpt-5.5", "previous_response_id": "r"}),
        ("chat", chat(messages=[{"role": "user", "content": [{"type": "file", "file": {"file_id": "f"}}]}])),
    ],
)
def test_state_kept_by_the_provider_is_bounded_by_the_window(name, data):
    call = plan(name, data)
    assert call.refusal == ""
    window = {"claude-sonnet-4-6": 1_000_000, "gpt-5.5": 1_050_000, "gpt-4o": 128_000}
    assert call.input_bound == window[call.model]


def test_a_missing_output_limit_is_the_models_maximum():
    data = ask()
    del data["max_tokens"]
    assert plan("messages", data).output_limit == 64_000
    assert plan("chat", chat()).output_limit == 16_384
    assert plan("responses", respond(max_output_tokens=None)).output_limit == 128_000
    assert plan("chat", chat(max_completion_tokens=100, max_tokens=900)).output_limit == 900


def test_choices_multiply():
    call = plan("chat", chat(max_tokens=1000, n=3))
    assert (call.output_limit, call.choices, call.min_output) == (3000, 3, 1536)
    call = plan(
        "completions",
        {"model": "gpt-3.5-turbo-instruct", "prompt": ["a", "b"], "max_tokens": 10, "n": 1, "best_of": 4},
    )
    assert (call.output_limit, call.choices, call.min_output) == (80, 8, 80)


def test_embeddings_have_no_output():
    call = plan("embeddings", {"model": "text-embedding-3-small", "input": ["a" * 1000] * 3})
    assert (call.output_limit, call.min_output, call.refusal) == (0, 0, "")
    assert call.input_bound >= 3000


def test_the_worst_case_follows_what_the_request_can_cause():
    assert plan("messages", ask(cache_control={"type": "ephemeral"})).cache_write == "5m"
    system = [{"type": "text", "text": "x", "cache_control": {"type": "ephemeral", "ttl": "1h"}}]
    assert plan("messages", ask(system=system)).cache_write == "1h"
    escaped = json.dumps(ask(system="X")).replace(
        '"X"', '[{"type":"text","text":"x","cache\\u005fcontrol":{"type":"ephemeral"}}]'
    )
    assert plan("messages", escaped.encode()).cache_write == "5m"
    assert plan("messages", ask()).multipliers == ("inference_geo:us",)
    assert plan("messages", ask(inference_geo="global", speed="fast")).multipliers == (
        "speed:fast",
        "inference_geo:global",
    )
    assert plan("chat", chat(service_tier="priority")).multipliers == ("service_tier:priority",)
    assert plan("responses", respond(prompt_cache_options={"ttl": "12h"})).cache_write == "1h"
    assert plan("responses", respond()).cache_write == "5m"


def test_server_tools_count_their_uses_and_their_rounds():
    tool = {"type": "web_search_20250305", "name": "web_search", "max_uses": 2}
    call = plan("messages", ask(tools=[tool]))
    assert (call.refusal, call.server_tool_uses, call.choices) == ("", 2, 3)
    assert (call.input_bound, call.output_limit) == (3_000_000, 3 * 4096)
    newer = plan("messages", ask(tools=[tool | {"type": "web_search_20260209"}]))
    assert newer.choices == 11
    call = plan(
        "responses", respond(tools=[{"type": "web_search"}], max_tool_calls=1, max_output_tokens=1000)
    )
    assert (call.server_tool_uses, call.input_bound, call.output_limit) == (1, 2_100_000, 1000)


@pytest.mark.parametrize(
    ("name", "data", "word"),
    [
        ("messages", ask(tools=[{"type": "web_search_20250305", "name": "w"}]), "max_uses"),
        ("messages", ask(tools=[{"type": "web_fetch_20250910", "name": "w"}]), "max_uses"),
        ("messages", ask(tools=[{"type": "code_execution_20250825", "name": "c"}]), "code_execution"),
        ("messages", ask(tools=[{"type": "advisor_20260301", "name": "a"}]), "advisor"),
        ("messages", ask(tools=[{"type": "mcp_toolset"}]), "mcp_toolset"),
        ("messages", ask(tools={"a": 1}), "list"),
        ("messages", ask(tools=["x"]), "type"),
        ("messages", ask(mcp_servers=[{"url": "https://x"}]), "mcp_servers"),
        ("messages", ask(fallbacks=[{"model": "dear"}]), "fallbacks"),
        ("messages", ask(compaction={"type": "summarize"}), "compaction"),
        ("messages", ask(context_management={"edits": [{"type": "compact_20260112"}]}), "context_management"),
        ("messages", ask(context_management=[1]), "context_management"),
        ("messages", ask(brand_new=1), "brand_new"),
        ("messages", ask(Max_Tokens=1), "ambiguous"),
        ("messages", ask(max_tokens="5"), "max_tokens"),
        ("messages", ask(max_tokens=1e3), "max_tokens"),
        ("messages", ask(max_tokens=True), "max_tokens"),
        ("messages", ask(max_tokens=-1), "max_tokens"),
        ("messages", ask(stream="true"), "stream"),
        ("messages", ask(speed=2), "speed"),
        ("messages", ask(thinking="on"), "thinking"),
        ("messages", ask(model=None), "model"),
        ("messages", ask(model=7), "model"),
        ("messages", ask(model="x" * 300), "model"),
        ("chat", chat(model="x" * 300), "model"),
        ("messages", ask(model=" "), "model"),
        ("messages", b"", "JSON"),
        ("messages", b"[]", "object"),
        ("messages", b"\xff\xfe{", "UTF-8"),
        ("messages", '{"model": "x"}'.encode("utf-16"), "UTF-8"),
        ("messages", b'{"model": NaN}', "NaN"),
        ("messages", b'{"model":"a","model":"b"}', "ambiguous"),
        ("messages", b'{"model":"a","messages":[{"role":"user","role":"x"}]}', "ambiguous"),
        ("messages", b'{"model":"a","mod\\u0065l":"b"}', "ambiguous"),
        ("messages", b"[" * 200_000, "deeply"),
        ("messages", b'{"model": "a"} {}', "JSON"),
        ("complete", {"model": "claude-2.1", "prompt": "x", "tools": []}, "tools"),
        ("chat", chat(web_search_options={}), "web_search_options"),
        ("chat", chat(modalities=["text", "audio"]), "audio"),
        ("chat", chat(messages=[{"role": "user", "content": [{"type": "input_audio"}]}]), "audio"),
        ("chat", chat(prediction={"type": "content"}), "prediction"),
        ("chat", chat(n=10_000), "choices"),
        ("chat", chat(tools=[{"type": "web_search"}]), "web_search"),
        ("chat", chat(stream=True, stream_options=3), "stream_options"),
        ("chat", chat(model="gpt-4o-search-preview"), "bills more"),
        ("chat", chat(service_tier=1), "service_tier"),
        ("chat", chat(moderation={"model": "m"}), "moderation"),
        ("responses", respond(background=True), "background"),
        ("responses", respond(prompt={"id": "p"}), "prompt"),
        ("responses", respond(tools=[{"type": "web_search"}]), "max_tool_calls"),
        ("responses", respond(tools=[{"type": "file_search"}]), "file_search"),
        ("responses", respond(tools=[{"type": "code_interpreter"}]), "code_interpreter"),
        ("responses", respond(tools=[{"type": "image_generation"}]), "image_generation"),
        ("responses", respond(tools=[{"type": "mcp"}]), "mcp"),
        ("responses", respond(tools=[{"type": "shell", "environment": {"type": "container_auto"}}]), "shell"),
        ("responses", respond(context_management=[{"type": "compaction"}]), "context_management"),
        ("embeddings", {"model": "text-embedding-3-small", "input": "x", "n": 4}, "'n'"),
        ("chat", {"messages": []}, "model"),
    ],
)
def test_what_cannot_be_bounded_says_why(name, data, word):
    call = plan(name, data)
    assert word in call.refusal
    assert call.input_bound > 0
    assert call.output_limit >= 0


SEARCH, RUN = {"type": "web_search"}, {"type": "function", "name": "run", "parameters": {"a": 1.5}}


@pytest.mark.parametrize("name", ["responses", "compact"])
def test_searches_without_a_limit_can_be_left_out_and_then_the_call_is_bounded(name):
    offered = respond(tools=[SEARCH, RUN, SEARCH])
    call = plan(name, offered)
    assert "max_tool_calls" in call.refusal
    assert call.lesser.left_out == ("web_search",)
    less = plan(name, respond(tools=[RUN]))
    assert json.loads(call.lesser.body) == respond(tools=[RUN])
    assert (call.lesser.refusal, call.lesser.server_tool_uses) == ("", 0)
    # Only the spaces between the tools differ from what such a client would have sent.
    assert abs(call.lesser.input_bound - less.input_bound) < 50


@pytest.mark.parametrize(
    "more",
    [
        {"tool_choice": {"type": "web_search"}},
        {"tool_choice": "required"},
        {"background": True},
        {"tools": [SEARCH, {"type": "code_interpreter"}]},
        {"tools": [SEARCH, {"type": "function", "name": "x", "most": float("1e400")}]},
    ],
)
def test_searches_that_are_asked_for_or_not_all_that_has_no_bound_are_refused(more):
    call = plan(
        "responses", json.dumps(respond(**{"tools": [SEARCH], **more})).replace("Infinity", "1e400").encode()
    )
    assert call.refusal
    assert call.lesser is None


def space(*tools):
    return {"type": "namespace", "name": "n", "tools": list(tools)}


@pytest.mark.parametrize("name", ["responses", "compact"])
@pytest.mark.parametrize("kind", ["additional_tools", "tool_search_output", "of_tomorrow"])
@pytest.mark.parametrize(
    "billed", [SEARCH, {"type": "code_interpreter"}, {"type": "image_generation"}, {}, "x"]
)
def test_a_billed_tool_hides_in_no_item_and_in_no_namespace(name, kind, billed):
    for tools in ([billed], [RUN, space(RUN, billed)], [space(space(billed))]):
        assert plan(name, respond(input=[{"type": kind, "tools": tools}])).refusal
        assert plan(name, respond(tools=[space(*tools)])).refusal


def test_tools_that_join_a_conversation_and_run_at_the_client_cost_their_bytes():
    call = plan(
        "responses", respond(input=[{"type": "additional_tools", "tools": [RUN, space(RUN, space(RUN))]}])
    )
    assert call.refusal == ""
    assert call.input_bound < 10_000


def test_searches_with_a_limit_stay():
    call = plan("responses", respond(tools=[SEARCH], max_tool_calls=2))
    assert (call.refusal, call.lesser, call.server_tool_uses) == ("", None, 2)


def test_a_body_beyond_the_bound_is_refused(monkeypatch):
    monkeypatch.setattr(request, "MAX_BODY", 100)
    assert "larger" in plan("messages", ask(system="x" * 200)).refusal


@pytest.mark.parametrize("unit", [b"{}", b"[]", b"1", b'{"a":{}}'])
def test_a_body_that_costs_more_than_its_bytes_is_not_parsed(unit):
    body = b'{"model":"a","messages":[' + b",".join([unit] * 3_000_000) + b"]}"
    assert "too many" in plan("messages", body).refusal


@pytest.mark.parametrize(
    "data",
    [
        ask(
            context_management={
                "edits": [{"type": "clear_thinking_20251015"}, {"type": "clear_tool_uses_20250919"}]
            }
        ),
        ask(context_management={}, mcp_servers=[], fallbacks=None),
        ask(thinking={"type": "adaptive"}, output_config={"effort": "high"}, metadata={"user_id": "u"}),
        ask(
            tools=[
                {"type": "bash_20250124", "name": "bash"},
                {"name": "t", "input_schema": {}},
                {"type": "custom", "name": "u"},
            ]
        ),
        ask(tools=[{"type": "tool_search_tool_regex_20251119", "name": "s"}]),
    ],
)
def test_what_agents_send_is_bounded(data):
    assert plan("messages", data).refusal == ""


def test_what_codex_sends_is_bounded():
    data = respond(
        instructions="you are",
        input=[
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "hi"}]},
            {"type": "reasoning", "summary": [], "encrypted_content": "gAAAA"},
            {"type": "function_call", "name": "shell", "arguments": "{}", "call_id": "c"},
            {"type": "function_call_output", "call_id": "c", "output": "done"},
        ],
        tools=[
            {"type": "function", "name": "shell"},
            {"type": "custom", "name": "apply_patch"},
            {"type": "local_shell"},
        ],
        tool_choice="auto",
        parallel_tool_calls=False,
        reasoning={"effort": "high"},
        store=False,
        stream=True,
        include=["reasoning.encrypted_content"],
        prompt_cache_key="k",
        text={"verbosity": "low"},
        client_metadata={"a": "b"},
    )
    call = plan("responses", data)
    assert (call.refusal, call.stream, call.strips_usage_chunk) == ("", True, False)
    assert call.input_bound < 5000


def test_chat_streams_are_asked_for_usage():
    call = plan("chat", chat(stream=True))
    assert call.strips_usage_chunk
    assert json.loads(call.body) == chat(stream=True, stream_options={"include_usage": True})
    call = plan(
        "chat", chat(stream=True, stream_options={"include_usage": False, "include_obfuscation": False})
    )
    assert call.strips_usage_chunk
    assert json.loads(call.body)["stream_options"] == {"include_usage": True, "include_obfuscation": False}
    asked = json.dumps(chat(stream=True, stream_options={"include_usage": True})).encode()
    call = plan("chat", asked)
    assert (call.strips_usage_chunk, call.body) == (False, asked)
    assert not plan("chat", chat()).strips_usage_chunk
    assert not plan("responses", respond(stream=True)).strips_usage_chunk
    assert plan("completions", {"model": "davinci-002", "prompt": "x", "stream": True}).strips_usage_chunk


def test_the_model_of_a_deployment_comes_from_the_path():
    assert plan("chat", {"messages": []}, model="gpt-4o").model == "gpt-4o"
    assert plan("chat", chat(model="gpt-5-nano"), model="gpt-4o").model == "gpt-4o"


def test_clamping_changes_the_limit_and_nothing_else():
    raw = b'{ "model":"claude-sonnet-4-6",\n "temperature": 1.0, "max_tokens" : 4096 , "messages":[{"role":"user","content":"\\u00e9 \xc3\xa9 \\/ 1e400"}], "top_k": 12345678901234567890 }'
    call = plan("messages", raw)
    assert clamp("messages", call, 1000) == raw.replace(b"4096", b"1000")
    assert clamp("messages", call, 4096) == raw
    assert clamp("messages", call, 10**6) == raw
    with pytest.raises(ValueError, match="lowered"):
        clamp("messages", call, 511)


def test_clamping_adds_a_missing_limit():
    call = plan("responses", respond())
    assert json.loads(clamp("responses", call, 2000)) == respond(max_output_tokens=2000)
    assert json.loads(clamp("chat", plan("chat", chat()), 2000))["max_completion_tokens"] == 2000
    house = plan("chat", chat(model="llama-house"))
    assert json.loads(clamp("chat", house, 2000))["max_tokens"] == 2000
    null = plan("chat", chat(max_tokens=None))
    assert json.loads(clamp("chat", null, 600)) == chat(max_tokens=None, max_completion_tokens=600)


def test_clamping_divides_among_choices():
    call = plan("chat", chat(n=3, max_tokens=2000, max_completion_tokens=700))
    data = json.loads(clamp("chat", call, 1800))
    assert (data["max_tokens"], data["max_completion_tokens"], data["n"]) == (600, 600, 3)


def test_clamping_keeps_the_usage_that_was_asked_for():
    call = plan("chat", chat(stream=True, max_tokens=5000))
    data = json.loads(clamp("chat", call, 600))
    assert (data["max_tokens"], data["stream_options"]) == (600, {"include_usage": True})


def test_thinking_budget_follows_the_limit_and_stays_legal():
    call = plan("messages", ask(max_tokens=32_000, thinking={"type": "enabled", "budget_tokens": 31_999}))
    assert call.min_output == 1536
    for limit in (1536, 1537, 2000, 10_000, 31_999):
        data = json.loads(clamp("messages", call, limit))
        assert data["max_tokens"] == limit
        assert 1024 <= data["thinking"]["budget_tokens"] < limit
        assert data["thinking"]["type"] == "enabled"
    small = plan("messages", ask(max_tokens=32_000, thinking={"type": "enabled", "budget_tokens": 1024}))
    assert json.loads(clamp("messages", small, 9000))["thinking"]["budget_tokens"] == 1024


def test_a_compaction_cannot_be_lowered():
    call = plan("compact", {"model": "gpt-5.5", "input": "x"})
    assert call.min_output == call.output_limit


def test_a_small_limit_is_not_raised():
    call = plan("messages", ask(max_tokens=100))
    assert (call.output_limit, call.min_output) == (100, 100)
    assert plan("messages", ask(max_tokens=0)).output_limit == 0


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.text(max_size=6), json_values, max_size=5),
    st.dictionaries(st.text(max_size=6), json_values, max_size=3),
    st.booleans(),
    st.sampled_from([None, 1]),
)
def test_splices_set_exactly_what_they_are_told(data, changes, ascii_only, indent):
    raw = json.dumps(data, ensure_ascii=ascii_only, indent=indent).encode()
    assert json.loads(request.splice(raw, changes)) == {**data, **changes}


@settings(max_examples=300, deadline=None)
@given(
    st.binary(max_size=200) | json_values.map(lambda value: json.dumps(value).encode()),
    st.sampled_from(["messages", "complete", "chat", "completions", "embeddings", "responses", "compact"]),
)
def test_no_body_raises_and_each_has_a_worst_case(raw, name):
    call = plan(name, raw)
    provider = "anthropic" if name in ("messages", "complete") else "openai"
    assert worst_case_nusd(provider, call.model, call, call.output_limit) > 0
    assert 0 <= call.min_output <= call.output_limit or call.output_limit == 0


members = st.dictionaries(
    st.sampled_from(
        [
            "messages",
            "input",
            "tools",
            "system",
            "stream",
            "n",
            "thinking",
            "stream_options",
            "max_tokens",
            "context_management",
            "prompt",
            "service_tier",
            "container",
            "prompt_cache_options",
            "max_tool_calls",
        ]
    ),
    json_values,
    max_size=5,
)


@settings(max_examples=400, deadline=None)
@given(
    members,
    st.sampled_from(["messages", "complete", "chat", "completions", "embeddings", "responses", "compact"]),
)
def test_no_shape_of_a_known_member_raises(data, name):
    call = plan(name, {"model": "gpt-4o", **data})
    assert call.input_bound >= 0
    if not call.refusal and call.min_output < call.output_limit:
        json.loads(clamp(name, call, call.min_output))


def test_an_operators_window_is_used():
    table = PriceTable.load(
        {
            "providers": {
                "openai-compatible": {
                    "models": {"house": {"input": 1, "output": 1, "context_window": 8192, "max_output": 1000}}
                }
            }
        }
    )
    meter = OpenAIMeter(["llm.example.org"], table)
    call = plan(
        "chat", chat(model="house", messages=[{"role": "user", "content": "x" * 50_000}]), meter=meter
    )
    assert (call.input_bound, call.output_limit) == (8192, 1000)
