"""Model calls on the wire: reserved, clamped, refused, metered, settled, whatever breaks."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os

import pytest
from attrs import evolve
from gate_rig import AI, KEY, FakeMeter, Rig, answer, ok, post, run, until

from km_core.ledger.money import usd_number
from km_core.ledger.pricing import worst_case_nusd
from km_core.types import CallPlan

MODEL = "claude-sonnet-4-5"
USAGE = {"usage": {"input_tokens": 10, "output_tokens": 20}, "final": True}


def call(max_tokens=1000, **more):
    return {"model": MODEL, "max_tokens": max_tokens, "messages": [], **more}


def worst(body, max_tokens):
    size = len(json.dumps(body).encode())
    return worst_case_nusd("anthropic", MODEL, CallPlan(MODEL, False, size, max_tokens, b""), max_tokens)


def sse(events=5, gap=0.0, final=True):
    async def handler(head, body, writer):
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        lines = [b'data: {"usage": {"input_tokens": 10}}\n\n']
        lines += [b'data: {"delta": "x"}\n\n'] * events
        if final:
            lines.append(b"data: " + json.dumps(USAGE).encode() + b"\n\n")
        for line in lines:
            writer.write(b"%x\r\n%b\r\n" % (len(line), line))
            await writer.drain()
            if gap:
                await asyncio.sleep(gap)
        if not final:
            return "close"
        writer.write(b"0\r\n\r\n")
        return None

    return handler


async def one(rig, body, **kwargs):
    reader, writer = await rig.tls(AI)
    writer.write(post(body, **kwargs))
    result = await answer(reader)
    writer.close()
    return result


def test_a_call_is_reserved_sent_with_the_operators_key_and_settled_at_its_price():
    async def main():
        async with Rig(limit=10_000_000_000) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            extra = "x-api-key: stolen-key\r\nAuthorization: Bearer stolen\r\nCookie: a=b\r\nX-Mine: 1\r\n"
            status, fields, _ = await one(
                rig, call(), extra=extra, path="/v1/messages?beta=true&api_key=stolen&KEY=stolen"
            )
            assert status == 200
            assert "x-km-clamped" not in fields
            await rig.settled(1)
            head = server.requests[0][0]
            assert b"stolen" not in head
            assert b"POST /v1/messages?beta=true HTTP/1.1" in head
            assert f"x-api-key: {KEY}".encode() in head
            assert b"X-Mine: 1" in head
            cost, usage = next(iter(rig.kmd.settled.values()))
            assert cost == 10 * 3000 + 20 * 15000
            assert (usage["input_tokens"], usage["output_tokens"], usage["estimated"]) == (10, 20, False)
            assert isinstance(cost, int)
            everything = (rig.directory / "audit" / "gate.jsonl").read_text()
            everything += (rig.directory / "gate" / "settle.wal").read_text()
            assert KEY not in everything
            assert KEY not in repr(rig.gate.context.secrets)

    run(main)


class FreeSearches(FakeMeter):
    """A provider whose calls offer a tool without a limit."""

    def plan_call(self, endpoint, headers, body):
        plan = super().plan_call(endpoint, headers, body)
        less = json.dumps({**json.loads(body), "tools": []}).encode()
        lesser = evolve(plan, body=less, left_out=("web_search",))
        return evolve(plan, refusal="searches have no limit", lesser=lesser)


@pytest.mark.parametrize("limit", [10_000_000_000, None])
def test_a_tool_without_a_limit_is_left_out_under_a_ceiling_and_the_client_is_told(limit):
    async def main():
        body = call(tools=[{"type": "web_search"}])
        async with Rig(limit=limit, meter={"anthropic": FreeSearches()}) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            status, fields, _ = await one(rig, body)
            assert status == 200
            assert fields.get("x-km-left-out") == (None if limit is None else "web_search")
            assert json.loads(server.requests[0][1])["tools"] == (body["tools"] if limit is None else [])
            await rig.settled(1)

    run(main)


def test_a_call_that_does_not_fit_is_clamped_and_says_so():
    async def main():
        body = call(100_000)
        limit = worst(body, 2000)
        async with Rig(limit=limit) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            status, fields, _ = await one(rig, body)
            assert status == 200
            clamped = int(fields["x-km-clamped"])
            assert 512 <= clamped <= 2000
            assert json.loads(server.requests[0][1])["max_tokens"] == clamped
            await rig.settled(1)
            assert rig.kmd.peak <= limit

    run(main)


def test_a_call_that_cannot_be_clamped_is_refused_in_the_providers_shape():
    async def main():
        async with Rig(limit=1_000_000) as rig:
            server = await rig.serve(AI, ok())
            rig.kmd.spent = 900_000
            await rig.up()
            status, fields, body = await one(rig, call())
            data = json.loads(body)
            assert status == 403
            assert fields["x-km-budget"] == "exhausted"
            assert fields["x-should-retry"] == "false"
            assert data["error"]["type"] == "permission_error"
            km = data["km"]
            assert km["code"] == "ai_budget_exhausted"
            assert (km["pool"], km["spent"], km["limit"], km["model"]) == (
                "ai",
                usd_number(900_000),
                usd_number(1_000_000),
                MODEL,
            )
            assert km["top_up"].startswith("km budget add sb-0123abcd --ai ")
            assert not server.requests

    run(main)


def test_a_refused_call_leaves_the_connection_usable():
    async def main():
        async with Rig(limit=1000) as rig:
            await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await rig.tls(AI)
            for _ in range(3):
                writer.write(post(call()))
                assert (await answer(reader))[0] == 403
            writer.close()

    run(main)


def test_fifty_streams_at_once_never_exceed_the_ceiling_together():
    async def main():
        body = call(600)
        each = worst(body, 600)
        limit = each * 10
        async with Rig(limit=limit) as rig:
            server = await rig.serve(AI, sse(events=10, gap=0.01))
            await rig.up()
            front = rig.front(AI, 443)

            async def go():
                reader, writer = await rig.tls(AI, front=front)
                writer.write(post(body))
                result = await answer(reader)
                writer.close()
                return result

            results = await asyncio.gather(*(go() for _ in range(50)))
            allowed = [result for result in results if result[0] == 200]
            assert len(allowed) == len(server.requests) >= 10
            assert {result[0] for result in results} == {200, 403}
            assert all(body.count(b"delta") == 10 for _, _, body in allowed)
            await rig.settled(len(allowed))
            assert rig.kmd.peak <= limit
            assert not rig.kmd.reserved
            assert rig.kmd.spent == len(allowed) * (10 * 3000 + 20 * 15000)

    run(main)


def test_a_stream_is_passed_on_event_by_event():
    async def main():
        gate = asyncio.Event()

        async def handler(head, body, writer):
            writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n")
            await writer.drain()
            await gate.wait()
            writer.write(b"0\r\n\r\n")

        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, handler)
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            await reader.readuntil(b"\r\n\r\n")
            assert await asyncio.wait_for(reader.readexactly(10), 30) == b"5\r\nfirst\r\n"
            gate.set()
            assert await reader.readexactly(5) == b"0\r\n\r\n"
            writer.close()

    run(main)


def test_a_client_that_leaves_is_charged_for_what_the_provider_produced():
    async def main():
        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, sse(events=20, gap=0.02))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            await reader.readuntil(b"delta")
            writer.transport.abort()
            await rig.settled(1)
            cost, usage = next(iter(rig.kmd.settled.values()))
            assert cost == 10 * 3000 + 20 * 15000
            assert usage["complete"] is True

    run(main)


def test_a_stream_that_breaks_off_is_settled_at_its_bounds():
    async def main():
        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, sse(events=5, final=False))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            with pytest.raises((asyncio.IncompleteReadError, ConnectionError)):
                await answer(reader)
            writer.close()
            await rig.settled(1)
            cost, usage = next(iter(rig.kmd.settled.values()))
            assert usage["estimated"] is True
            assert cost >= 50 * 15000

    run(main)


def test_an_answer_that_never_comes_is_settled_at_the_whole_reservation():
    async def main():
        async with Rig(limit=10**10) as rig:

            async def handler(head, body, writer):
                return "close"

            await rig.serve(AI, handler)
            await rig.up()
            status, _, _ = await one(rig, call())
            assert status == 502
            await rig.settled(1)
            cost, usage = next(iter(rig.kmd.settled.values()))
            assert cost == worst(call(), 1000)
            assert usage["rate_source"] == "reservation"

    run(main)


@pytest.mark.parametrize("status", [400, 429, 500, 529])
def test_a_call_the_provider_refuses_costs_nothing(status):
    async def main():
        async with Rig(limit=10**10) as rig:

            async def handler(head, body, writer):
                writer.write(b"HTTP/1.1 %d No\r\nContent-Length: 2\r\n\r\n{}" % status)

            await rig.serve(AI, handler)
            await rig.up()
            assert (await one(rig, call()))[0] == status
            await rig.settled(1)
            assert len(rig.kmd.released) == 1
            assert rig.kmd.spent == 0

    run(main)


def test_a_call_whose_server_cannot_be_reached_costs_nothing():
    async def main():
        async with Rig(limit=10**10) as rig:
            server = await rig.serve(AI, ok())
            await server.stop()
            await rig.up()
            status, _, body = await one(rig, call())
            assert (status, json.loads(body)["error"]) == (502, "upstream_unreachable")
            await rig.settled(1)
            assert len(rig.kmd.released) == 1

    run(main)


def test_an_endpoint_that_is_not_metered_is_refused_under_a_ceiling_and_passes_without_one():
    async def main():
        for limit, expected in ((10**9, 403), (None, 200)):
            async with Rig(limit=limit) as rig:
                server = await rig.serve(AI, ok(b"{}"))
                await rig.up()
                status, _, body = await one(rig, call(), path="/v1/pictures")
                assert status == expected
                if expected == 403:
                    assert json.loads(body)["km"]["code"] == "ai_endpoint_not_metered"
                    assert not server.requests
                else:
                    assert f"x-api-key: {KEY}".encode() in server.requests[0][0]

    run(main)


def test_a_free_endpoint_passes_without_a_reservation():
    async def main():
        async with Rig(limit=0) as rig:
            await rig.serve(AI, ok(b"[]"))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n")
            assert (await answer(reader))[0] == 200
            writer.close()
            assert "ledger.reserve" not in [op for op, _ in rig.kmd.calls]

    run(main)


def test_a_missing_credential_names_the_command_that_sets_it_and_setting_it_helps_at_once():
    async def main():
        async with Rig(limit=10**10) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            rig.kmd.secrets.clear()
            await rig.up()
            status, _, body = await one(rig, call())
            assert status == 403
            assert "km secrets set anthropic-api-key" in body.decode()
            assert not server.requests
            rig.kmd.secrets["anthropic-api-key"] = KEY
            assert (await one(rig, call()))[0] == 200

    run(main)


def test_a_refused_credential_is_fetched_anew():
    async def main():
        async with Rig(limit=10**10) as rig:

            async def handler(head, body, writer):
                good = b"x-api-key: new-key" in head
                data = json.dumps(USAGE).encode() if good else b"{}"
                line = b"200 OK" if good else b"401 Unauthorized"
                writer.write(b"HTTP/1.1 %b\r\nContent-Length: %d\r\n\r\n%b" % (line, len(data), data))

            await rig.serve(AI, handler)
            await rig.up()
            assert (await one(rig, call()))[0] == 401
            rig.kmd.secrets["anthropic-api-key"] = "new-key"
            assert (await one(rig, call()))[0] == 200

    run(main)


def test_with_the_control_plane_gone_calls_get_503_in_the_providers_shape():
    async def main():
        async with Rig(limit=10**10) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            assert (await one(rig, call()))[0] == 200
            await rig.settled(1)
            await rig.kmd.stop()
            status, fields, body = await one(rig, call())
            assert status == 503
            assert json.loads(body)["km"]["code"] == "control_plane_unavailable"
            assert "x-should-retry" not in fields
            assert len(server.requests) == 1

    run(main)


def test_settlements_wait_on_disk_for_the_control_plane_and_are_sent_once():
    async def main():
        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, sse(events=10, gap=0.03))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            await reader.readuntil(b"delta")
            await rig.kmd.stop()
            await reader.readuntil(b"0\r\n\r\n")
            writer.close()
            journal = rig.directory / "gate" / "settle.wal"
            await until(lambda: b"ledger.settle" in journal.read_bytes())
            assert not rig.kmd.settled
            await rig.kmd.start()
            await rig.settled(1)
            assert rig.kmd.spent == 10 * 3000 + 20 * 15000

    run(main)


def test_the_next_gate_sends_what_a_killed_one_left_in_the_journal():
    async def main():
        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, ok())
            (rig.directory / "gate").mkdir()
            entry = {"call_id": "left", "op": "ledger.settle", "args": {"cost_nusd": 77, "usage": {}}}
            done = {"call_id": "sent", "op": "ledger.settle", "args": {"cost_nusd": 5, "usage": {}}}
            lines = [json.dumps(done), json.dumps({"done": "sent"}), json.dumps(entry), '{"call_id": "torn']
            (rig.directory / "gate" / "settle.wal").write_text("\n".join(lines))
            await rig.up()
            await rig.settled(1)
            assert rig.kmd.settled == {"left": (77, {})}

    run(main)


def test_request_bodies_may_be_coded_chunked_and_announced():
    async def main():
        async with Rig(limit=10**10) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            body = json.dumps(call()).encode()
            coded = gzip.compress(body)
            reader, writer = await rig.tls(AI)
            head = (
                "POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Encoding: gzip\r\n"
                "Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
            )
            writer.write(head.encode())
            assert (await answer(reader))[0] == 100
            for at in range(0, len(coded), 7):
                piece = coded[at : at + 7]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            writer.write(b"0\r\n\r\n")
            assert (await answer(reader))[0] == 200
            sent = server.requests[0]
            assert sent[1] == body
            assert b"content-encoding" not in sent[0].lower()
            writer.close()

    run(main)


def test_a_body_that_blows_up_or_cannot_be_read_is_refused():
    async def main():
        async with Rig(limit=10**10) as rig:
            server = await rig.serve(AI, ok())
            await rig.up()
            bomb = gzip.compress(bytes(64 << 20))
            status, _, body = await one(rig, bomb, extra="Content-Encoding: gzip\r\n")
            assert (status, json.loads(body)["km"]["code"]) == (403, "ai_request_unreadable")
            status, _, body = await one(rig, b"\xff{")
            assert (status, json.loads(body)["km"]["code"]) == (403, "ai_request_unreadable")
            status, _, body = await one(rig, b"{}", extra="Content-Encoding: compress\r\n")
            assert status == 403
            reader, writer = await rig.tls(AI)
            writer.write(
                b"POST /v1/messages HTTP/1.1\r\nHost: api.anthropic.com\r\nContent-Length: 99999999999\r\n\r\n"
            )
            status, _, body = await answer(reader)
            assert json.loads(body)["km"]["code"] == "ai_request_too_large"
            writer.close()
            assert not server.requests

    run(main)


def test_what_the_gate_cannot_read_is_not_asked_for():
    async def main():
        async with Rig(limit=10**10) as rig:
            data = gzip.compress(json.dumps(USAGE).encode())
            server = await rig.serve(AI, ok(data, b"Content-Encoding: gzip"))
            await rig.up()
            _, fields, body = await one(rig, call(), extra="Accept-Encoding: gzip, snappy, br;q=0\r\n")
            assert fields["content-encoding"] == "gzip"
            assert gzip.decompress(body) == json.dumps(USAGE).encode()
            assert b"Accept-Encoding: gzip\r\n" in server.requests[0][0]
            await rig.settled(1)
            assert rig.kmd.spent == 10 * 3000 + 20 * 15000

    run(main)


def test_a_second_request_for_another_host_is_misdirected():
    async def main():
        async with Rig(limit=10**10) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            assert (await answer(reader))[0] == 200
            writer.write(post(call(), host="web.test"))
            assert (await answer(reader))[0] == 421
            writer.close()
            assert len(server.requests) == 1

    run(main)


@pytest.mark.parametrize("request_line", ["TRACE / HTTP/1.1", "CONNECT web.test:443 HTTP/1.1"])
def test_methods_that_echo_or_tunnel_are_refused_where_tls_is_opened(request_line):
    async def main():
        async with Rig() as rig:
            server = await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(f"{request_line}\r\nHost: {AI}\r\n\r\n".encode())
            assert (await answer(reader))[0] == 405
            writer.close()
            assert not server.requests

    run(main)


def test_a_websocket_on_a_metered_host_is_refused():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(
                b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n"
                b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            )
            status, fields, _ = await answer(reader)
            # Codex takes this status for "then over HTTP" and tries again and again after another.
            assert (status, fields["upgrade"]) == (426, "HTTP/1.1")
            writer.close()
            assert not server.requests

    run(main)


def test_a_stand_in_whose_certificate_does_not_fit_is_502():
    async def main():
        async with Rig() as rig:
            await rig.serve(AI, ok(), cert="alt.test")
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n")
            status, _, body = await answer(reader)
            assert (status, json.loads(body)["error"]) == (502, "upstream_tls_failed")
            writer.close()

    run(main)


def test_the_gates_end_writes_down_what_runs():
    async def main():
        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, sse(events=200, gap=0.05))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            await reader.readuntil(b"delta")
            await rig.gate.close()
            assert len(rig.kmd.settled) == 1
            cost, usage = next(iter(rig.kmd.settled.values()))
            assert usage["estimated"] is True
            assert cost >= 15000 * 10
            writer.close()
            with contextlib.suppress(OSError, RuntimeError):
                os.stat(rig.directory)
            rig.gate = None

    run(main)


def test_bodies_of_parallel_calls_share_one_bound_of_memory():
    async def main():
        async with Rig(limit=10**12) as rig:
            await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            from km_net_proxy.http.context import BodyRoom

            rig.gate.context.room = BodyRoom(3 << 20)
            big = call(messages=["x" * (2 << 20)])
            reader, writer = await rig.tls(AI)
            data = post(big)
            writer.write(data[: len(data) - 10])
            await until(lambda: rig.gate.context.room._left < 1.1 * (1 << 20))
            status, _, body = await one(rig, big)
            assert (status, json.loads(body)["km"]["code"]) == (403, "gate_busy")
            writer.write(data[len(data) - 10 :])
            assert (await answer(reader))[0] == 200
            writer.close()
            assert (await one(rig, big))[0] == 200

    run(main)
