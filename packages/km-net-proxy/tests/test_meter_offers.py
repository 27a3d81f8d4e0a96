"""What is metered, free or refused; credentials; refusals as the providers' own clients see them."""

from __future__ import annotations

import http.server
import json
import re
import threading

import pytest

from km_core.errors import ConfigError
from km_core.types import CallPlan, Endpoint, EndpointKind
from km_net_proxy.meter import AnthropicMeter, OpenAIMeter, meters

ANTHROPIC = AnthropicMeter()
OPENAI = OpenAIMeter()
PLAN = CallPlan(model="m", stream=True, input_bound=1, output_limit=1, body=b"{}")


@pytest.mark.parametrize(
    ("meter", "method", "path", "kind", "name"),
    [
        (ANTHROPIC, "POST", "/v1/messages", "metered", "messages"),
        (ANTHROPIC, "POST", "/v1/messages?beta=true", "metered", "messages"),
        (ANTHROPIC, "POST", "/v1/messages?a=%2F..%2F&b", "metered", "messages"),
        (ANTHROPIC, "POST", "https://api.anthropic.com/v1/messages", "metered", "messages"),
        (ANTHROPIC, "POST", "/v1/complete", "metered", "complete"),
        (ANTHROPIC, "POST", "/v1/messages/count_tokens?beta=true", "free", "count_tokens"),
        (ANTHROPIC, "GET", "/v1/models", "free", "read"),
        (ANTHROPIC, "GET", "/v1/models/claude-sonnet-4-6", "free", "read"),
        (ANTHROPIC, "HEAD", "/", "free", "read"),
        (ANTHROPIC, "POST", "/v1/messages/batches", "refused", "messages/batches"),
        (ANTHROPIC, "GET", "/v1/messages/batches/b/results", "refused", "messages/batches"),
        (ANTHROPIC, "POST", "/v1/files", "refused", "files"),
        (ANTHROPIC, "POST", "/v1/unheard-of", "refused", "unknown"),
        (ANTHROPIC, "DELETE", "/v1/messages", "refused", "unknown"),
        (ANTHROPIC, "POST", "/v1/messages/", "refused", "unknown"),
        (ANTHROPIC, "POST", "/v1//messages", "refused", "unusual"),
        (ANTHROPIC, "POST", "/v1/m%65ssages", "refused", "unusual"),
        (ANTHROPIC, "GET", "/v1/models/../messages", "refused", "unusual"),
        (ANTHROPIC, "GET", "/v1/models;x=/v1/messages", "refused", "unusual"),
        (ANTHROPIC, "GET", "/v1/models\\..\\messages", "refused", "unusual"),
        (ANTHROPIC, "GET", "", "refused", "unusual"),
        (OPENAI, "POST", "/v1/chat/completions", "metered", "chat"),
        (OPENAI, "POST", "/v1/responses", "metered", "responses"),
        (OPENAI, "POST", "/v1/responses/compact", "metered", "compact"),
        (OPENAI, "POST", "/v1/completions", "metered", "completions"),
        (OPENAI, "POST", "/v1/embeddings", "metered", "embeddings"),
        (OPENAI, "POST", "/v1/responses/input_tokens", "free", "count"),
        (OPENAI, "POST", "/v1/responses/resp_1/cancel", "free", "cancel"),
        (OPENAI, "GET", "/v1/models", "free", "read"),
        (OPENAI, "GET", "/v1/responses/resp_1", "free", "read"),
        (OPENAI, "POST", "/v1/batches", "refused", "batches"),
        (OPENAI, "GET", "/v1/realtime?model=x", "refused", "realtime"),
        (OPENAI, "POST", "/v1/realtime/client_secrets", "refused", "realtime"),
        (OPENAI, "POST", "/v1/images/generations", "refused", "images"),
        (OPENAI, "POST", "/v1/audio/speech", "refused", "audio"),
        (OPENAI, "POST", "/v1/videos", "refused", "videos"),
        (OPENAI, "POST", "/v1/fine_tuning/jobs", "refused", "fine_tuning"),
        (OPENAI, "POST", "/v1/threads/t/runs", "refused", "threads"),
        (OPENAI, "POST", "/v1/chat/completions/c1", "refused", "unknown"),
        (OPENAI, "POST", "/v1/chat/%63ompletions", "refused", "unusual"),
    ],
)
def test_unmetered_endpoint_refused_when_limited(meter, method, path, kind, name):
    endpoint = meter.endpoint(method, path, {})
    assert (str(endpoint.kind), endpoint.name) == (kind, name)
    assert bool(endpoint.reason) == (kind == "refused")


def test_count_tokens_free():
    assert ANTHROPIC.endpoint("POST", "/v1/messages/count_tokens", {}).kind is EndpointKind.FREE
    assert OPENAI.endpoint("POST", "/v1/responses/input_tokens", {}).kind is EndpointKind.FREE


@pytest.mark.parametrize("meter", [ANTHROPIC, OPENAI])
@pytest.mark.parametrize("header", ["upgrade", "sec-websocket-key", "x-http-method-override"])
def test_websockets_and_method_overrides_are_refused(meter, header):
    assert meter.endpoint("GET", "/v1/models", {header: "x"}).kind is EndpointKind.REFUSED
    assert meter.endpoint("POST", "/v1/responses", {header: "x"}).kind is EndpointKind.REFUSED


