"""
A stand-in for AI providers: Anthropic Messages, OpenAI chat completions and responses.

JSON and server-sent events, in the encoding the request accepts (identity, gzip, br, zstd by turns),
with whatever usage the caller configures.  Shapes follow the providers' public API references.
"""

from __future__ import annotations

import gzip
import itertools
import json
import threading
import time
import zlib
from typing import TYPE_CHECKING, Any, Protocol

import brotli
import zstandard
from attrs import define, field, frozen

from demo.serving import Arrival, Handler, Server

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator

ENCODINGS = ("zstd", "br", "gzip", "identity")
"""What the stand-in can speak; it goes round what the request accepts."""


@frozen
class Reply:
    """
    What one call gets.

    Attributes:
        text: the answer.
        input_tokens, output_tokens, cache_read, cache_write: the usage it reports; *input_tokens* is by
            default a quarter of the request's bytes, and *output_tokens* is never more than the request's
            limit, as with the provider.
        tool: ``(name, input)`` of a tool the model wants to use (Anthropic only).
        chunks: into how many events the text is split.
        pause_s: wait before each event of a stream.
        status: other than 200 makes it a provider error without usage.
    """

    text: str = "pong"
    input_tokens: int | None = None
    output_tokens: int = 700
    cache_read: int = 0
    cache_write: int = 0
    tool: tuple[str, dict[str, Any]] | None = None
    chunks: int = 3
    pause_s: float = 0.0
    status: int = 200


@define
class Call:
    """One model call as the stand-in saw it."""

    api: str
    request: dict[str, Any]
    arrival: Arrival
    reply: Reply
    encoding: str

    @property
    def input_tokens(self) -> int:
        """Input tokens it reported (without cache)."""
        return self.reply.input_tokens or 0

    @property
    def credential(self) -> str:
        """The credential that came with the call."""
        bearer = self.arrival.headers.get("authorization", "")
        return str(self.arrival.headers.get("x-api-key") or bearer.removeprefix("Bearer "))


class AiUpstream(Server):
    """
    The provider.

    Args:
        context: its TLS context.
        reply: called with the API's name and the request's body for each call.
    """

    def __init__(
        self,
        context: ssl.SSLContext | None,
        reply: Callable[[str, dict[str, Any]], Reply] = lambda _api, _request: Reply(),
        *,
        host: str = "127.0.0.1",
    ) -> None:
        super().__init__(_AiHandler, context, host=host)
        self.reply = reply
        self.calls: list[Call] = []
        self.turn = itertools.count()
        self.mutex = threading.Lock()


@define
class _Encoder:
    """Compresses a body as a stream, so that each event can go out on its own."""

    name: str
    _codec: Any = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._codec = {
            "identity": lambda: None,
            "gzip": lambda: zlib.compressobj(wbits=31),
            "br": brotli.Compressor,
            "zstd": lambda: zstandard.ZstdCompressor().compressobj(),
        }[self.name]()

    def feed(self, data: bytes) -> bytes:
        if self.name == "identity":
            return data
        if self.name == "gzip":
            return bytes(self._codec.compress(data) + self._codec.flush(zlib.Z_SYNC_FLUSH))
        if self.name == "br":
            return bytes(self._codec.process(data) + self._codec.flush())
        return bytes(self._codec.compress(data) + self._codec.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))

    def finish(self) -> bytes:
        if self.name == "identity":
            return b""
        return bytes(self._codec.finish() if self.name == "br" else self._codec.flush())


class _Shape(Protocol):
    """How one API words an answer: as a whole and as events."""

    def whole(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]: ...

    def events(self, request: dict[str, Any], reply: Reply) -> Iterator[tuple[str, dict[str, Any]]]: ...


