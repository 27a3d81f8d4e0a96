"""
Reading and clamping Anthropic requests.

The input bound rests on three facts: a token stands for at least one byte of text, so the bytes of the
JSON bound the tokens of the text in it; what is not text (images, documents, files, threads) is bounded
by a figure of its own or by the context window; and no sampling round reads more than the window.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.types import CallPlan, Endpoint
from km_net_proxy.meter.request import (
    UnboundedError,
    check_keys,
    flag,
    model_name,
    parse_object,
    splice,
    whole,
    words,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.ledger import PriceTable

MIN_OUTPUT = 512
"""Lowest output limit a call is lowered to, in tokens (DESIGN section 8)."""

MIN_THINKING = 1024
"""Smallest thinking budget the provider accepts, in tokens."""

IMAGE_TOKENS = 6_000
"""Bound for one image: the provider scales images down to fewer tokens than this."""

SERVER_ROUNDS = 10
"""Rounds after which the provider's own tool loop pauses the turn."""

_OVERHEAD = 1_000
_TOOLS_OVERHEAD = 1_000
_TYPED_TOOL_OVERHEAD = 10_000
_BIG_WINDOW = 1_000_000
_DEPTH = 8

_MESSAGES = words(
    "model messages max_tokens metadata stop_sequences stream system temperature tool_choice tools top_k "
    "top_p thinking cache_control output_config output_format service_tier speed inference_geo container "
    "context_management mcp_servers fallbacks fallback_credit_token thread diagnostics user_profile_id "
    "workspace_id compaction betas"
)
_COMPLETE = words("model prompt max_tokens_to_sample stop_sequences temperature top_p top_k metadata stream")
_CLIENT_TOOLS = ("bash_", "text_editor_", "computer_", "memory_", "browser_toolset_")
_FREE_EDITS = ("clear_tool_uses_", "clear_thinking_")
_TEXT_BLOCKS = words(
    "text thinking redacted_thinking tool_use server_tool_use mcp_tool_use web_search_tool_result "
    "search_result tool_reference tool_search_tool_result code_execution_tool_result "
    "bash_code_execution_tool_result text_editor_code_execution_tool_result"
)


def plan_messages(
    endpoint: Endpoint, headers: Mapping[str, str], body: bytes, prices: PriceTable, provider: str
) -> CallPlan:
    """Read a ``/v1/messages`` or ``/v1/complete`` request; never raises."""
    reader = _Reader(body, headers, prices, provider)
    try:
        if endpoint.name == "complete":
            reader.complete()
        else:
            reader.messages()
    except UnboundedError as error:
        reader.refusal = str(error)
    return reader.plan()


def clamp_messages(endpoint: Endpoint, plan: CallPlan, output_limit: int) -> bytes:
    """
    Return the body with its output limit lowered.

    *output_limit* counts all rounds together.  A thinking budget stays at least `MIN_THINKING` and
    leaves `MIN_OUTPUT` for the answer; `CallPlan.min_output` is high enough for both.

    Raises:
        ValueError: *output_limit* is below `CallPlan.min_output`.
    """
    if output_limit >= plan.output_limit:
        return plan.body
    if output_limit < plan.min_output:
        raise ValueError(f"the output limit may not be lowered to {output_limit}")
    limit = output_limit // plan.choices
    if endpoint.name == "complete":
        return splice(plan.body, {"max_tokens_to_sample": limit})
    changes: dict[str, Any] = {"max_tokens": limit}
    thinking = parse_object(plan.body).get("thinking")
    if isinstance(thinking, dict) and isinstance(thinking.get("budget_tokens"), int):
        budget = min(thinking["budget_tokens"], max(MIN_THINKING, limit - MIN_OUTPUT))
        if budget != thinking["budget_tokens"]:
            changes["thinking"] = {**thinking, "budget_tokens": budget}
    return splice(plan.body, changes)


