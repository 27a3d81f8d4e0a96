"""
Cost of metering: event streams, decoders, request bounds, prices; the goals of performance page 6.

    python bench/metering.py [--repeat 15]

Prints one JSON object: microseconds (best of the repeats, the steadiest figure on a shared machine),
the yardsticks beside them, their ratios, and whether each goal is met.  Everything is in memory.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
import tracemalloc
import zlib
from typing import TYPE_CHECKING

import brotli
import zstandard

from km_core.ledger import affordable_output, price, worst_case_nusd
from km_core.types import CallPlan, Endpoint, EndpointKind
from km_net_proxy.meter import AnthropicMeter, OpenAIMeter, new_decoder
from km_net_proxy.meter.usage_chunk import UsageChunkFilter

if TYPE_CHECKING:
    from collections.abc import Callable

EVENTS = 1000
CHUNK = 120
SSE = {"content-type": "text/event-stream"}
PLAN = CallPlan(model="claude-sonnet-4-6", stream=True, input_bound=4000, output_limit=4096, body=b"")


def anthropic_body(events: int = EVENTS) -> bytes:
    first = 'event: message_start\ndata: {"type":"message_start","message":{"model":"m","usage":{"input_tokens":2095,"output_tokens":1}}}\n\n'
    delta = 'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"some words %d"}}\n\n'
    last = 'event: message_delta\ndata: {"type":"message_delta","delta":{"stop_reason":"end_turn"},"usage":{"output_tokens":503}}\n\n'
    return (first + "".join(delta % number for number in range(events - 2)) + last).encode()


def chat_body(events: int = EVENTS) -> bytes:
    chunk = '"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"gpt-4o-2024-08-06"'
    delta = 'data: {%s,"choices":[{"index":0,"delta":{"content":" word %d"},"finish_reason":null}],"usage":null}\n\n'
    text = "".join(delta % (chunk, number) for number in range(events - 1))
    usage = 'data: {%s,"choices":[],"usage":{"prompt_tokens":11,"completion_tokens":7}}\n\ndata: [DONE]\n\n'
    return (text + usage % chunk).encode()


def responses_body(events: int = EVENTS) -> bytes:
    delta = 'event: response.output_text.delta\ndata: {"type":"response.output_text.delta","item_id":"m","output_index":0,"content_index":0,"delta":" word %d"}\n\n'
    usage = '"usage":{"input_tokens":11,"output_tokens":7}'
    first = 'event: response.created\ndata: {"type":"response.created","response":{"id":"r","model":"gpt-4o"}}\n\n'
    last = 'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r","model":"gpt-4o",%s}}\n\n'
    return (first + "".join(delta % number for number in range(events - 2)) + last % usage).encode()


def split(body: bytes, size: int = CHUNK) -> list[bytes]:
    return [body[at : at + size] for at in range(0, len(body), size)]


def every_event_decoded(chunks: list[bytes]) -> int:
    """The plain way: a line buffer, JSON for each event."""
    rest, output = b"", 0
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:") and line[6:] != b"[DONE]":
                output = (json.loads(line[5:]).get("usage") or {}).get("output_tokens", output)
    return output


def usage_lines_only(chunks: list[bytes]) -> int:
    """A line buffer, JSON only where a line holds a usage key (no estimate, LF only)."""
    rest, output = b"", 0
    for chunk in chunks:
        lines = (rest + chunk).split(b"\n")
        rest = lines.pop()
        for line in lines:
            if b'"usage"' in line:
                output = (json.loads(line[5:]).get("usage") or {}).get("output_tokens", output)
    return output


def best(action: Callable[[], object], repeat: int, number: int = 1) -> float:
    """Microseconds of one call."""
    figures = []
    for _ in range(repeat):
        begin = time.perf_counter()
        for _ in range(number):
            action()
        figures.append((time.perf_counter() - begin) / number)
    return round(min(figures) * 1e6, 3)


def main() -> None:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--repeat", type=int, default=15)
    repeat = options.parse_args().repeat
    anthropic, openai = AnthropicMeter(), OpenAIMeter()

    def metered(meter: AnthropicMeter | OpenAIMeter, name: str, chunks: list[bytes]) -> object:
        parser = meter.parser(Endpoint(name, EndpointKind.METERED), PLAN, 200, SSE)
        feed = parser.feed
        for chunk in chunks:
            feed(chunk)
        usage = parser.finish()
        if not usage.complete or usage.output_tokens not in (503, 7):
            raise SystemExit(f"wrong answer: {usage}")
        return usage

    bodies = {
        "anthropic": (anthropic, "messages", anthropic_body()),
        "chat": (openai, "chat", chat_body()),
        "responses": (openai, "responses", responses_body()),
    }
    events = {}
    for label, (meter, name, body) in bodies.items():
        chunks = split(body)
        ours = best(lambda m=meter, n=name, c=chunks: metered(m, n, c), repeat) / EVENTS
        decoded = best(lambda c=chunks: every_event_decoded(c), repeat) / EVENTS
        lines = best(lambda c=chunks: usage_lines_only(c), repeat) / EVENTS
        events[label] = {
            "bytes_per_event": len(body) // EVENTS,
            "km_us": round(ours, 3),
            "json_each_us": round(decoded, 3),
            "usage_lines_us": round(lines, 3),
            "ratio_json_each": round(decoded / ours, 2),
            "ratio_usage_lines": round(lines / ours, 2),
        }
    filtered = split(chat_body())

    def strip() -> None:
        chunk_filter = UsageChunkFilter()
        for chunk in filtered:
            chunk_filter.feed(chunk)
        chunk_filter.finish()

    text = anthropic_body(20_000)
    codings = {
        "gzip": gzip.compress(text),
        "deflate": zlib.compress(text),
        "br": brotli.compress(text, quality=5),
        "zstd": zstandard.ZstdCompressor().compress(text),
    }

    def decode(coding: str) -> None:
        decoder = new_decoder(coding)
        size = 0
        for piece in split(codings[coding], 4096):
            size += len(decoder.feed(piece))
            while decoder.pending:
                size += len(decoder.feed(b""))
        if size + len(decoder.finish()) != len(text):
            raise SystemExit(f"{coding} lost data")

    megabytes = len(text) / 1e6
    request = json.dumps(
        {
            "model": "claude-sonnet-4-6",
            "max_tokens": 32000,
            "system": [{"type": "text", "text": "x" * 20_000, "cache_control": {"type": "ephemeral"}}],
            "tools": [
                {"name": f"t{n}", "input_schema": {"type": "object", "properties": {}}} for n in range(20)
            ],
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "y" * 500}]} for _ in range(200)
            ],
        }
    ).encode()
    endpoint = Endpoint("messages", EndpointKind.METERED)
    plan = anthropic.plan_call(endpoint, {}, request)
    usage = metered(anthropic, "messages", split(anthropic_body()))
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    parser = anthropic.parser(endpoint, PLAN, 200, SSE)
    for at in range(0, len(text), CHUNK):
        parser.feed(text[at : at + CHUNK])
    peak = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    result = {
        "chunk_bytes": CHUNK,
        "sse_us_per_event": events,
        "usage_chunk_filter_us_per_event": round(best(strip, repeat) / EVENTS, 3),
        "decode_ms_per_MB": {
            name: round(best(lambda n=name: decode(n), 3) / 1000 / megabytes, 2) for name in codings
        },
        "plan_call_us": {
            "request_bytes": len(request),
            "us": best(lambda: anthropic.plan_call(endpoint, {}, request), repeat, 5),
        },
        "clamp_us": best(lambda: anthropic.clamp(endpoint, plan, 4000), repeat, 5),
        "price_us": best(lambda: price(usage), repeat, 1000),
        "worst_case_us": best(lambda: worst_case_nusd("anthropic", plan.model, plan, 4096), repeat, 1000),
        "affordable_us": best(lambda: affordable_output("anthropic", plan.model, plan, 10**8), repeat, 1000),
        "memory_of_a_20000_event_stream_bytes": peak,
        "goals": {
            "sse <= 1.0 us per event at 120-byte chunks": events["anthropic"]["km_us"] <= 1.0,
            "memory <= 1 MiB": peak <= 1024 * 1024,
        },
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