class _AiHandler(Handler):
    server: AiUpstream

    def answer(self, arrival: Arrival) -> None:
        path = arrival.path.partition("?")[0]
        shape = _SHAPES.get(path) if arrival.method == "POST" else None
        if path.endswith("/count_tokens"):
            self._json(200, {"input_tokens": 11})
        elif shape is None:
            self._json(200, {})
        else:
            self._call(path.rpartition("/")[2], shape, arrival)

    def _call(self, api: str, shape: _Shape, arrival: Arrival) -> None:
        body = arrival.body
        if arrival.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        request = json.loads(body)
        reply = _bounded(self.server.reply(api, request), request, len(body))
        with self.server.mutex:
            encoding = self._encoding(arrival, next(self.server.turn))
            self.server.calls.append(Call(api, request, arrival, reply, encoding))
        if reply.status != 200:
            error = {"type": "api_error", "message": "the stand-in was told to fail"}
            self._json(reply.status, {"type": "error", "error": error})
        elif request.get("stream"):
            self._stream(shape, request, reply, encoding)
        else:
            encoder = _Encoder(encoding)
            data = encoder.feed(json.dumps(shape.whole(request, reply)).encode()) + encoder.finish()
            self.send(200, data, self._headers("application/json", encoding))

    def _stream(self, shape: _Shape, request: dict[str, Any], reply: Reply, encoding: str) -> None:
        encoder = _Encoder(encoding)
        self.start_stream(200, self._headers("text/event-stream", encoding))
        for name, data in shape.events(request, reply):
            if reply.pause_s:
                time.sleep(reply.pause_s)
            line = f"event: {name}\n" if name else ""
            text = "[DONE]" if data is _DONE else json.dumps(data)
            if chunk := encoder.feed(f"{line}data: {text}\n\n".encode()):
                self.send_chunk(chunk)
        if tail := encoder.finish():
            self.send_chunk(tail)
        self.send_chunk(b"")

    def _json(self, status: int, data: dict[str, Any]) -> None:
        self.send(status, json.dumps(data).encode(), [("content-type", "application/json")])

    @staticmethod
    def _headers(kind: str, encoding: str) -> list[tuple[str, str]]:
        headers = [("content-type", kind), ("request-id", "req_stand_in")]
        return headers if encoding == "identity" else [*headers, ("content-encoding", encoding)]

    @staticmethod
    def _encoding(arrival: Arrival, turn: int) -> str:
        accepted = {
            part.split(";")[0].strip() for part in arrival.headers.get("accept-encoding", "").split(",")
        }
        usable = [name for name in ENCODINGS if name in accepted] or ["identity"]
        return usable[turn % len(usable)]


