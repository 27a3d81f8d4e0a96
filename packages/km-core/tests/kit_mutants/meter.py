"""Meters with one planted defect each; `Honest` has none."""

from __future__ import annotations

import json
import os
import zlib

import pytest
from attrs import evolve

from km_core.testing.meter import Exchange, MeterContract
from km_core.types import CallPlan, Endpoint, EndpointKind, InjectionRule, Usage

MOST = 1 << 20


class Parser:
    def __init__(self, plan, status):
        self.plan, self.status = plan, status
        self.buffer, self.lost, self.seen = b"", False, None

    def feed(self, data):
        if self.lost:
            return
        self.buffer += data
        *lines, self.buffer = self.buffer.split(b"\n")
        for line in lines:
            self.line(line)
        if len(self.buffer) > MOST:
            self.buffer, self.lost = b"", True

    def line(self, line):
        try:
            data = json.loads(line.removeprefix(b"data: "))
            usage = data["usage"]
            self.take((max(int(usage["in"]), 0), max(int(usage["out"]), 0)))
        except (ValueError, KeyError, TypeError, RecursionError):
            return

    def take(self, figures):
        self.seen = figures

    def finish(self):
        self.line(self.buffer)
        complete = self.seen is not None
        figures = self.seen or (0, 0)
        return Usage(
            "toy",
            self.plan.model,
            input_tokens=figures[0],
            output_tokens=figures[1],
            status=self.status,
            complete=complete,
            estimated_input_tokens=0 if complete else self.plan.input_bound,
            output_bound_tokens=0 if complete else self.plan.output_limit,
        )


class Decoder:
    def __init__(self, coding):
        self.failed = coding not in ("", "gzip")
        self.pending = False
        self.inflate = zlib.decompressobj(31) if coding == "gzip" else None

    def feed(self, data):
        if self.failed:
            return b""
        if self.inflate is None:
            return data
        try:
            out = self.inflate.decompress(self.inflate.unconsumed_tail + data, 65536)
        except zlib.error:
            self.failed, self.pending = True, False
            return b""
        self.pending = bool(self.inflate.unconsumed_tail)
        return out

    def finish(self):
        return b""


def unique(pairs):
    if len({key for key, _ in pairs}) != len(pairs):
        raise ValueError("a member stands twice")
    return dict(pairs)


