"""The meters this distribution offers."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from km_core.errors import ConfigError
from km_core.ledger import default_table
from km_core.policy.ai_paths import plain_path
from km_core.types import CallPlan, Decoder, Endpoint, InjectionRule, Meter, ResponseFilter, UsageParser
from km_net_proxy.meter import anthropic, anthropic_request, openai, openai_request
from km_net_proxy.meter.decode import new_decoder
from km_net_proxy.meter.figures import not_billed
from km_net_proxy.meter.target import SAFE_METHODS, free, metered, refused, refused_outright
from km_net_proxy.meter.usage_chunk import UsageChunkFilter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from km_core.ledger import PriceTable

ANTHROPIC_HOST = "api.anthropic.com"
OPENAI_HOST = "api.openai.com"
UNAVAILABLE = "control_plane_unavailable"
"""The one refusal that may pass by itself: 503 instead of 403."""

_HOST = re.compile(r"(?=.{1,253}\Z)[a-z0-9-]{1,63}(?:\.[a-z0-9-]{1,63})+\Z")
_DEPLOYMENT = re.compile(r"/openai/deployments/([A-Za-z0-9._-]+)/")
_OPENAI_METERED = (
    ("/chat/completions", "chat"),
    ("/responses/compact", "compact"),
    ("/responses", "responses"),
    ("/embeddings", "embeddings"),
    ("/completions", "completions"),
)
_OPENAI_UNMETERED = re.compile(
    r"/(batches|realtime|live|images|audio|videos|fine_tuning|fine-tunes|assistants|threads|evals|uploads|files"
    r"|vector_stores|containers|decisions)(?:/|\Z)"
)
_ANTHROPIC_UNMETERED = re.compile(r"/v1/(messages/batches|files|agents|sessions|deployments|dreams)(?:/|\Z)")
_NO_USAGE = "it bills without usage in its answer"
_UNKNOWN = "it is not known to be metered or free"


class AnthropicMeter:
    """``api.anthropic.com``: messages and the legacy completions."""

    name = anthropic.PROVIDER
    hosts = (ANTHROPIC_HOST,)
    injection: InjectionRule | None = InjectionRule(
        secret="anthropic-api-key",  # noqa: S106 - the name of a secret, not one
        strip=("x-api-key", "authorization", "cookie"),
        header="x-api-key",
        template="{secret}",
        env=(("ANTHROPIC_API_KEY", "sk-ant-km-placeholder-not-a-key"),),
    )

    def __init__(self, prices: PriceTable | None = None) -> None:
        self._prices = prices or default_table()

    def endpoint(self, method: str, path: str, headers: Mapping[str, str]) -> Endpoint:
        """Classify a request; see `km_core.types.Meter`."""
        plain = plain_path(path)
        if (outright := refused_outright(plain, headers)) is not None:
            return outright
        if found := _ANTHROPIC_UNMETERED.match(plain):
            return refused(found[1], _NO_USAGE)
        if method in SAFE_METHODS:
            return free("read")
        if method == "POST":
            if plain == "/v1/messages":
                return metered("messages")
            if plain == "/v1/complete":
                return metered("complete")
            if plain == "/v1/messages/count_tokens":
                return free("count_tokens")
        return refused("unknown", _UNKNOWN)

    def plan_call(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> CallPlan:
        """Read a metered request's body; see `anthropic_request`."""
        return anthropic_request.plan_messages(endpoint, headers, body, self._prices, self.name)

    def clamp(self, endpoint: Endpoint, plan: CallPlan, output_limit: int) -> bytes:
        """Return the body with its output limit lowered; raises ValueError below `CallPlan.min_output`."""
        return anthropic_request.clamp_messages(endpoint, plan, output_limit)

    def parser(
        self, endpoint: Endpoint, plan: CallPlan, status: int, headers: Mapping[str, str]
    ) -> UsageParser:
        """Return a parser for the response."""
        events = _is_stream(plan, status, headers)
        if endpoint.name == "complete":
            kind = anthropic.CompletionStream if events else anthropic.CompletionBody
            return kind(plan, status)
        return anthropic.MessagesStream(plan, status) if events else anthropic.MessagesBody(plan, status)

    def refusal(self, code: str, message: str, km: Mapping[str, object]) -> tuple[int, bytes]:
        """Return status and body in the provider's error shape."""
        unavailable = code == UNAVAILABLE
        error = {"type": "api_error" if unavailable else "permission_error", "message": message}
        body = {"type": "error", "error": error, "km": {"code": code, **km}}
        return (503 if unavailable else 403), json.dumps(body).encode()

    def decoder(self, content_encoding: str) -> Decoder:
        """Return a decoder for a response's content coding."""
        return new_decoder(content_encoding)

    def response_filter(self, plan: CallPlan) -> ResponseFilter | None:  # noqa: ARG002 - the protocol's signature
        """Return None: nothing is added to a request."""
        return None


