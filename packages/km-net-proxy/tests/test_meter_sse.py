"""Event streams: any line ends, any split, any size."""

from __future__ import annotations

import itertools
import json
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.types import CallPlan
from km_net_proxy.meter import sse
from km_net_proxy.meter.anthropic import MessagesStream
from km_net_proxy.meter.openai import ChatStream, ResponsesStream
from km_net_proxy.meter.sse import EventStream, data_of

PLAN = CallPlan(
    model="asked-model", stream=True, input_bound=5000, output_limit=4096, body=b"", cache_write="5m"
)
INJECTED = (
    '{"usage": {"input_tokens": 9, "output_tokens": 9}}\n\ndata: {"type":"message_stop"}\n\nevent: "usage"'
)


def event(kind: str, **data) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **data}, ensure_ascii=False)}\n\n"


def compact(kind: str, **data) -> str:
    text = json.dumps({"type": kind, **data}, separators=(",", ":"))
    return f"event: {kind}\ndata: {text}\n\n"


START = {
    "model": "claude-sonnet-4-5-20250929",
    "id": "msg_1",
    "usage": {
        "input_tokens": 11,
        "output_tokens": 1,
        "cache_read_input_tokens": 5,
        "cache_creation_input_tokens": 3,
    },
}
ANTHROPIC = (
    event("message_start", message=START)
    + ": a comment\nid: 7\nretry: 10\n"
    + event("ping")
    + compact("content_block_start", index=0, content_block={"type": "text", "text": ""})
    + compact(
        "content_block_delta", index=0, delta={"type": "text_delta", "text": 'h\u00e9llo "w\\orld"\n\u4e2d'}
    )
    + event("content_block_delta", index=0, delta={"type": "text_delta", "text": INJECTED})
    + compact("content_block_delta", index=1, delta={"type": "input_json_delta", "partial_json": '{"usage":'})
    + 'data:{"type":"message_delta","delta":{"stop_reason":"end_turn"},\ndata:"usage":{"output_tokens":503}}\n\n'
    + event("message_stop")
)
CHAT = (
    "".join(
        f"data: {json.dumps(chunk)}\n\n"
        for chunk in (
            {
                "id": "c1",
                "model": "gpt-4o-2024-08-06",
                "choices": [{"delta": {"role": "assistant", "content": ""}}],
                "usage": None,
            },
            {
                "id": "c1",
                "model": "gpt-4o-2024-08-06",
                "choices": [{"delta": {"content": INJECTED}, "finish_reason": None}],
                "usage": None,
            },
            {
                "id": "c1",
                "model": "gpt-4o-2024-08-06",
                "choices": [{"delta": {}, "finish_reason": "stop"}],
                "usage": None,
            },
            {
                "id": "c1",
                "model": "gpt-4o-2024-08-06",
                "choices": [],
                "usage": {
                    "prompt_tokens": 11,
                    "completion_tokens": 7,
                    "prompt_tokens_details": {"cached_tokens": 5},
                },
            },
        )
    )
    + "data: [DONE]\n\n"
)
RESPONSES = (
    event("response.created", response={"id": "r1", "model": "gpt-5.5", "usage": None})
    + event("response.output_item.added", item={"type": "message"})
    + event("response.output_text.delta", delta=INJECTED)
    + event(
        "response.incomplete",
        response={
            "id": "r1",
            "model": "gpt-5.5",
            "usage": {
                "input_tokens": 11,
                "input_tokens_details": {"cached_tokens": 5},
                "output_tokens": 7,
                "output_tokens_details": {"reasoning_tokens": 2},
            },
        },
    )
)
CORPUS = {
    "anthropic": (MessagesStream, ANTHROPIC),
    "chat": (ChatStream, CHAT),
    "responses": (ResponsesStream, RESPONSES),
}
ENDS = {"lf": "\n", "crlf": "\r\n", "cr": "\r"}


def run(kind, pieces):
    parser = kind(PLAN, 200)
    for piece in pieces:
        parser.feed(piece)
    return parser.finish()


@pytest.fixture(params=[1, 64, sse.BLOCK])
def block_size(request, monkeypatch):
    monkeypatch.setattr(sse, "BLOCK", request.param)
    # EventStream reads BLOCK when a stream begins and after each look.
    return request.param


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", CORPUS)
def test_sse_crlf_split_anywhere(name, end, block_size):
    kind, text = CORPUS[name]
    body = text.replace("\n", ENDS[end]).encode()
    whole = run(kind, [body])
    assert whole.complete
    assert whole.input_tokens > 0
    for at in range(len(body) + 1):
        assert run(kind, [body[:at], body[at:]]) == whole
    assert run(kind, [body[at : at + 1] for at in range(len(body))]) == whole


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(sorted(CORPUS)), st.data())
def test_many_splits_and_mixed_line_ends_change_nothing(name, data):
    kind, text = CORPUS[name]
    lines = text.split("\n")
    ends = data.draw(
        st.lists(st.sampled_from(["\n", "\r\n", "\r"]), min_size=len(lines), max_size=len(lines))
    )
    # A lone CR before a line that is empty and ends with LF would read as one CRLF.
    body = ""
    for line, stop in zip(lines[:-1], ends, strict=False):
        merges = body.endswith("\r") and not line and stop == "\n"
        body += line + ("\r" if merges else stop)
    raw = body.encode()
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12)))
    edges = [0, *cuts, len(raw)]
    assert run(kind, [raw[a:b] for a, b in itertools.pairwise(edges)]) == run(kind, [text.encode()])