class Honest:
    name = "toy"
    hosts = ("api.toy.example",)
    injection = InjectionRule(
        "toy-key", ("x-toy-key",), "x-toy-key", "{secret}", (("TOY_KEY", "placeholder"),)
    )
    Parsing = Parser
    Decoding = Decoder

    def endpoint(self, method, path, headers):
        if (method, path) == ("POST", "/v1/chat"):
            return Endpoint("chat", EndpointKind.METERED)
        return Endpoint("unknown", EndpointKind.REFUSED, "not known")

    def plan_call(self, endpoint, headers, body):
        try:
            data = json.loads(body, object_pairs_hook=unique)
            return CallPlan(
                str(data["model"]),
                bool(data.get("stream")),
                len(body) + 10,
                int(data["max_tokens"]),
                body,
                min_output=16,
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            return CallPlan("", False, 0, 0, body, refusal=f"it cannot be read: {type(error).__name__}")

    def clamp(self, endpoint, plan, output_limit):
        if output_limit >= plan.output_limit:
            return plan.body
        if output_limit < plan.min_output:
            raise ValueError("too low")
        return json.dumps(json.loads(plan.body) | {"max_tokens": output_limit}).encode()

    def parser(self, endpoint, plan, status, headers):
        return self.Parsing(plan, status)

    def refusal(self, code, message, km):
        status = 503 if code == "control_plane_unavailable" else 403
        return status, json.dumps({"error": message, "km": {"code": code, **km}}).encode()

    def decoder(self, content_encoding):
        return self.Decoding(content_encoding)

    def response_filter(self, plan):
        return None


def asked(**more):
    return json.dumps({"model": "m", "max_tokens": 1000, "text": "hello", **more}).encode()


class Base(MeterContract):
    memory_bound = 8 * 1024 * 1024
    Made = Honest

    @pytest.fixture
    def meter(self):
        return self.Made()

    @pytest.fixture
    def exchanges(self):
        stream = b'data: {"text": "On"}\n\ndata: {"text": "e"}\n\ndata: {"usage": {"in": 9, "out": 4}}\n\n'
        return (
            Exchange("json", "/v1/chat", asked(), b'{"text": "One", "usage": {"in": 9, "out": 4}}', 9, 4),
            Exchange("stream", "/v1/chat", asked(stream=True), stream, 9, 4, stream=True),
        )


class TestHonest(Base):
    pass


class TestClaimsAWildcard(Base):
    class Made(Honest):
        hosts = ("*.toy.example",)


class TestLetsUnknownEndpointsPass(Base):
    class Made(Honest):
        def endpoint(self, method, path, headers):
            found = super().endpoint(method, path, headers)
            return found if found.kind is EndpointKind.METERED else Endpoint("other", EndpointKind.FREE)


class TestBoundsTooLow(Base):
    class Made(Honest):
        def plan_call(self, endpoint, headers, body):
            return evolve(super().plan_call(endpoint, headers, body), input_bound=3)


class TestChargesMoreThanWasReserved(Base):
    class Made(Honest):
        class Parsing(Parser):
            def finish(self):
                return evolve(super().finish(), output_bound_tokens=10**6)


class TestTakesTheFirstOfTwoMembers(Base):
    class Made(Honest):
        def plan_call(self, endpoint, headers, body):
            try:
                data = {}
                for key, value in json.loads(body, object_pairs_hook=list):
                    data.setdefault(key, value)
            except (ValueError, TypeError, RecursionError):
                return super().plan_call(endpoint, headers, body)
            return super().plan_call(endpoint, headers, json.dumps(data).encode())


class TestClampsWrong(Base):
    class Made(Honest):
        def clamp(self, endpoint, plan, output_limit):
            if output_limit >= plan.output_limit:
                return plan.body
            return json.dumps({"model": plan.model, "max_tokens": output_limit}).encode()


class TestClampsNothing(Base):
    class Made(Honest):
        def clamp(self, endpoint, plan, output_limit):
            return plan.body


class TestRefusesInPlainText(Base):
    class Made(Honest):
        def refusal(self, code, message, km):
            return 429, json.dumps({"error": message}).encode()


class TestReadsAFile(Base):
    class Made(Honest):
        def plan_call(self, endpoint, headers, body):
            with open(os.devnull, encoding="utf-8"):
                return super().plan_call(endpoint, headers, body)


class TestLetsTheClientsKeyThrough(Base):
    class Made(Honest):
        injection = InjectionRule("toy-key", (), "x-toy-key", "{secret}")


class TestCountsAStreamAsFree(Base):
    class Made(Honest):
        def parser(self, endpoint, plan, status, headers):
            class Free(Parser):
                def finish(self):
                    return Usage("toy", plan.model)

            return (Free if plan.stream else Parser)(plan, status)


class TestDependsOnTheSplit(Base):
    class Made(Honest):
        class Parsing(Parser):
            def feed(self, data):
                for line in data.split(b"\n"):
                    self.line(line)


class TestIsFreeWhenItBreaksOff(Base):
    class Made(Honest):
        class Parsing(Parser):
            def finish(self):
                return evolve(super().finish(), complete=True)


class TestRaisesOnDamage(Base):
    class Made(Honest):
        class Parsing(Parser):
            def line(self, line):
                line.decode()
                super().line(line)


class TestSavesOnDamage(Base):
    class Made(Honest):
        class Parsing(Parser):
            def line(self, line):
                super().line(line)
                if b"null" in line:
                    self.take((0, 0))


class TestHoldsTheWholeAnswer(Base):
    class Made(Honest):
        class Parsing(Parser):
            def feed(self, data):
                self.buffer += data

            def finish(self):
                for line in self.buffer.split(b"\n"):
                    self.line(line)
                self.buffer = b""
                return super().finish()


class TestRaisesOnABrokenCoding(Base):
    class Made(Honest):
        class Decoding(Decoder):
            def feed(self, data):
                return data if self.inflate is None else self.inflate.decompress(data)