def test_a_deployment_names_its_model():
    endpoint = OPENAI.endpoint(
        "POST", "/openai/deployments/gpt-4o/chat/completions?api-version=2024-10-21", {}
    )
    assert endpoint == Endpoint("chat", EndpointKind.METERED, model="gpt-4o")


def test_suffix_lookalike_host_not_ai():
    hosts = {host for meter in meters(["LLM.Example.org."]) for host in meter.hosts}
    assert hosts == {"api.anthropic.com", "api.openai.com", "llm.example.org"}


def test_the_providers_key_goes_to_the_providers_host_only():
    offered = {meter.name: meter for meter in meters(["llm.example.org", "api.openai.com"])}
    assert set(offered) == {"anthropic", "openai", "openai-compatible"}
    assert offered["openai-compatible"].injection is None
    assert offered["openai-compatible"].hosts == ("llm.example.org",)
    assert {meter.name for meter in meters()} == {"anthropic", "openai"}


@pytest.mark.parametrize(
    "host", ["*.openai.azure.com", "https://x.org", "x.org:443", "", "localhost", "api.anthropic.com"]
)
def test_only_exact_host_names_are_compatible_hosts(host):
    with pytest.raises(ConfigError):
        meters([host])


@pytest.mark.parametrize(
    ("meter", "header", "template", "variable"),
    [
        (ANTHROPIC, "x-api-key", "{secret}", "ANTHROPIC_API_KEY"),
        (OPENAI, "authorization", "Bearer {secret}", "OPENAI_API_KEY"),
    ],
)
def test_injection_rules(meter, header, template, variable):
    rule = meter.injection
    assert (rule.header, rule.template) == (header, template)
    assert {"authorization", "cookie", header} <= set(rule.strip)
    ((name, value),) = rule.env
    assert name == variable
    assert "km-placeholder-not-a-key" in value
    assert re.fullmatch(r"sk-[a-z-]+", value)


def test_refusals_have_the_providers_shape():
    km = {"pool": "ai", "spent": 5.0042, "limit": 5.0, "model": "m", "top_up": "km budget add x --ai 5"}
    status, body = ANTHROPIC.refusal("ai_budget_exhausted", "spent", km)
    assert status == 403
    assert json.loads(body) == {
        "type": "error",
        "error": {"type": "permission_error", "message": "spent"},
        "km": {"code": "ai_budget_exhausted", **km},
    }
    status, body = OPENAI.refusal("ai_budget_exhausted", "spent", km)
    assert status == 403
    assert json.loads(body)["error"] == {
        "message": "spent",
        "type": "permission_error",
        "param": None,
        "code": "ai_budget_exhausted",
    }
    for meter in (ANTHROPIC, OPENAI):
        assert meter.refusal("control_plane_unavailable", "x", {})[0] == 503


class Answering(http.server.BaseHTTPRequestHandler):
    answer = (403, b"{}")
    seen: list[str]

    def do_POST(self):
        self.rfile.read(int(self.headers["content-length"]))
        type(self).seen.append(self.path)
        status, body = self.answer
        self.send_response(status)
        for name, value in (
            ("content-type", "application/json"),
            ("content-length", str(len(body))),
            ("x-should-retry", "false"),
        ):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def answering():
    handler = type("Handler", (Answering,), {"seen": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield handler, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("code", ["ai_budget_exhausted", "control_plane_unavailable"])
def test_the_anthropic_client_raises_one_clear_error(answering, code):
    anthropic = pytest.importorskip("anthropic", reason="the anthropic client is not installed")
    handler, url = answering
    handler.answer = ANTHROPIC.refusal(code, "the AI budget is spent", {"pool": "ai"})
    key = ANTHROPIC.injection.env[0][1]
    with (
        anthropic.Anthropic(api_key=key, base_url=url) as client,
        pytest.raises(anthropic.APIStatusError, match="the AI budget is spent") as caught,
    ):
        client.messages.create(
            model="claude-haiku-4-5", max_tokens=10, messages=[{"role": "user", "content": "x"}]
        )
    assert caught.value.status_code == handler.answer[0]
    assert caught.value.body["km"] == {"code": code, "pool": "ai"}
    assert len(handler.seen) == 1


@pytest.mark.parametrize("code", ["ai_budget_exhausted", "control_plane_unavailable"])
def test_the_openai_client_raises_one_clear_error(answering, code):
    openai = pytest.importorskip("openai", reason="the openai client is not installed")
    handler, url = answering
    handler.answer = OPENAI.refusal(code, "the AI budget is spent", {"pool": "ai"})
    key = OPENAI.injection.env[0][1]
    with (
        openai.OpenAI(api_key=key, base_url=url) as client,
        pytest.raises(openai.APIStatusError, match="the AI budget is spent") as caught,
    ):
        client.responses.create(model="gpt-5.5", input="x")
    assert caught.value.status_code == handler.answer[0]
    assert caught.value.code == code
    assert len(handler.seen) == 1


def test_decoders_and_filters_are_offered():
    assert ANTHROPIC.decoder("gzip").failed is False
    assert OPENAI.decoder("nonsense").failed is True
    assert ANTHROPIC.response_filter(PLAN) is None
    assert OPENAI.response_filter(PLAN) is None