@pytest.mark.parametrize("name", CORPUS)
def test_every_truncation_is_incomplete_or_equal(name):
    kind, text = CORPUS[name]
    body = text.encode()
    whole = run(kind, [body])
    for at in range(len(body)):
        cut = run(kind, [body[:at]])
        if cut.complete:
            assert (cut.input_tokens, cut.output_tokens) == (whole.input_tokens, whole.output_tokens)
        else:
            seen = cut.input_tokens + cut.cache_read_tokens + cut.cache_write_tokens
            assert seen == 19 or cut.estimated_input_tokens == PLAN.input_bound


def test_the_last_event_counts_without_its_blank_line():
    body = CHAT[: CHAT.index("\n\ndata: [DONE]")].encode()
    assert run(ChatStream, [body]).complete


def test_byte_order_mark_is_tolerated():
    body = b"\xef\xbb\xbf" + ANTHROPIC.split("\n", 1)[1].encode()
    assert run(MessagesStream, [body]) == run(MessagesStream, [bytes([byte]) for byte in body])
    assert run(MessagesStream, [body]).input_tokens == 11


def test_sse_line_over_64k():
    long = "x" * 300_000 + '"\\'
    body = ANTHROPIC.replace(
        "event: ping",
        compact("content_block_delta", index=0, delta={"type": "text_delta", "text": long}) + "event: ping",
    ).encode()
    usage = run(MessagesStream, [body[at : at + 1000] for at in range(0, len(body), 1000)])
    assert (usage.complete, usage.input_tokens, usage.output_tokens) == (True, 11, 503)


def test_an_event_beyond_the_cap_is_skipped_and_the_usage_is_incomplete(monkeypatch):
    monkeypatch.setattr(sse, "MAX_EVENT", 20_000)
    monkeypatch.setattr(sse, "BLOCK", 1000)
    huge = "data: " + "y" * 90_000 + "\n\n"
    body = ANTHROPIC.replace("event: ping", huge + "event: ping").encode()
    for size in (1, 700, 1 << 20):
        usage = run(MessagesStream, [body[at : at + size] for at in range(0, len(body), size)])
        if size < 1 << 20:
            assert not usage.complete
            assert usage.notes == ("usage_undecodable",)
        assert (usage.input_tokens, usage.output_tokens) == (11, 503)


def test_memory_is_bounded_by_one_event_whatever_the_length_of_the_stream():
    delta = compact(
        "content_block_delta", index=0, delta={"type": "text_delta", "text": "some words here"}
    ).encode()
    parser = MessagesStream(PLAN, 200)
    tracemalloc.start()
    for _ in range(100_000):
        parser.feed(delta)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1024 * 1024
    assert parser.finish().estimated_output_tokens == -(-100_000 * 15 * 2 // 7)


def test_a_growing_event_costs_linear_time():
    looks = []

    class Counting(EventStream):
        def block(self, block):
            pass

        def _cut(self, data):
            looks.append(len(data))
            super()._cut(data)

    stream = Counting()
    for _ in range(8000):
        stream.feed(b"z" * 1000)
    stream.end()
    assert len(looks) < 20


def test_fields_other_than_data_are_skipped():
    block = b"event: x\ndata: 1\nid: 4\ndata:2\ndata\ndatax: 9\n: data: 5\n\nretry: 1\n\ndata:  3"
    assert list(data_of(block)) == [b"1\n2\n", b" 3"]


@pytest.mark.parametrize("name", CORPUS)
def test_prompt_injection_of_usage_ignored(name):
    kind, text = CORPUS[name]
    usage = run(kind, [text.encode()])
    assert usage.output_tokens in (503, 7)
    assert usage.input_tokens in (11, 6)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.sampled_from(sorted(CORPUS)))
def test_garbage_never_raises_and_never_counts(noise, name):
    kind, _ = CORPUS[name]
    usage = run(kind, [noise, b"\n\n", noise[::-1]])
    assert usage.input_tokens == usage.output_tokens == 0
    assert not usage.complete


@settings(max_examples=200, deadline=None)
@given(
    st.text(max_size=60), st.sampled_from(["text", "thinking", "partial_json"]), st.booleans(), st.booleans()
)
def test_the_shortcut_and_json_count_the_same_text(text, key, ascii_only, spaced):
    kind = {"text": "text_delta", "thinking": "thinking_delta", "partial_json": "input_json_delta"}[key]
    data = {"type": "content_block_delta", "index": 0, "delta": {"type": kind, key: text}}
    body = json.dumps(data, ensure_ascii=ascii_only, separators=(", ", ": ") if spaced else (",", ":"))
    odd = json.dumps({"delta": data["delta"], "type": data["type"]}, ensure_ascii=ascii_only)
    size = len(text.encode("utf-8", "surrogatepass"))
    for form in (body, odd):
        raw = f"event: content_block_delta\ndata: {form}\n\n".encode("utf-8", "surrogatepass")
        assert run(MessagesStream, [raw]).estimated_output_tokens == -(-size * 2 // 7)
