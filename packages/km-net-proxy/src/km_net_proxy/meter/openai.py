"""
Usage of OpenAI answers: chat completions, completions, embeddings, responses; JSON and events.

`prompt_tokens` and `input_tokens` contain the cached and the written ones; figures are made disjoint
here (spec/metering-budget.md section 2).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.ledger import recorded_model
from km_core.types import Usage
from km_net_proxy.meter.figures import (
    DAMAGED,
    Notes,
    estimated_tokens,
    figure,
    has_usage,
    literal_bytes,
    literals,
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

PROVIDER = "openai"
"""Provider name in the ledger and in the price table."""

_OPEN_MODELS = ("gpt-4", "gpt-3.5", "chatgpt-4o", "davinci", "babbage", "text-embedding")
_TERMINAL = frozenset({"response.completed", "response.incomplete", "response.failed", "response.cancelled"})
_TERMINAL_MARKS = tuple(kind.encode() for kind in sorted(_TERMINAL))
_SHORTCUT = 1024 * 1024
_OTHER_TEXT = (b"arguments", b"refusal", b"reasoning_content", b"text")


class Tally:
    """The maximum of every figure seen in an answer, and what else it says about its price."""

    def __init__(self, provider: str) -> None:
        self.notes = Notes()
        self.provider = provider
        self.model = ""
        self.id = ""
        self.searches = 0
        self._whole = 0
        self._cached = 0
        self._written = 0
        self._written_long = 0
        self._output = 0
        self._reasoning = 0
        self._tier = ""

    def describe(self, answer: Mapping[str, Any]) -> None:
        """Take model, id and service tier of an answer, a chunk or a response object."""
        self.model = recorded_model(answer.get("model")) or self.model
        self.id = text(answer.get("id")) or self.id
        self._tier = text(answer.get("service_tier")) or self._tier

    def take(self, usage: Mapping[str, Any]) -> None:
        """Take a ``usage`` object of either shape."""
        notes = self.notes
        for whole, details in (
            ("prompt_tokens", "prompt_tokens_details"),
            ("input_tokens", "input_tokens_details"),
        ):
            self._whole = max(self._whole, figure(usage.get(whole), notes))
            part = mapping(usage.get(details))
            self._cached = max(self._cached, figure(part.get("cached_tokens"), notes))
            self._written = max(self._written, figure(part.get("cache_write_tokens"), notes))
            lives = mapping(part.get("cache_write_tokens_details"))
            self._written_long = max(self._written_long, figure(lives.get("ttl_12h_tokens"), notes))
        for whole, details in (
            ("completion_tokens", "completion_tokens_details"),
            ("output_tokens", "output_tokens_details"),
        ):
            self._output = max(self._output, figure(usage.get(whole), notes))
            part = mapping(usage.get(details))
            self._reasoning = max(self._reasoning, figure(part.get("reasoning_tokens"), notes))

    def usage(self, plan: CallPlan, **rest: Any) -> Usage:
        """Return the figures, disjoint, as a `Usage`; *rest* are its other fields."""
        cached = min(self._cached, self._whole)
        written = min(self._written, self._whole - cached)
        return Usage(
            provider=self.provider,
            model=self.model or recorded_model(plan.model) or "unknown",
            input_tokens=self._whole - cached - written,
            output_tokens=self._output,
            cache_read_tokens=cached,
            cache_write_tokens=written,
            cache_write_1h_tokens=min(self._written_long, written),
            reasoning_tokens=min(self._reasoning, self._output),
            web_search_requests=self.searches,
            service_tier=self._tier,
            response_id=self.id,
            multipliers=(f"service_tier:{self._tier}",) if self._tier else (),
            notes=self.notes.all(),
            **rest,
        )

    def may_hide(self, plan: CallPlan) -> bool:
        """Say whether the model may bill output that it never shows."""
        model = self.model or recorded_model(plan.model)
        return not model.startswith(_OPEN_MODELS)


class ChatStream(EventStream):
    """Parser of a streamed ``/chat/completions`` or ``/completions`` answer."""

    def __init__(self, plan: CallPlan, status: int, provider: str = PROVIDER) -> None:
        super().__init__()
        self._plan = plan
        self._status = status
        self._tally = Tally(provider)
        self._described = False
        self._usage = False
        self._final = False
        self._error = False
        self._text = 0

    def block(self, block: bytes) -> None:
        """Take whole events."""
        if not self._final and len(block) <= _SHORTCUT:
            self._text += _chat_text(block)
        if self._described and not has_usage(block) and b'"error"' not in block:
            # With usage in every chunk only the end mark tells the last one.
            self._final = self._final or (self._usage and b"[DONE]" in block)
            return
        for data in data_of(block):
            if data.strip() == b"[DONE]":
                self._final = self._final or self._usage
            elif not self._described or b'"usage"' in data or b'"error"' in data:
                self._event(mapping(loads(data)))

    def finish(self) -> Usage:
        """Return the usage seen so far."""
        self.end()
        tally = self._tally
        if self.damaged:
            tally.notes.add(DAMAGED)
        complete = self._final and not self.damaged
        bounds: dict[str, Any] = {}
        if not complete and not (self._error and not self._text):
            bounds = _unseen_input(self._plan)
            bounds["estimated_output_tokens"] = estimated_tokens(self._text)
            if tally.may_hide(self._plan):
                bounds["output_bound_tokens"] = self._plan.output_limit
        return tally.usage(self._plan, status=self._status, complete=complete, **bounds)

    def _event(self, event: Mapping[str, Any]) -> None:
        if not event:
            return
        if "error" in event and "choices" not in event:
            self._error = True
        self._described = True
        self._tally.describe(event)
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._usage = True
            self._tally.take(usage)
            choices = event.get("choices")
            ended = isinstance(choices, list) and all(
                mapping(choice).get("finish_reason") for choice in choices
            )
            self._final = self._final or ended


class ResponsesStream(EventStream):
    """Parser of a streamed ``/responses`` answer."""

    def __init__(self, plan: CallPlan, status: int, provider: str = PROVIDER) -> None:
        super().__init__()
        self._plan = plan
        self._status = status
        self._tally = Tally(provider)
        self._described = False
        self._final = False
        self._error = False
        self._hidden = False
        self._text = 0

    def block(self, block: bytes) -> None:
        """Take whole events."""
        if len(block) <= _SHORTCUT:
            self._text += literal_bytes(literals(block, b"delta"))
        marks = [mark for mark in (*_TERMINAL_MARKS, b'"error"', b'"reasoning"') if mark in block]
        if self._described and not marks:
            return
        for data in data_of(block):
            if not self._described or any(mark in data for mark in marks):
                self._event(mapping(loads(data)))

    def finish(self) -> Usage:
        """Return the usage seen so far."""
        self.end()
        tally = self._tally
        if self.damaged:
            tally.notes.add(DAMAGED)
        complete = self._final and not self.damaged
        bounds: dict[str, Any] = {}
        if not complete and not (self._error and not self._text):
            bounds = _unseen_input(self._plan)
            bounds["estimated_output_tokens"] = estimated_tokens(self._text)
            if self._hidden or tally.may_hide(self._plan):
                bounds["output_bound_tokens"] = self._plan.output_limit
        return tally.usage(self._plan, status=self._status, complete=complete, **bounds)

    def _event(self, event: Mapping[str, Any]) -> None:
        kind = event.get("type")
        response = event.get("response")
        if isinstance(response, dict):
            self._described = True
            self._tally.describe(response)
        if kind in _TERMINAL:
            answer = mapping(response)
            usage = answer.get("usage")
            if isinstance(usage, dict):
                self._tally.take(usage)
                self._final = True
            else:
                # Ended without figures: nothing was billed if nothing was written.
                self._error = True
            self._tally.searches = max(self._tally.searches, _searches(answer))
        elif kind == "error":
            self._error = True
        elif kind in ("response.output_item.added", "response.output_item.done"):
            self._hidden = self._hidden or mapping(event.get("item")).get("type") == "reasoning"


class JsonBody:
    """Parser of any answer that is one JSON object, and of every refused call."""

    def __init__(self, plan: CallPlan, status: int, provider: str = PROVIDER) -> None:
        self._plan = plan
        self._status = status
        self._provider = provider
        self._body = WholeBody()

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the decoded body."""
        self._body.feed(data)

    def finish(self) -> Usage:
        """Return the usage of the body, or bounds when it is not whole."""
        tally = Tally(self._provider)
        body = mapping(self._body.value())
        if self._body.overflow:
            tally.notes.add(TOO_LARGE)
        if body.get("object") == "response" or "choices" in body or "data" in body or "usage" in body:
            tally.describe(body)
        usage = body.get("usage")
        if isinstance(usage, dict):
            tally.take(usage)
            tally.searches = _searches(body)
        complete = isinstance(usage, dict) or not_billed(self._status)
        bounds: dict[str, Any] = {}
        if not complete:
            bounds = _unseen_input(self._plan)
            bounds["output_bound_tokens"] = self._plan.output_limit
        return tally.usage(self._plan, status=self._status, complete=complete, **bounds)


def _chat_text(block: bytes) -> int:
    found = literals(block, b"content")
    if len(found) <= block.count(b"\n\n"):
        for key in _OTHER_TEXT:
            if key in block:
                found += literals(block, key)
    return literal_bytes(found)


def _unseen_input(plan: CallPlan) -> dict[str, Any]:
    return {"estimated_input_tokens": plan.input_bound, "estimated_cache_write": plan.cache_write}


def _searches(response: Mapping[str, Any]) -> int:
    output = response.get("output")
    if not isinstance(output, list):
        return 0
    return sum(1 for item in output if mapping(item).get("type") == "web_search_call")
