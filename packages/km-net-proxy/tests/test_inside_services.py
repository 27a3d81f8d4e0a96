"""Services of plugins at ``http://km.internal/NAME``: what they get, what they may do, what they cannot break."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import types

import pytest
from gate_rig import SANDBOX, Rig, answer, run, until

from km_core.errors import KmError
from km_core.types import InsideResponse, InsideService
from km_net_proxy.inside_services import MAX_BODY, MAX_RUNNING, InsideServices, _encoded


@pytest.fixture
def services(monkeypatch):
    """Make functions of a test into services, as if a plugin had brought them."""
    made = types.ModuleType("inside_services_of_a_test")
    monkeypatch.setitem(sys.modules, made.__name__, made)

    def offer(**functions):
        found = {}
        for name, function in functions.items():
            setattr(made, name, function)
            writes = name.startswith("w_")
            word = name.removeprefix("w_").replace("_", "-")
            found[word] = InsideService(word, f"{made.__name__}:{name}", f"the {word}", writes=writes)
        return found

    return offer


async def ask(rig, text, *, reader=None, writer=None):
    """Send one raw request; returns ``(status, fields, data, reader, writer)``."""
    if reader is None:
        reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("198.18.0.1", 80))
    writer.write(text if isinstance(text, bytes) else text.encode())
    status, fields, body = await answer(reader)
    return status, fields, json.loads(body), reader, writer


def get(path, method="GET", extra=""):
    return f"{method} {path} HTTP/1.1\r\nHost: km.internal\r\n{extra}\r\n"


def serving(offered, scenario, **options):
    async def main():
        async with Rig(services=offered, **options) as rig:
            await rig.up()
            await scenario(rig)

    run(main)


def test_a_service_gets_the_request_and_its_answer_is_json_that_nobody_caches(services):
    def w_echo(request, relay):
        seen = {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "body": request.body.decode(),
            "sandbox": request.sandbox_id,
            "header": request.headers["x-what"],
        }
        return InsideResponse(seen, status=201)

    async def scenario(rig):
        text = get("/echo/a/%2e%2e?q=1&r", "POST", "X-What: this\r\nContent-Length: 3\r\n") + "abc"
        status, fields, data, reader, writer = await ask(rig, text)
        assert (201, "no-store") == (status, fields["cache-control"])
        assert {
            "method": "POST",
            "path": "/a/%2e%2e",
            "query": "q=1&r",
            "body": "abc",
            "sandbox": SANDBOX,
            "header": "this",
        } == data
        # The body was read, so the connection goes on; a chunked one is put together.
        chunked = get("/echo", "POST", "X-What: y\r\nTransfer-Encoding: chunked\r\n") + "2\r\nhi\r\n0\r\n\r\n"
        status, _, data, _, _ = await ask(rig, chunked, reader=reader, writer=writer)
        assert (201, "hi", "") == (status, data["body"], data["path"])
        writer.close()
        inside = [event for event in rig.events() if event["kind"] == "inside_request"]
        assert {"POST /echo"} == {event["detail"] for event in inside}

    serving(services(w_echo=w_echo), scenario)


def test_services_stand_in_the_list_and_only_those_that_write_take_a_post(services):
    offered = services(quiet=lambda request, relay: InsideResponse({"ok": True}))

    async def scenario(rig):
        _, _, data, _, writer = await ask(rig, get("/"))
        assert "the quiet" == data["services"]["/quiet"]
        writer.close()
        status, fields, _, _, writer = await ask(rig, get("/quiet", "POST", "Content-Length: 0\r\n"))
        assert (405, "GET, HEAD") == (status, fields["allow"])
        writer.close()
        for path in ("/quieter", "/Quiet", "/%71uiet", "//quiet"):
            status, _, _, _, writer = await ask(rig, get(path))
            assert 404 == status, path
            writer.close()

    serving(offered, scenario)


def boom(request, relay):
    raise RuntimeError("sk-ant-a-secret-in-an-error")


def leave(request, relay):
    raise SystemExit(0)


def wrong(request, relay):
    return {"not": "an InsideResponse"}


def odd_status(request, relay):
    return InsideResponse({}, status=True)


def bodiless(request, relay):
    return InsideResponse({}, status=204)


def unspeakable(request, relay):
    return InsideResponse({"x": object()})


def too_long(request, relay):
    return InsideResponse({"x": "y" * MAX_BODY})


BAD = [boom, leave, wrong, odd_status, bodiless, unspeakable, too_long]


@pytest.mark.parametrize("function", BAD, ids=lambda function: function.__name__)
def test_a_service_that_does_not_answer_properly_is_503_without_saying_why(services, function, capfd):
    async def scenario(rig):
        status, _, data, _, writer = await ask(rig, get("/bad"))
        assert (503, "service_unavailable") == (status, data["error"])
        assert "secret" not in json.dumps(data)
        writer.close()

    serving(services(bad=function), scenario)
    assert "sk-ant" not in capfd.readouterr().err


def test_a_service_that_cannot_be_imported_is_503():
    async def scenario(rig):
        status, _, data, _, writer = await ask(rig, get("/gone"))
        assert (503, "gone") == (status, data["service"])
        writer.close()

    serving({"gone": InsideService("gone", "no_such_module_here:f")}, scenario)


def test_a_service_that_hangs_is_503_keeps_its_place_and_cannot_relay_any_more(services):
    release, after = threading.Event(), []

    def hang(request, relay):
        release.wait(30)
        try:
            relay("budget.get")
        except KmError as error:
            after.append(error.code)
        return InsideResponse({})

    async def scenario(rig):
        added = rig.gate.context.inside._added
        added._timeout_s = 0.2
        try:
            answers = await asyncio.gather(*(ask(rig, get("/hang")) for _ in range(MAX_RUNNING)))
            assert {503} == {status for status, *_ in answers}
            status, _, data, _, writer = await ask(rig, get("/hang"))
            assert (503, True) == (status, "too many" in data["message"])
            # Neither another plugin's service nor the gate's own waits for them.
            status, *_, fine = await ask(rig, get("/fine"))
            assert 200 == status
            fine.close()
            status, *_, own = await ask(rig, get("/budget"))
            assert 200 == status
            for item in (writer, own, *(entry[-1] for entry in answers)):
                item.close()
        finally:
            release.set()
        await until(lambda: not added._running.total())
        assert ["control-unavailable"] * MAX_RUNNING == after

    serving(services(hang=hang, fine=lambda request, relay: InsideResponse({})), scenario)


def test_a_relay_carries_out_what_the_sandbox_may_and_nothing_of_the_gates(services):
    def tell(request, relay):
        found = {}
        for op in ("budget.get", "secret.for", "lease", "ledger.settle", "audit.head", "state", "hello"):
            try:
                relay(op)
            except KmError as error:
                found[op] = error.code
            else:
                found[op] = "done"
        return InsideResponse(found)

    async def scenario(rig):
        status, _, data, _, writer = await ask(rig, get("/tell"))
        assert (200, "done") == (status, data.pop("budget.get"))
        assert {"guard"} == set(data.values())
        assert not {"secret.for", "state"} & {op for op, _ in rig.kmd.calls}
        writer.close()

    serving(services(tell=tell), scenario)


@pytest.mark.parametrize("kind", ["enforcement_lost", "budget_exhausted", "gate_restarted", "failed"])
def test_what_comes_from_inside_cannot_pass_for_an_event_of_the_platform(services, kind):
    def forge(request, relay):
        try:
            relay("event", kind=kind, detail={})
        except KmError as error:
            return InsideResponse({"code": error.code})
        return InsideResponse({"code": "done"})

    async def scenario(rig):
        _, _, data, _, writer = await ask(rig, get("/forge"))
        assert "guard" == data["code"]
        assert "event" not in {op for op, _ in rig.kmd.calls}
        writer.close()

    serving(services(forge=forge), scenario)


@pytest.mark.parametrize(
    "hostile",
    [
        '{"a": NaN}',
        '{"a": Infinity}',
        '{"a": ' + "[" * 900 + "]" * 900 + "}",
        '{"a": "' + "x" * 70_000 + '"}',
    ],
    ids=["NaN", "infinity", "deep", "long"],
)
def test_what_a_service_relays_cannot_break_the_gates_own_connection(services, hostile):
    def w_pass_on(request, relay):
        try:
            relay("event", kind="said", detail=json.loads(request.body))
        except KmError as error:
            return InsideResponse({"code": error.code}, status=400)
        return InsideResponse({})

    async def scenario(rig):
        reader = writer = None
        for body, wanted in ((hostile, 400), ('{"a": [1]}', 200)):
            text = get("/pass-on", "POST", f"Content-Length: {len(body)}\r\n") + body
            status, _, data, reader, writer = await ask(rig, text, reader=reader, writer=writer)
            assert (wanted, "usage" if wanted == 400 else None) == (status, data.get("code"))
        writer.close()
        assert 1 == len([op for op, _ in rig.kmd.calls if op == "hello"])
        assert [{"kind": "said", "detail": {"a": [1]}}] == [a for op, a in rig.kmd.calls if op == "event"]

    serving(services(w_pass_on=w_pass_on), scenario)


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_body_above_a_mebibyte_is_refused_before_the_service_is_asked(services, framing):
    asked = []

    def w_take(request, relay):
        asked.append(len(request.body))
        return InsideResponse({})

    async def scenario(rig):
        whole = MAX_BODY + (framing == "length")
        if framing == "length":
            text = get("/take", "POST", f"Content-Length: {whole}\r\n")
        else:
            piece = "a" * 65536
            text = get("/take", "POST", "Transfer-Encoding: chunked\r\n") + f"10000\r\n{piece}\r\n" * 17
        status, fields, data, _, writer = await ask(rig, text)
        assert (413, "request_too_large", "close") == (status, data["error"], fields["connection"])
        writer.close()
        assert [] == asked
        # All that was set aside for bodies is there again.
        assert 256 * 1024 * 1024 == rig.gate.context.room._left

    serving(services(w_take=w_take), scenario)


def test_without_a_lease_no_service_is_asked(services):
    asked = []

    def late(request, relay):
        asked.append(1)
        return InsideResponse({})

    async def scenario(rig):
        status, _, _, reader, writer = await ask(rig, get("/budget"))
        assert 200 == status
        await rig.kmd.stop()
        rig.gate._parts.lease._until = 0.0
        status, _, data, _, _ = await ask(rig, get("/late"), reader=reader, writer=writer)
        assert (503, "control_plane_unavailable") == (status, data["error"])
        assert [] == asked
        writer.close()

    serving(services(late=late), scenario)


def test_what_a_service_returns_is_encoded_in_its_own_thread():
    assert b'{\n  "a": 1\n}\n' == _encoded(InsideResponse({"a": 1})).body
    with pytest.raises(ValueError):
        _encoded(InsideResponse({"a": float("nan")}))
    assert InsideServices({}, None, sandbox_id="x").find("/a") is None


def test_an_answer_that_is_far_too_large_is_given_up_on_before_it_is_whole():
    made = []

    class Endless(dict):
        def items(self):
            for number in range(10**9):
                made.append(number)
                yield str(number), "x" * 1024

    with pytest.raises(ValueError, match="too large"):
        _encoded(InsideResponse({"x": Endless(a=1)}))
    assert len(made) <= MAX_BODY // 1024


def test_where_no_thread_can_be_started_the_request_is_503_and_no_place_is_lost(services, monkeypatch):
    def full(self):
        raise RuntimeError("can't start new thread")

    async def scenario(rig):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", full)
            for _ in range(MAX_RUNNING + 1):
                status, _, data, _, writer = await ask(rig, get("/fine"))
                assert (503, "the service cannot answer") == (status, data["message"])
                writer.close()
        status, *_, writer = await ask(rig, get("/fine"))
        assert 200 == status
        writer.close()

    serving(services(fine=lambda request, relay: InsideResponse({})), scenario)


def test_requests_in_one_go_are_answered_in_order_and_each_in_its_own_body(services):
    def w_echo(request, relay):
        return InsideResponse({"body": request.body.decode(), "path": request.path})

    async def scenario(rig):
        # What follows a body is the next request, never a part of this one.
        inner = get("/echo/smuggled")
        first = get("/echo/1", "POST", f"Content-Length: {len(inner)}\r\n") + inner
        chunk = f"{len(inner):x}\r\n{inner}\r\n0\r\n\r\n"
        second = get("/echo/2", "POST", "Transfer-Encoding: chunked\r\n") + chunk
        seen = []
        status, _, data, reader, writer = await ask(rig, first + second + get("/echo/3"))
        seen.append((status, data["path"], data["body"]))
        for _ in range(2):
            status, _, data, _, _ = await ask(rig, "", reader=reader, writer=writer)
            seen.append((status, data["path"], data["body"]))
        assert [(200, "/1", inner), (200, "/2", inner), (200, "/3", "")] == seen
        writer.close()
        for extra in (
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 3\r\nContent-Length: 4\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 99999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
        ):
            status, _, _, _, writer = await ask(rig, get("/echo", "POST", extra) + "abc")
            assert status in {400, 413, 501}, extra
            writer.close()

    serving(services(w_echo=w_echo), scenario)


def test_a_slow_body_holds_up_nobody_else_and_is_given_up_when_its_sender_goes(services):
    async def scenario(rig):
        held = []
        for _ in range(40):
            _, writer = await asyncio.open_connection("127.0.0.1", rig.front("198.18.0.1", 80))
            writer.write((get("/take", "POST", "Content-Length: 1000\r\n") + "a").encode())
            held.append(writer)
        status, *_, own = await ask(rig, get("/budget"))
        assert 200 == status
        status, *_, other = await ask(rig, get("/take", "POST", "Content-Length: 1\r\n") + "a")
        assert 200 == status
        for writer in (own, other, *held):
            writer.close()
        await until(lambda: rig.gate.context.room._left == 256 * 1024 * 1024)

    serving(services(w_take=lambda request, relay: InsideResponse({})), scenario)