class _Reader:
    """One request; figures start at the worst and get better as the body is understood."""

    def __init__(self, body: bytes, headers: Mapping[str, str], prices: PriceTable, provider: str) -> None:
        self.refusal = ""
        self._body = body
        self._headers = headers
        self._prices = prices
        self._provider = provider
        self._rates = prices.find(provider, "").rates
        self._data: dict[str, Any] = {}
        self._keys: set[str] = set()
        self._model = ""
        self._stream = False
        self._window = self._rates.context_window
        self._bytes = len(body)
        self._tokens = 0
        self._whole_window = True
        self._rounds = 1
        self._uses = 0
        self._limit = self._rates.max_output
        self._floor = MIN_OUTPUT
        self._cache = "1h"
        self._multipliers: tuple[str, ...] = ("inference_geo:us",)

    def plan(self) -> CallPlan:
        bound = self._window
        if not self._whole_window:
            bound = min(bound, max(self._bytes, 0) + self._tokens)
        if self._rounds > 1:
            bound = self._window * self._rounds
        return CallPlan(
            model=self._model,
            stream=self._stream,
            input_bound=bound,
            output_limit=self._limit * self._rounds,
            body=self._body,
            choices=self._rounds,
            min_output=min(self._limit, self._floor) * self._rounds,
            server_tool_uses=self._uses,
            refusal=self.refusal,
            cache_write=self._cache,
            multipliers=self._multipliers,
        )

    def complete(self) -> None:
        self._open("max_tokens_to_sample")
        check_keys(self._data, _COMPLETE)
        self._cache = "none"
        self._tokens = _OVERHEAD
        self._whole_window = False

    def messages(self) -> None:
        self._open("max_tokens")
        data = self._data
        self._multipliers = self._surcharges()
        check_keys(data, _MESSAGES)
        self._cache = "none"
        if "cache_control" in self._keys:
            self._cache = "1h" if "ttl" in self._keys else "5m"
        self._thinking()
        self._whole_window = False
        self._tokens = _OVERHEAD
        if data.get("container") is not None or data.get("thread") is not None:
            self._whole_window = True
        self._blocks(data.get("system"), 0)
        turns = data.get("messages")
        if isinstance(turns, list):
            for turn in turns:
                self._blocks(turn.get("content") if isinstance(turn, dict) else turn, 0)
        else:
            self._whole_window = True
        self._tools()
        self._unbounded()

    def _open(self, limit_key: str) -> None:
        self._data = data = parse_object(self._body, self._keys)
        model = model_name(data)
        if not model:
            raise UnboundedError("the body names no model")
        self._model = model
        self._rates = self._prices.find(self._provider, model).rates
        self._window = self._rates.context_window
        if "context-1m" in self._headers.get("anthropic-beta", "") or "[1m]" in model.lower():
            self._window = max(self._window, _BIG_WINDOW)
        self._limit = self._rates.max_output
        limit = whole(data, limit_key)
        if limit is not None:
            self._limit = limit
        self._stream = flag(data, "stream")

    def _surcharges(self) -> tuple[str, ...]:
        data = self._data
        names = []
        for key in ("service_tier", "speed", "inference_geo"):
            value = data.get(key)
            if isinstance(value, str):
                names.append(f"{key}:{value[:40]}")
            elif value is not None:
                raise UnboundedError(f"{key} is not a text")
            elif key == "inference_geo":
                # The account may have a default that the request does not show.
                names.append("inference_geo:us")
        # The tiers of a request are wishes (auto, standard_only); neither costs more.
        return tuple(name for name in names if not name.startswith("service_tier:"))

    def _thinking(self) -> None:
        thinking = self._data.get("thinking")
        if thinking is None:
            return
        if not isinstance(thinking, dict):
            raise UnboundedError("thinking is not an object")
        if whole(thinking, "budget_tokens") is not None:
            self._floor = MIN_THINKING + MIN_OUTPUT

    def _blocks(self, content: Any, depth: int) -> None:
        """Account for what is not text in a list of content blocks."""
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list) or depth > _DEPTH:
            self._whole_window = True
            return
        for block in content:
            if not isinstance(block, dict):
                self._whole_window = True
                continue
            kind = block.get("type")
            if kind == "image":
                self._image(block.get("source"))
            elif kind in ("tool_result", "mcp_tool_result"):
                self._blocks(block.get("content"), depth + 1)
            elif kind == "document":
                source = block.get("source")
                form = source.get("type") if isinstance(source, dict) else None
                if form == "content" and isinstance(source, dict):
                    self._blocks(source.get("content"), depth + 1)
                elif form != "text":
                    self._whole_window = True
            elif kind not in _TEXT_BLOCKS:
                self._whole_window = True

    def _image(self, source: Any) -> None:
        self._tokens += IMAGE_TOKENS
        if not isinstance(source, dict):
            return
        data = source.get("data")
        if source.get("type") == "base64" and isinstance(data, str) and data.isascii():
            self._bytes -= len(data)

    def _tools(self) -> None:
        tools = self._data.get("tools")
        if tools is None:
            return
        if not isinstance(tools, list):
            raise UnboundedError("tools is not a list")
        self._tokens += _TOOLS_OVERHEAD
        loops = 0
        for tool in tools:
            kind = tool.get("type") if isinstance(tool, dict) else ""
            if kind is None or kind == "custom":
                continue
            if not isinstance(kind, str) or not kind:
                raise UnboundedError("a tool is not an object with a type")
            if kind.startswith(_CLIENT_TOOLS):
                self._tokens += _TYPED_TOOL_OVERHEAD
            elif kind.startswith("tool_search_tool_"):
                self._tokens += _TYPED_TOOL_OVERHEAD
                loops = SERVER_ROUNDS
            elif kind.startswith(("web_search_", "web_fetch_")):
                uses = whole(tool, "max_uses")
                if uses is None:
                    raise UnboundedError(f"the server tool {kind[:40]} has no max_uses")
                if kind.startswith("web_search_"):
                    self._uses += uses
                loops = max(loops + uses, SERVER_ROUNDS if not kind.endswith(("20250305", "20250910")) else 0)
            else:
                raise UnboundedError(f"what the tool {kind[:40]} costs cannot be bounded")
        self._rounds = 1 + min(loops, SERVER_ROUNDS)

    def _unbounded(self) -> None:
        data = self._data
        for key, why in (
            ("mcp_servers", "servers that the provider calls run an unbounded number of rounds"),
            ("fallbacks", "another model may answer at another price"),
            ("compaction", "the provider's own summary is billed on top"),
        ):
            if data.get(key):
                raise UnboundedError(f"{key}: {why}")
        management = data.get("context_management")
        if management is None:
            return
        edits = management.get("edits") if isinstance(management, dict) else None
        for edit in edits if isinstance(edits, list) else [management]:
            kind = edit.get("type") if isinstance(edit, dict) else None
            if management != {} and (not isinstance(kind, str) or not kind.startswith(_FREE_EDITS)):
                raise UnboundedError("context_management: the provider's own summary is billed on top")
