"""
Usage of Anthropic answers: JSON and server-sent events (spec/metering-budget.md sections 2 and 3).

All figures of a stream are cumulative, so the maximum of what was seen counts.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from km_core.ledger import recorded_model
from km_core.types import Usage
from km_net_proxy.meter.figures import (
    DAMAGED,
    Notes,
    estimated_tokens,
    figure,
    literal_bytes,
    loads,
    mapping,
    not_billed,
    text,
)
from km_net_proxy.meter.sse import EventStream, data_of
from km_net_proxy.meter.whole import TOO_LARGE, WholeBody

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.types import CallPlan

PROVIDER = "anthropic"
"""Provider name in the ledger and in the price table."""

# Sampling rounds that a provider runs on its own are billed but missing from the top-level figures.
_EXTRA_ROUNDS = frozenset({"compaction", "advisor_message"})
_SHORTCUT = 1024 * 1024

# One whole event that carries text and nothing else.  Anything that differs by a byte is decoded as
# JSON, so this is a shortcut and not a second grammar.
_DELTA = re.compile(
    rb"(?:(?<=\n)|\A)(?:event: ?content_block_delta\n)?"
    rb'data: ?\{"type": ?"content_block_delta", ?"index": ?\d+, ?"delta": ?\{'
    rb'"type": ?"(?:text|thinking|input_json)_delta", ?"(?:text|thinking|partial_json)": ?'
    rb'"([^"\\]*+(?:\\.[^"\\]*+)*+)"\} ?\} *(?:\n\n|\Z)'
)


class Tally:
    """The maximum of every figure seen in an answer."""

    def __init__(self) -> None:
        self.notes = Notes()
        self.input = 0
        self.output = 0
        self.read = 0
        self.write = 0
        self.write_1h = 0
        self.searches = 0
        self.reasoning = 0
        self.tier = ""
        self.multipliers: tuple[str, ...] = ()
        self._extra = (0, 0, 0, 0, 0)

    def take(self, usage: Mapping[str, Any]) -> None:
        """Take a ``usage`` object."""
        notes = self.notes
        self.input = max(self.input, figure(usage.get("input_tokens"), notes))
        self.output = max(self.output, figure(usage.get("output_tokens"), notes))
        self.read = max(self.read, figure(usage.get("cache_read_input_tokens"), notes))
        write, write_1h = _writes(usage, notes)
        self.write = max(self.write, write)
        self.write_1h = max(self.write_1h, write_1h)
        tools = mapping(usage.get("server_tool_use"))
        self.searches = max(self.searches, figure(tools.get("web_search_requests"), notes))
        details = mapping(usage.get("output_tokens_details"))
        self.reasoning = max(self.reasoning, figure(details.get("thinking_tokens"), notes))
        self._surcharges(usage)
        rounds = usage.get("iterations")
        if isinstance(rounds, list):
            self._rounds(rounds)

    def usage(self, **rest: Any) -> Usage:
        """Return the figures as a `Usage`; *rest* are its other fields."""
        extra_in, extra_out, extra_read, extra_write, extra_1h = self._extra
        write = self.write + extra_write
        return Usage(
            provider=PROVIDER,
            input_tokens=self.input + extra_in,
            output_tokens=self.output + extra_out,
            cache_read_tokens=self.read + extra_read,
            cache_write_tokens=write,
            cache_write_1h_tokens=min(self.write_1h + extra_1h, write),
            reasoning_tokens=self.reasoning,
            web_search_requests=self.searches,
            service_tier=self.tier,
            multipliers=self.multipliers,
            notes=self.notes.all(),
            **rest,
        )

    def _surcharges(self, usage: Mapping[str, Any]) -> None:
        names = dict(name.split(":", 1) for name in self.multipliers)
        for key in ("service_tier", "speed", "inference_geo"):
            value = text(usage.get(key))
            if value:
                names[key] = value
        self.tier = names.get("service_tier", "")
        self.multipliers = tuple(f"{key}:{value}" for key, value in sorted(names.items()))

    def _rounds(self, rounds: list[Any]) -> None:
        totals = [0, 0, 0, 0, 0]
        for item in rounds:
            entry = mapping(item)
            if entry.get("type") not in _EXTRA_ROUNDS:
                continue
            write, write_1h = _writes(entry, self.notes)
            figures = (
                figure(entry.get("input_tokens"), self.notes),
                figure(entry.get("output_tokens"), self.notes),
                figure(entry.get("cache_read_input_tokens"), self.notes),
                write,
                write_1h,
            )
            totals = [a + b for a, b in zip(totals, figures, strict=True)]
        merged = [max(a, b) for a, b in zip(self._extra, totals, strict=True)]
        self._extra = (merged[0], merged[1], merged[2], merged[3], merged[4])


class MessagesStream(EventStream):
    """Parser of a streamed ``/v1/messages`` answer; see `km_core.types.UsageParser`."""

    def __init__(self, plan: CallPlan, status: int) -> None:
        super().__init__()
        self._plan = plan
        self._status = status
        self._tally = Tally()
        self._model = ""
        self._id = ""
        self._opened = False
        self._final = False
        self._reported = False
        self._stopped = False
        self._error = False
        self._hidden = False
        self._text = 0

    def block(self, block: bytes) -> None:
        """Take whole events."""
        if len(block) > _SHORTCUT:
            self._decode(block)
            return
        # Odd places hold the text of plain deltas, even ones whatever stood between them.
        parts = _DELTA.split(block)
        if len(parts) == 1:
            self._decode(block)
            return
        self._text += literal_bytes(parts[1::2])
        rest = [part for part in parts[0::2] if part]
        if rest:
            self._decode(b"\n\n".join(rest))

    def finish(self) -> Usage:
        """Return the usage seen so far."""
        self.end()
        if self.damaged:
            self._tally.notes.add(DAMAGED)
        ended = self._final or (self._stopped and self._reported)
        complete = ended and not self._error and not self.damaged
        bounds: dict[str, Any] = {}
        if not complete:
            bounds["estimated_output_tokens"] = estimated_tokens(self._text)
            if self._hidden:
                bounds["output_bound_tokens"] = self._plan.output_limit
            if not self._opened and not self._error:
                bounds["estimated_input_tokens"] = self._plan.input_bound
                bounds["estimated_cache_write"] = self._plan.cache_write
        return self._tally.usage(
            model=self._model or recorded_model(self._plan.model) or "unknown",
            response_id=self._id,
            status=self._status,
            complete=complete,
            **bounds,
        )

    def _decode(self, block: bytes) -> None:
        for data in data_of(block):
            event = loads(data)
            if isinstance(event, dict):
                self._event(event)

    def _event(self, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "content_block_delta":
            delta = mapping(event.get("delta"))
            for key in ("text", "thinking", "partial_json"):
                self._text += _size(delta.get(key))
        elif kind == "message_start":
            message = mapping(event.get("message"))
            self._opened = True
            self._model = recorded_model(message.get("model")) or self._model
            self._id = text(message.get("id")) or self._id
            self._tally.take(mapping(message.get("usage")))
        elif kind == "message_delta":
            usage = event.get("usage")
            if isinstance(usage, dict):
                self._tally.take(usage)
                self._reported = True
                self._final = self._final or bool(mapping(event.get("delta")).get("stop_reason"))
        elif kind == "content_block_start":
            if mapping(event.get("content_block")).get("type") in ("thinking", "redacted_thinking"):
                # What a thinking block shows is less than what it bills.
                self._hidden = True
        elif kind == "message_stop":
            self._stopped = True
        elif kind == "error":
            self._error = True


class MessagesBody:
    """Parser of a ``/v1/messages`` answer that is one JSON object, and of every refused call."""

    def __init__(self, plan: CallPlan, status: int) -> None:
        self._plan = plan
        self._status = status
        self._body = WholeBody()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the decoded body."""
        self._body.feed(data)

    def finish(self) -> Usage:
        """Return the usage of the body, or bounds when it is not whole."""
        tally = Tally()
        value = self._body.value()
        if self._body.overflow:
            tally.notes.add(TOO_LARGE)
        body = mapping(value)
        usage = body.get("usage")
        refused = not_billed(self._status)
        if isinstance(usage, dict):
            tally.take(usage)
        complete = isinstance(usage, dict) or refused
        bounds: dict[str, Any] = {}
        if not complete:
            bounds["estimated_input_tokens"] = self._plan.input_bound
            bounds["estimated_cache_write"] = self._plan.cache_write
            bounds["output_bound_tokens"] = self._plan.output_limit
        return tally.usage(
            model=recorded_model(body.get("model")) or recorded_model(self._plan.model) or "unknown",
            response_id=text(body.get("id")),
            status=self._status,
            complete=complete,
            **bounds,
        )