class _Anthropic:
    """``POST /v1/messages``."""

    def whole(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]:
        content: list[dict[str, Any]] = [{"type": "text", "text": reply.text}]
        if reply.tool is not None:
            content.append(
                {"type": "tool_use", "id": "toolu_1", "name": reply.tool[0], "input": reply.tool[1]}
            )
        return self._message(request, reply) | {
            "content": content,
            "stop_reason": "end_turn" if reply.tool is None else "tool_use",
            "usage": self._usage(reply, reply.output_tokens),
        }

    def events(self, request: dict[str, Any], reply: Reply) -> Iterator[tuple[str, dict[str, Any]]]:
        start = {"message": self._message(request, reply) | {"usage": self._usage(reply, 1)}}
        blocks: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
            (
                {"type": "text", "text": ""},
                [{"type": "text_delta", "text": part} for part in _split(reply.text, reply.chunks)],
            )
        ]
        if reply.tool is not None:
            name, value = reply.tool
            blocks.append(
                (
                    {"type": "tool_use", "id": "toolu_1", "name": name, "input": {}},
                    [{"type": "input_json_delta", "partial_json": json.dumps(value)}],
                )
            )
        yield from self._typed("message_start", start)
        for index, (block, deltas) in enumerate(blocks):
            yield from self._typed("content_block_start", {"index": index, "content_block": block})
            for delta in deltas:
                yield from self._typed("content_block_delta", {"index": index, "delta": delta})
            yield from self._typed("content_block_stop", {"index": index})
        stop = {"stop_reason": "end_turn" if reply.tool is None else "tool_use", "stop_sequence": None}
        yield from self._typed(
            "message_delta", {"delta": stop, "usage": {"output_tokens": reply.output_tokens}}
        )
        yield from self._typed("message_stop", {})

    @staticmethod
    def _typed(name: str, data: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        yield name, {"type": name} | data

    @staticmethod
    def _message(request: dict[str, Any], _reply: Reply) -> dict[str, Any]:
        return {
            "id": "msg_stand_in",
            "type": "message",
            "role": "assistant",
            "model": request.get("model"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
        }

    @staticmethod
    def _usage(reply: Reply, output: int) -> dict[str, int | None]:
        return {
            "input_tokens": reply.input_tokens,
            "output_tokens": output,
            "cache_creation_input_tokens": reply.cache_write,
            "cache_read_input_tokens": reply.cache_read,
        }


class _Chat:
    """``POST /v1/chat/completions``."""

    def whole(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]:
        message = {"role": "assistant", "content": reply.text}
        return self._frame(request, "chat.completion") | {
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            "usage": self._usage(reply),
        }

    def events(self, request: dict[str, Any], reply: Reply) -> Iterator[tuple[str, dict[str, Any]]]:
        frame = self._frame(request, "chat.completion.chunk")
        for part in _split(reply.text, reply.chunks):
            delta = {"role": "assistant", "content": part}
            yield "", frame | {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
        yield "", frame | {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
        if (request.get("stream_options") or {}).get("include_usage"):
            yield "", frame | {"choices": [], "usage": self._usage(reply)}
        yield "", _DONE

    @staticmethod
    def _frame(request: dict[str, Any], kind: str) -> dict[str, Any]:
        return {"id": "chatcmpl_stand_in", "object": kind, "created": 1, "model": request.get("model")}

    @staticmethod
    def _usage(reply: Reply) -> dict[str, Any]:
        prompt = (reply.input_tokens or 0) + reply.cache_read
        return {
            "prompt_tokens": prompt,
            "completion_tokens": reply.output_tokens,
            "total_tokens": prompt + reply.output_tokens,
            "prompt_tokens_details": {"cached_tokens": reply.cache_read},
        }


class _Responses:
    """``POST /v1/responses``."""

    def whole(self, request: dict[str, Any], reply: Reply) -> dict[str, Any]:
        prompt = (reply.input_tokens or 0) + reply.cache_read
        return {
            "id": "resp_stand_in",
            "object": "response",
            "created_at": 1,
            "status": "completed",
            "model": request.get("model"),
            "output": [self._item(reply, reply.text)],
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "usage": {
                "input_tokens": prompt,
                "input_tokens_details": {"cached_tokens": reply.cache_read},
                "output_tokens": reply.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": prompt + reply.output_tokens,
            },
        }

    def events(self, request: dict[str, Any], reply: Reply) -> Iterator[tuple[str, dict[str, Any]]]:
        whole = self.whole(request, reply)
        place = {"item_id": "item_1", "output_index": 0, "content_index": 0}
        steps: list[tuple[str, dict[str, Any]]] = [
            (
                "response.created",
                {"response": whole | {"status": "in_progress", "output": [], "usage": None}},
            ),
            ("response.output_item.added", {"output_index": 0, "item": self._item(reply, "")}),
            *(
                ("response.output_text.delta", place | {"delta": part, "logprobs": []})
                for part in _split(reply.text, reply.chunks)
            ),
            ("response.output_item.done", {"output_index": 0, "item": self._item(reply, reply.text)}),
            ("response.completed", {"response": whole}),
        ]
        for number, (name, data) in enumerate(steps):
            yield name, {"type": name, "sequence_number": number} | data

    @staticmethod
    def _item(_reply: Reply, text: str) -> dict[str, Any]:
        return {
            "type": "message",
            "id": "item_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": text, "annotations": []}],
        }


_DONE: dict[str, Any] = {"done": True}
_SHAPES: dict[str, _Shape] = {
    "/v1/messages": _Anthropic(),
    "/v1/chat/completions": _Chat(),
    "/v1/responses": _Responses(),
}


def _bounded(reply: Reply, request: dict[str, Any], size: int) -> Reply:
    """Report no more than a provider could for a request of *size* bytes."""
    import attrs

    limits = (request.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
    bound = min((limit for limit in limits if isinstance(limit, int)), default=reply.output_tokens)
    counted = max(1, size // 4) if reply.input_tokens is None else reply.input_tokens
    return attrs.evolve(reply, input_tokens=counted, output_tokens=min(reply.output_tokens, bound))


def _split(text: str, parts: int) -> list[str]:
    size = max(1, -(-len(text) // max(1, parts)))
    return [text[at : at + size] for at in range(0, len(text), size)]