class OpenAIMeter:
    """
    ``api.openai.com``, and apart from it the operator's OpenAI-compatible hosts.

    The provider's own credential is injected on its own host only.  Organisation and project headers
    are stripped with it: which account pays is the operator's choice, not the sandbox's.
    """

    injection: InjectionRule | None

    def __init__(self, hosts: Iterable[str] = (), prices: PriceTable | None = None) -> None:
        self._prices = prices or default_table()
        extra = tuple(sorted({_host(host) for host in hosts}))
        self.hosts = extra or (OPENAI_HOST,)
        self.name = "openai-compatible" if extra else openai.PROVIDER
        self.injection = None if extra else _OPENAI_INJECTION

    def endpoint(self, method: str, path: str, headers: Mapping[str, str]) -> Endpoint:
        """Classify a request; see `km_core.types.Meter`."""
        plain = plain_path(path)
        if (outright := refused_outright(plain, headers)) is not None:
            return outright
        if found := _OPENAI_UNMETERED.search(plain):
            return refused(found[1], _NO_USAGE)
        if method in SAFE_METHODS:
            return free("read")
        if method == "POST":
            if plain.endswith(("/responses/input_tokens", "/moderations")):
                return free("count")
            if re.search(r"/responses/[A-Za-z0-9_-]+/cancel\Z", plain):
                return free("cancel")
            deployment = _DEPLOYMENT.search(plain)
            for suffix, name in _OPENAI_METERED:
                if plain.endswith(suffix):
                    return metered(name, deployment[1] if deployment else "")
        return refused("unknown", _UNKNOWN)

    def plan_call(self, endpoint: Endpoint, headers: Mapping[str, str], body: bytes) -> CallPlan:  # noqa: ARG002 - the protocol's signature
        """Read a metered request's body; see `openai_request`."""
        return openai_request.plan_call(endpoint, body, self._prices, self.name)

    def clamp(self, endpoint: Endpoint, plan: CallPlan, output_limit: int) -> bytes:
        """Return the body with its output limit lowered; raises ValueError below `CallPlan.min_output`."""
        return openai_request.clamp(endpoint, plan, output_limit)

    def parser(
        self, endpoint: Endpoint, plan: CallPlan, status: int, headers: Mapping[str, str]
    ) -> UsageParser:
        """Return a parser for the response."""
        if not _is_stream(plan, status, headers):
            return openai.JsonBody(plan, status, self.name)
        if endpoint.name in ("responses", "compact"):
            return openai.ResponsesStream(plan, status, self.name)
        return openai.ChatStream(plan, status, self.name)

    def refusal(self, code: str, message: str, km: Mapping[str, object]) -> tuple[int, bytes]:
        """Return status and body in the provider's error shape."""
        unavailable = code == UNAVAILABLE
        kind = "server_error" if unavailable else "permission_error"
        error = {"message": message, "type": kind, "param": None, "code": code}
        body = {"error": error, "km": {"code": code, **km}}
        return (503 if unavailable else 403), json.dumps(body).encode()

    def decoder(self, content_encoding: str) -> Decoder:
        """Return a decoder for a response's content coding."""
        return new_decoder(content_encoding)

    def response_filter(self, plan: CallPlan) -> ResponseFilter | None:
        """Return a filter for the usage chunk that was asked for on the client's behalf."""
        return UsageChunkFilter() if plan.strips_usage_chunk else None


_OPENAI_INJECTION = InjectionRule(
    secret="openai-api-key",  # noqa: S106 - the name of a secret, not one
    strip=("authorization", "cookie", "openai-organization", "openai-project", "api-key"),
    header="authorization",
    template="Bearer {secret}",
    env=(("OPENAI_API_KEY", "sk-km-placeholder-not-a-key"),),
)


def meters(
    openai_compatible_hosts: Iterable[str] = (), prices: PriceTable | None = None
) -> tuple[Meter, ...]:
    """
    Return the meters of this distribution.

    Args:
        openai_compatible_hosts: ``ai.openaiCompatibleHosts`` of the operator's configuration: exact
            names.  They are metered as ``openai-compatible``, priced like OpenAI's models unless the
            operator's prices have a provider of that name, and get the credential of the operator's rule
            for them, or none.
        prices: price table, by default the package's own.

    Raises:
        ConfigError: a host is not an exact name, or is another meter's.
    """
    hosts = [host for host in openai_compatible_hosts if _host(host) != OPENAI_HOST]
    if any(_host(host) == ANTHROPIC_HOST for host in hosts):
        raise ConfigError(
            f"{ANTHROPIC_HOST} is not OpenAI-compatible",
            where="ai.openaiCompatibleHosts",
            hint="leave it out",
        )
    offered: list[Meter] = [AnthropicMeter(prices), OpenAIMeter(prices=prices)]
    if hosts:
        offered.append(OpenAIMeter(hosts, prices))
    return tuple(offered)


def _host(name: str) -> str:
    canonical = name.strip().lower().rstrip(".")
    if not _HOST.match(canonical):
        raise ConfigError(
            f"{name!r} is not an exact host name",
            where="ai.openaiCompatibleHosts",
            hint="write each host, without wildcard, scheme and port",
        )
    return canonical


def _is_stream(plan: CallPlan, status: int, headers: Mapping[str, str]) -> bool:
    """Tell a stream of events by what the answer says it is, else by what was asked for."""
    if not_billed(status):
        return False
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "text/event-stream":
        return True
    return plan.stream and kind not in ("application/json", "text/json")