class CompletionStream(EventStream):
    """
    Parser of the legacy ``/v1/complete``, streamed, which reports no figures at all.

    Its input is charged at the request's bound and its output by the text that came.
    """

    def __init__(self, plan: CallPlan, status: int) -> None:
        super().__init__()
        self._plan = plan
        self._status = status
        self._model = ""
        self._text = 0

    def block(self, block: bytes) -> None:
        """Take whole events."""
        for data in data_of(block):
            event = mapping(loads(data))
            self._text += _size(event.get("completion"))
            self._model = recorded_model(event.get("model")) or self._model

    def finish(self) -> Usage:
        """Return a usage made of estimates."""
        self.end()
        return _completion(self._plan, self._status, self._model, self._text)


class CompletionBody:
    """Parser of the legacy ``/v1/complete`` as one JSON object; charged as `CompletionStream` is."""

    def __init__(self, plan: CallPlan, status: int) -> None:
        self._plan = plan
        self._status = status
        self._body = WholeBody()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the decoded body."""
        self._body.feed(data)

    def finish(self) -> Usage:
        """Return a usage made of estimates."""
        body = mapping(self._body.value())
        size = _size(body.get("completion"))
        bound = 0 if body else self._plan.output_limit
        return _completion(self._plan, self._status, recorded_model(body.get("model")), size, bound)


def _completion(plan: CallPlan, status: int, model: str, size: int, bound: int = 0) -> Usage:
    refused = not_billed(status)
    return Usage(
        provider=PROVIDER,
        model=model or recorded_model(plan.model) or "unknown",
        status=status,
        complete=refused,
        estimated_input_tokens=0 if refused else plan.input_bound,
        estimated_cache_write="none",
        estimated_output_tokens=0 if refused else estimated_tokens(size),
        output_bound_tokens=0 if refused else bound,
    )


def _size(value: Any) -> int:
    return len(value.encode("utf-8", "surrogatepass")) if isinstance(value, str) else 0


def _writes(usage: Mapping[str, Any], notes: Notes) -> tuple[int, int]:
    """Return cache writes and the part of them that lives for an hour."""
    detail = mapping(usage.get("cache_creation"))
    short = figure(detail.get("ephemeral_5m_input_tokens"), notes)
    long = figure(detail.get("ephemeral_1h_input_tokens"), notes)
    total = usage.get("cache_creation_input_tokens")
    write = short + long if total is None else figure(total, notes)
    return write, min(long, write)
