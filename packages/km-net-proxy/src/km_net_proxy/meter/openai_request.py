"""Reading and clamping OpenAI requests; the bounds rest on the same facts as `anthropic_request`'s."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import evolve

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
    from km_core.ledger import PriceTable

MIN_OUTPUT = 512
"""Lowest output limit a call is lowered to, in tokens for each choice (DESIGN section 8)."""

IMAGE_TOKENS = 20_000
"""Bound for one image at any detail."""

TILED_IMAGE_TOKENS = 50_000
"""The same for the one family that bills tiles at a multiple."""

_OVERHEAD = 1_000
_TOOLS_OVERHEAD = 2_000
_MAX_CHOICES = 4096
_TILED = re.compile(r"gpt-4o-mini")
_OWN_MODEL = re.compile(r"(?:ft:)?(?:gpt-|o\d|chatgpt-|codex)")
_SPECIAL = re.compile(r"audio|realtime|search|deep-research|image|tts|transcribe|sora|computer-use")

_SAMPLING = (
    "temperature top_p top_k min_p typical_p frequency_penalty presence_penalty repetition_penalty seed stop "
    "logit_bias logprobs top_logprobs user metadata store stream stream_options model service_tier "
    "safety_identifier prompt_cache_key prompt_cache_options prompt_cache_retention verbosity"
)
_CHAT = words(
    f"{_SAMPLING} messages max_tokens max_completion_tokens n tools tool_choice parallel_tool_calls functions "
    "function_call response_format reasoning_effort reasoning modalities chat_template_kwargs "
    "web_search_options audio prediction"
)
_COMPLETIONS = words(f"{_SAMPLING} prompt max_tokens n best_of echo suffix")
_EMBEDDINGS = words("input model dimensions encoding_format user")
_RESPONSES = words(
    f"{_SAMPLING} input instructions max_output_tokens max_tool_calls tools tool_choice parallel_tool_calls "
    "reasoning text truncation include previous_response_id conversation prompt background background_options "
    "context_management client_metadata"
)
_COMPACT = words(
    f"{_SAMPLING} input instructions previous_response_id tools parallel_tool_calls reasoning text "
    "client_metadata"
)
_CLIENT_TOOLS = words("function custom local_shell apply_patch computer computer_use_preview namespace")
_TEXT_ITEMS = words(
    "function_call custom_tool_call local_shell_call shell_call apply_patch_call computer_call reasoning "
    "web_search_call tool_search_call"
)
_OUTPUT_ITEMS = words(
    "function_call_output custom_tool_call_output local_shell_call_output shell_call_output "
    "apply_patch_call_output computer_call_output tool_search_output"
)
_TEXT_PARTS = words("text input_text output_text refusal summary_text reasoning_text")
_SEARCH = "web_search"
_SEARCHING = frozenset({"responses", "compact"})
_STREAMED = frozenset({"chat", "completions"})


def plan_call(endpoint: Endpoint, body: bytes, prices: PriceTable, provider: str) -> CallPlan:
    """Read a metered request; never raises."""
    reader = _Reader(endpoint, body, prices, provider)
    try:
        reader.read()
    except UnboundedError as error:
        reader.refusal = str(error)
    plan = reader.plan()
    lesser = reader.without_searches()
    if lesser is None:
        return plan
    less = plan_call(endpoint, lesser, prices, provider)
    return plan if less.refusal else evolve(plan, lesser=evolve(less, left_out=(_SEARCH,)))


def clamp(endpoint: Endpoint, plan: CallPlan, output_limit: int) -> bytes:
    """
    Return the body with its output limit lowered; *output_limit* counts all choices together.

    Raises:
        ValueError: *output_limit* is below `CallPlan.min_output`.
    """
    if output_limit >= plan.output_limit:
        return plan.body
    if output_limit < plan.min_output:
        raise ValueError(f"the output limit may not be lowered to {output_limit}")
    limit = output_limit // plan.choices
    if endpoint.name == "responses":
        return splice(plan.body, {"max_output_tokens": limit})
    if endpoint.name == "completions":
        return splice(plan.body, {"max_tokens": limit})
    data = parse_object(plan.body)
    present = [key for key in ("max_completion_tokens", "max_tokens") if data.get(key) is not None]
    if not present:
        # Servers that only speak the protocol may know the older name alone, and an unknown limit
        # would be no limit; the provider's own newer models know the newer name alone.
        present = ["max_completion_tokens" if _OWN_MODEL.match(plan.model.lower()) else "max_tokens"]
    return splice(plan.body, {key: min(limit, data.get(key) or limit) for key in present})


class _Reader:
    """One request; figures start at the worst and get better as the body is understood."""

    def __init__(self, endpoint: Endpoint, body: bytes, prices: PriceTable, provider: str) -> None:
        self.refusal = ""
        self._endpoint = endpoint
        self._body = body
        self._prices = prices
        self._provider = provider
        self._data: dict[str, Any] = {}
        self._model = endpoint.model
        self._rates = prices.find(provider, self._model).rates
        self._stream = False
        self._strips = False
        self._bytes = len(body)
        self._tokens = _OVERHEAD
        self._image = IMAGE_TOKENS
        self._whole_window = True
        self._rounds = 1
        self._uses = 0
        self._choices = 1
        self._limit = self._rates.max_output
        self._floor: int | None = MIN_OUTPUT
        self._cache = "1h"
        self._multipliers: tuple[str, ...] = ()
        self._searches_freely = False

    def without_searches(self) -> bytes | None:
        """Return the body without the offer to search, when that is what was refused and nothing calls for it."""
        choice = self._data.get("tool_choice")
        if not self._searches_freely or not (choice is None or choice == "auto"):
            return None
        return splice(self._body, {"tools": [t for t in self._data["tools"] if t["type"] != _SEARCH]})

    def plan(self) -> CallPlan:
        window = self._rates.context_window
        bound = window
        if self._rounds > 1:
            bound = window * self._rounds
        elif not self._whole_window:
            bound = max(self._bytes, 0) + self._tokens
            if self._choices == 1:
                # Several prompts of one legacy request may fill the window each.
                bound = min(bound, window)
        floor = self._limit if self._floor is None else min(self._limit, self._floor)
        return CallPlan(
            model=self._model,
            stream=self._stream,
            input_bound=bound,
            output_limit=self._limit * self._choices,
            body=self._body,
            choices=self._choices,
            min_output=floor * self._choices,
            server_tool_uses=self._uses,
            strips_usage_chunk=self._strips,
            refusal=self.refusal,
            cache_write=self._cache,
            multipliers=self._multipliers,
        )

    def read(self) -> None:
        keys: set[str] = set()
        self._data = parse_object(self._body, keys)
        self._open()
        name = self._endpoint.name
        if name in _STREAMED and self._stream:
            self._ask_for_usage()
        readers = {
            "chat": self._chat,
            "completions": self._completions,
            "embeddings": self._embeddings,
            "responses": self._responses,
            "compact": self._compact,
        }
        readers[name]()
        if _SPECIAL.search(self._model.lower()):
            raise UnboundedError("the model bills more than its text tokens")

    def _open(self) -> None:
        data = self._data
        # An Azure deployment's name in the path wins over a model in the body.
        self._model = self._endpoint.model or model_name(data)
        if not self._model:
            raise UnboundedError("the body names no model")
        self._rates = self._prices.find(self._provider, self._model).rates
        self._limit = self._rates.max_output
        if (
            _TILED.search(self._model.lower())
            or self._prices.find(self._provider, self._model).source != "table"
        ):
            self._image = TILED_IMAGE_TOKENS
        self._stream = flag(data, "stream")
        tier = data.get("service_tier")
        if tier is not None:
            if not isinstance(tier, str):
                raise UnboundedError("service_tier is not a text")
            self._multipliers = (f"service_tier:{tier[:40]}",)
        options = data.get("prompt_cache_options")
        ttl = options.get("ttl") if isinstance(options, dict) else None
        if options is None or (isinstance(options, dict) and ttl in (None, "30m")):
            self._cache = "5m"

    def _ask_for_usage(self) -> None:
        options = self._data.get("stream_options")
        if options is None:
            options = {}
        if not isinstance(options, dict):
            raise UnboundedError("stream_options is not an object")
        if options.get("include_usage") is True:
            return
        self._body = splice(self._body, {"stream_options": {**options, "include_usage": True}})
        self._strips = True

    def _output_limit(self, *keys: str) -> None:
        limits = [limit for key in keys if (limit := whole(self._data, key)) is not None]
        if limits:
            self._limit = max(limits)

    def _chat(self) -> None:
        data = self._data
        self._output_limit("max_completion_tokens", "max_tokens")
        self._several(whole(data, "n"))
        check_keys(data, _CHAT)
        for key, why in (
            ("web_search_options", "the searches of a chat completion have no limit"),
            ("audio", "audio is billed at rates of its own"),
            ("prediction", "rejected predictions are billed beyond the output limit"),
        ):
            if data.get(key) is not None:
                raise UnboundedError(f"{key}: {why}")
        if data.get("modalities") not in (None, [], ["text"]):
            raise UnboundedError("modalities: audio is billed at rates of its own")
        self._whole_window = False
        self._tool_list(frozenset({"function", "custom"}))
        messages = data.get("messages")
        if not isinstance(messages, list):
            self._whole_window = True
            return
        for message in messages:
            if isinstance(message, dict):
                if message.get("audio") is not None:
                    raise UnboundedError("audio is billed at rates of its own")
                self._parts(message.get("content"))
            else:
                self._whole_window = True

    def _completions(self) -> None:
        data = self._data
        self._output_limit("max_tokens")
        choices = max(whole(data, "n") or 1, whole(data, "best_of") or 1)
        prompt = data.get("prompt")
        if isinstance(prompt, list) and any(isinstance(one, str | list) for one in prompt):
            choices *= len(prompt)
        self._several(choices)
        check_keys(data, _COMPLETIONS)
        self._whole_window = False

    def _embeddings(self) -> None:
        self._limit = 0
        self._cache = "none"
        check_keys(self._data, _EMBEDDINGS)
        self._whole_window = False

    def _compact(self) -> None:
        # There is no field to lower: the call fits as it is or not at all.
        self._floor = None
        check_keys(self._data, _COMPACT)
        self._whole_window = self._data.get("previous_response_id") is not None
        self._tool_list(_CLIENT_TOOLS)
        self._items()

    def _responses(self) -> None:
        data = self._data
        self._output_limit("max_output_tokens")
        check_keys(data, _RESPONSES)
        for key, why in (
            ("background", "the answer comes by another request"),
            ("background_options", "the answer comes by another request"),
            ("prompt", "a stored prompt may choose model and tools"),
            ("context_management", "the provider's own summary is billed on top"),
        ):
            if data.get(key):
                raise UnboundedError(f"{key}: {why}")
        self._whole_window = (
            data.get("previous_response_id") is not None or data.get("conversation") is not None
        )
        self._tool_list(_CLIENT_TOOLS)
        self._items()

    def _several(self, choices: int | None) -> None:
        self._choices = max(choices or 1, 1)
        if self._choices > _MAX_CHOICES:
            raise UnboundedError(f"more than {_MAX_CHOICES} choices")

    def _items(self) -> None:
        items = self._data.get("input")
        if items is None or isinstance(items, str):
            return
        if not isinstance(items, list):
            self._whole_window = True
            return
        for item in items:
            kind = item.get("type", "message") if isinstance(item, dict) else None
            if isinstance(item, dict) and item.get("tools") is not None:
                # Tools that join those of the body in the middle of a conversation.
                _only_at_client(item["tools"])
            if kind == "additional_tools":
                self._tokens += _TOOLS_OVERHEAD
            elif kind == "message":
                self._parts(item.get("content"))
            elif kind in _OUTPUT_ITEMS:
                output = item.get("output")
                self._parts([output] if isinstance(output, dict) else output)
            elif kind not in _TEXT_ITEMS:
                self._whole_window = True

    def _parts(self, content: Any) -> None:
        """Account for what is not text in a list of content parts."""
        if content is None or isinstance(content, str):
            return
        if not isinstance(content, list):
            self._whole_window = True
            return
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind in ("image_url", "input_image", "computer_screenshot"):
                self._picture(part.get("image_url"))
            elif kind == "input_audio":
                raise UnboundedError("audio is billed at rates of its own")
            elif kind not in _TEXT_PARTS:
                self._whole_window = True

    def _picture(self, source: Any) -> None:
        self._tokens += self._image
        url = source.get("url") if isinstance(source, dict) else source
        if isinstance(url, str) and url.startswith("data:image/") and url.isascii():
            self._bytes -= len(url)

    def _tool_list(self, known: frozenset[str]) -> None:
        tools = self._data.get("tools")
        if tools is None:
            return
        if not isinstance(tools, list):
            raise UnboundedError("tools is not a list")
        self._tokens += _TOOLS_OVERHEAD
        searches = False
        for tool in tools:
            kind = tool.get("type") if isinstance(tool, dict) else None
            if not isinstance(kind, str):
                raise UnboundedError("a tool is not an object with a type")
            if kind == _SEARCH and self._endpoint.name in _SEARCHING:
                searches = True
            elif not (kind in known or _runs_at_client(tool)):
                raise UnboundedError(f"what the tool {kind[:40]} costs cannot be bounded")
            elif kind == "namespace":
                _only_at_client(tool.get("tools"))
        if searches:
            uses = whole(self._data, "max_tool_calls")
            if uses is None:
                self._searches_freely = True
                raise UnboundedError("the server tool web_search has no max_tool_calls")
            self._uses = uses
            self._rounds = uses + 1


def _only_at_client(tools: Any) -> None:
    """Refuse tools in places where nothing limits their calls, unless the client runs them."""
    waiting = [tools]
    while waiting:
        level = waiting.pop()
        if not isinstance(level, list):
            raise UnboundedError("tools is not a list")
        for tool in level:
            kind = tool.get("type") if isinstance(tool, dict) else None
            if not isinstance(kind, str):
                raise UnboundedError("a tool is not an object with a type")
            if kind not in _CLIENT_TOOLS and not _runs_at_client(tool):
                raise UnboundedError(f"what the tool {kind[:40]} costs cannot be bounded")
            if kind == "namespace":
                waiting.append(tool.get("tools"))


def _runs_at_client(tool: dict[str, Any]) -> bool:
    kind = tool.get("type")
    if kind == "tool_search":
        return tool.get("execution") == "client"
    environment = tool.get("environment")
    return kind == "shell" and isinstance(environment, dict) and environment.get("type") == "local"
