"""The gate's meters, its mode and its process keep what the kit asks of every plugin."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import threading

import pytest
import uvloop
from gate_rig import WEB, Rig, ok
from test_gate_process import Inside, Process

from km_core.testing.enforcer import EnforcerContract
from km_core.testing.meter import Exchange, MeterContract
from km_core.testing.sidecar import SidecarContract
from km_net_proxy import plugin as proxy
from km_net_proxy.meter import AnthropicMeter, OpenAIMeter

TOOLS = [tool for tool in ("unshare", "nsenter", "nft", "ip", "curl") if shutil.which(tool) is None]
SSE = {"content-type": "text/event-stream; charset=utf-8"}


def events(*items):
    return "".join(f"event: {kind}\ndata: {json.dumps({'type': kind, **data})}\n\n" for kind, data in items)


def chunks(*items):
    return "".join(f"data: {json.dumps(item)}\n\n" for item in items) + "data: [DONE]\n\n"


def encoded(data):
    return json.dumps(data).encode()


class TestAnthropic(MeterContract):
    codings = ("gzip", "deflate")

    @pytest.fixture
    def meter(self):
        return AnthropicMeter()

    @pytest.fixture
    def exchanges(self):
        ask = {
            "model": "claude-sonnet-4-5",
            "max_tokens": 4096,
            "messages": [{"role": "user", "content": "hé"}],
        }
        usage = {
            "input_tokens": 11,
            "cache_read_input_tokens": 5,
            "cache_creation_input_tokens": 4,
            "output_tokens": 7,
        }
        answer = {"id": "msg_1", "model": "claude-sonnet-4-5", "content": [{"type": "text", "text": "hi"}]}
        opening = {"message": {**answer, "usage": {**usage, "output_tokens": 1}}}
        stream = events(
            ("message_start", opening),
            ("content_block_start", {"index": 0, "content_block": {"type": "text", "text": ""}}),
            ("ping", {}),
            *(
                ("content_block_delta", {"index": 0, "delta": {"type": "text_delta", "text": text}})
                for text in ("One", ' "two"\n', "三")
            ),
            ("content_block_stop", {"index": 0}),
            ("message_delta", {"delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 7}}),
            ("message_stop", {}),
        )
        cached = {**ask, "cache_control": {"type": "ephemeral"}}
        return (
            Exchange("json", "/v1/messages", encoded(cached), encoded({**answer, "usage": usage}), 20, 7),
            Exchange(
                "stream",
                "/v1/messages?beta=true",
                encoded({**cached, "stream": True}),
                stream.encode(),
                20,
                7,
                response_headers=SSE,
                stream=True,
            ),
        )


class TestOpenAI(MeterContract):
    codings = ("gzip", "deflate")

    @pytest.fixture
    def meter(self):
        return OpenAIMeter()

    @pytest.fixture
    def exchanges(self):
        chat = {"model": "gpt-4o", "max_tokens": 2048, "messages": [{"role": "user", "content": "hé"}]}
        counted = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
        piece = {"id": "c1", "model": "gpt-4o-2024-08-06"}
        stream = chunks(
            *(
                {**piece, "choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]}
                for text in ("One", ' "two"\n', "三")
            ),
            {**piece, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
            {**piece, "choices": [], "usage": counted},
        )
        respond = {"model": "gpt-4o", "input": "hé", "max_output_tokens": 2048}
        usage = {"input_tokens": 11, "output_tokens": 7, "total_tokens": 18}
        response = {"id": "r1", "model": "gpt-4o-2024-08-06", "status": "completed", "usage": usage}
        stream_of_response = events(
            ("response.created", {"response": {**response, "status": "in_progress", "usage": None}}),
            ("response.output_text.delta", {"delta": "One two"}),
            ("response.completed", {"response": response}),
        )
        return (
            Exchange(
                "chat",
                "/v1/chat/completions",
                encoded(chat),
                encoded({**piece, "choices": [{"index": 0, "message": {"content": "hi"}}], "usage": counted}),
                11,
                7,
            ),
            Exchange(
                "chat stream",
                "/v1/chat/completions",
                encoded({**chat, "stream": True}),
                stream.encode(),
                11,
                7,
                response_headers=SSE,
                stream=True,
            ),
            Exchange("responses", "/v1/responses", encoded(respond), encoded(response), 11, 7),
            Exchange(
                "responses stream",
                "/v1/responses",
                encoded({**respond, "stream": True}),
                stream_of_response.encode(),
                11,
                7,
                response_headers=SSE,
                stream=True,
            ),
        )


class TestGate(SidecarContract):
    @pytest.fixture
    def plugin(self):
        return proxy


class GateTrial:
    """A real gate's process in front of a namespace without a device; one name is allowed."""

    def __init__(self):
        self.loop = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()
        self.rig, self.inside, self.gate = Rig(), None, None

    def wait(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(60)

    async def open(self):
        await self.rig.__aenter__()
        await self.rig.serve(WEB, ok(b"plain web"), tls=False)
        self.inside = Inside(self.rig.directory)
        self.gate = Process(self.rig, self.inside)
        ready = await self.gate.open()
        assert ready.get("ready") is True, ready

    def reaches(self, url):
        command = [*self.inside.enter, "curl", "-sS", "-m", "3", url]
        done = subprocess.run(command, capture_output=True, check=False)
        return done.returncode == 0 and done.stdout == b"plain web"

    def allowed(self):
        return self.reaches(f"http://{WEB}/")

    def denied(self):
        return self.reaches("http://denied.test/") or self.reaches("http://192.0.2.1/")

    def kill(self):
        self.gate.process.kill()
        self.gate.process.wait()

    async def end(self):
        self.gate.close()
        self.inside.close()
        await self.rig.__aexit__()

    def close(self):
        self.wait(self.end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join()
        self.loop.close()


@pytest.mark.namespaces
@pytest.mark.skipif(
    os.geteuid() != 0 or bool(TOOLS), reason=f"needs root and {', '.join(TOOLS) or 'its tools'}"
)
class TestModeProxy(EnforcerContract):
    @pytest.fixture
    def plugin(self):
        return proxy

    @pytest.fixture
    def trial(self):
        trial = GateTrial()
        try:
            trial.wait(trial.open())
            yield trial
        finally:
            trial.close()
