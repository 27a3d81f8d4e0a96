"""Ways past the gate that a review found or looked for: each is closed, and stays so."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import ssl
import time

import pytest
from gate_rig import AI, KEY, WEB, AddressRule, FakeKmd, HostRule, Rig, answer, ok, post, run, until

from km_core.control.aio import AsyncControlClient
from km_core.errors import ControlError, ControlUnavailableError
from km_core.ledger.prices import PriceTable
from km_core.types import CallPlan
from km_net_proxy.budget import Budget
from km_net_proxy.http.dial import Override
from km_net_proxy.http.refusal import ACCESS_DENIED
from km_net_proxy.inside import InsideApi
from km_net_proxy.lease import Lease
from km_net_proxy.live_policy import compile_rules
from km_net_proxy.meter.offers import AnthropicMeter
from km_net_proxy.settlement import Settlement, SettlementJournal

MODEL = "claude-sonnet-4-5"
USAGE = {"usage": {"input_tokens": 10, "output_tokens": 20}, "final": True}


def call(max_tokens=1000):
    return {"model": MODEL, "max_tokens": max_tokens, "messages": []}


async def silence(reader, within=10.0):
    """Return what comes until the end; a reset counts as an end."""
    with contextlib.suppress(ConnectionResetError):
        return await asyncio.wait_for(reader.read(), within)
    return b""


# -- model hosts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("port", [80, 8443])
def test_a_model_host_is_metered_on_whatever_port_the_profile_opens_it(port):
    async def main():
        async with Rig(limit=10**10, hosts=[HostRule(AI, "exact", (port,))]) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            if port == 80:
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(AI, 80))
                writer.write(post(call()))
                assert (await answer(reader))[0] == 403
                assert not server.requests
            else:
                reader, writer = await rig.tls(AI, port)
                writer.write(post(call(), host=f"{AI}:{port}"))
                assert (await answer(reader))[0] == 200
                await rig.settled(1)
                assert rig.kmd.settled
            writer.close()

    run(main)


def test_the_operators_key_never_goes_out_unprotected():
    async def main():
        async with Rig(limit=10**10, meter={"anthropic": AnthropicMeter()}) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()), tls=False)
            where = rig.upstreams[AI]
            # The same server by a name: who knows what is between the gate and it.
            rig.upstreams[AI] = Override(socket.gethostname(), where.port, tls=False)
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            status, _, body = await answer(reader)
            assert status == 403
            assert json.loads(body)["km"]["code"] == "ai_upstream_not_protected"
            writer.close()
            reader, writer = await rig.tls(AI)
            writer.write(b"HEAD / HTTP/1.1\r\nHost: api.anthropic.com\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 403")
            writer.close()
            assert not server.requests
            assert KEY not in str(rig.events())
            # On this host's own loopback nobody else can read it.
            rig.gate.context.dialer.overrides[AI] = where
            reader, writer = await rig.tls(AI)
            writer.write(post(call()))
            assert (await answer(reader))[0] == 200
            writer.close()

    run(main)


def test_credentials_of_the_client_do_not_pass_in_any_spelling():
    async def main():
        async with Rig(limit=10**10, meter={"anthropic": AnthropicMeter()}) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            fields = (
                "X-API-KEY: stolen\r\nx_api_key: stolen\r\nX_Api-Key: stolen\r\nAuthorization: Bearer stolen\r\n"
                "authorization: Basic c3RvbGVu\r\nCookie: stolen\r\nProxy-Authorization: stolen\r\n"
                "Proxy_Authorization: stolen\r\napi_key: stolen\r\nConnection: x-api-key, accept-encoding\r\n"
            )
            path = "/v1/messages?beta=true&key=stolen&API%5FKEY=stolen&x=1;api-key=stolen&Access_Token=stolen"
            for request in (
                post(call(), path=path, extra=fields),
                f"HEAD / HTTP/1.1\r\nHost: {AI}\r\n{fields}\r\n".encode(),
                f"GET /v1/models?key=stolen HTTP/1.1\r\nHost: {AI}\r\n{fields}\r\n".encode(),
            ):
                reader, writer = await rig.tls(AI)
                writer.write(request)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
                writer.close()
            assert len(server.requests) == 3
            for head, _ in server.requests:
                assert b"stolen" not in head
                assert head.count(KEY.encode()) == 1, "a Connection option does not take our own field away"
            assert b"Accept-Encoding: identity" in server.requests[0][0]
            assert server.requests[0][0].startswith(b"POST /v1/messages?beta=true HTTP/1.1")

    run(main)


def test_fields_that_a_server_could_read_as_framing_do_not_pass():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(
                b"GET / HTTP/1.1\r\nHost: web.test\r\nTransfer_Encoding: chunked\r\nContent_Length: 9\r\n"
                b"X_Kept: 1\r\n\r\n"
            )
            assert (await answer(reader))[0] == 200
            writer.close()
            head = server.requests[0][0]
            assert b"_Encoding" not in head
            assert b"_Length" not in head
            assert b"X_Kept: 1" in head

    run(main)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"model": "m" * 300, "max_tokens": 10}, "ai_request_unreadable"),
        (
            b'{"model": "m", "x": ' + b"[" * 10 + b"[]," * 1_000_001 + b"[]" + b"]" * 10 + b"}",
            "ai_request_unreadable",
        ),
        ({"model": MODEL, "max_tokens": 10**30}, ""),
    ],
    ids=["long model name", "a million containers", "an absurd output limit"],
)
def test_requests_made_to_break_the_bookkeeping_are_refused_or_clamped(body, code):
    async def main():
        async with Rig(limit=10**8) as rig:
            server = await rig.serve(AI, ok(json.dumps(USAGE).encode()))
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post(body))
            status, fields, text = await answer(reader)
            writer.close()
            if code:
                assert (status, json.loads(text)["km"]["code"]) == (403, code)
                assert not server.requests
            else:
                assert status == 200
                assert int(fields["x-km-clamped"]) > 512

    run(main)


# -- money ----------------------------------------------------------------------------------------


class SlowLedger:
    """Grants a reservation, but its answer never arrives."""

    def __init__(self):
        self.asked = asyncio.Event()
        self.calls = []

    async def call(self, op, /, **args):
        self.calls.append((op, args))
        if op == "ledger.reserve":
            self.asked.set()
            await asyncio.Event().wait()
        return {}


def test_a_call_that_is_cut_while_it_asks_for_room_gives_the_room_back(tmp_path):
    async def main():
        control = SlowLedger()
        journal = SettlementJournal(tmp_path / "settle.wal", control)
        journal.start()
        budget = Budget(control, journal, PriceTable.load(None), ceiling=True, sandbox="s")
        asking = asyncio.create_task(budget.reserve("anthropic", CallPlan(MODEL, False, 10, 600, b"")))
        await control.asked.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await journal.close(timeout_s=10)
        [reserved] = [args["call_id"] for op, args in control.calls if op == "ledger.reserve"]
        assert [args for op, args in control.calls if op == "ledger.release"] == [{"call_id": reserved}]

    run(main)


def test_a_remainder_that_buys_no_call_is_told_once_per_ceiling():
    async def main():
        async with Rig(limit=5_000_000) as rig:
            events = []
            rig.kmd.do_event = lambda kind, detail: events.append((kind, detail)) or {}
            await rig.serve(AI, ok())
            await rig.up()

            async def refused():
                reader, writer = await rig.tls(AI)
                writer.write(post(call()))
                assert (await answer(reader))[0] == 403
                writer.close()

            async def told(count):
                await until(lambda: len(events) >= count)

            await refused()
            await told(1)
            await refused()
            await refused()
            rig.kmd.limit = rig.kmd.spent = 6_000_000
            await refused()
            assert len(events) == 1, "the ledger tells of its own exhaustion"
            rig.kmd.limit = 7_000_000
            await refused()
            await told(2)
            assert [kind for kind, _ in events] == ["budget_exhausted"] * 2
            detail = events[1][1]
            assert (detail["pool"], detail["remaining_nusd"], detail["limit_nusd"]) == (
                "ai",
                1_000_000,
                7_000_000,
            )

    run(main)


def test_a_call_that_is_merely_too_large_exhausts_nothing():
    async def main():
        async with Rig(limit=100_000_000) as rig:
            events = []
            rig.kmd.do_event = lambda kind, detail: events.append(kind) or {}
            await rig.serve(AI, ok())
            await rig.up()
            reader, writer = await rig.tls(AI)
            writer.write(post({**call(), "messages": ["x" * 200_000]}))
            assert (await answer(reader))[0] == 403
            writer.close()
            await rig.gate.context.budget.close()
            assert not events

    run(main)


def test_a_flood_of_budget_questions_reaches_the_control_plane_one_at_a_time():
    async def main():
        class Slow:
            asked = 0

            async def summary(self):
                self.asked += 1
                await asyncio.sleep(0.05)
                return {"ai": {"limit_nusd": None, "spent_nusd": self.asked}}

        inside = InsideApi(slow := Slow(), sandbox_id="s")
        cut = asyncio.create_task(inside.answer("GET", "/budget", close=False))
        await asyncio.sleep(0)
        answers = asyncio.gather(*(inside.answer("GET", "/budget", close=False) for _ in range(200)))
        await asyncio.sleep(0.01)
        cut.cancel()
        assert all(answer.startswith(b"HTTP/1.1 200") for answer in await answers)
        assert slow.asked == 1
        await inside.answer("GET", "/budget", close=False)
        assert slow.asked == 2

    run(main)


class Failing:
    """A control plane whose answers are set by the test."""

    def __init__(self, *errors):
        self.errors = list(errors)
        self.taken = []

    async def call(self, op, /, **args):
        if self.errors:
            raise self.errors.pop(0)
        self.taken.append((op, args["call_id"]))
        return {}


@pytest.mark.parametrize(
    "error",
    [ControlUnavailableError("gone"), ControlError("internal error"), RuntimeError("a defect")],
    ids=type,
)
def test_a_settlement_outlives_a_control_plane_that_fails_inside(tmp_path, error, monkeypatch):
    monkeypatch.setattr("km_net_proxy.settlement._RETRY_S", 0.01)

    async def main():
        control = Failing(error)
        journal = SettlementJournal(tmp_path / "settle.wal", control)
        journal.start()
        journal.add(Settlement("c1", "ledger.settle", {"cost_nusd": 7, "usage": {}}))
        await until(lambda: control.taken)
        await journal.close()
        assert control.taken == [("ledger.settle", "c1")]

    run(main)


def test_a_line_torn_by_a_full_disk_does_not_take_the_next_one_with_it(tmp_path, monkeypatch):
    async def main():
        path = tmp_path / "settle.wal"
        journal = SettlementJournal(path, Failing(*[ControlUnavailableError("gone")] * 1000))
        journal.start()
        whole, torn = os.write, []

        def short(fd, data):
            if fd == journal._fd and not torn:
                torn.append(data)
                return whole(fd, data[: len(data) // 2])
            return whole(fd, data)

        monkeypatch.setattr(os, "write", short)
        for number in (1, 2):
            journal.add(Settlement(f"c{number}", "ledger.settle", {"cost_nusd": number, "usage": {}}))
            await until(lambda number=number: f"c{number}" in journal._open)
        await journal.close(timeout_s=0.2)
        assert torn
        again = Failing()
        journal = SettlementJournal(path, again)
        journal.start()
        await journal.close(timeout_s=10)
        assert again.taken == [("ledger.settle", "c2")]

    run(main)


# -- the lease ------------------------------------------------------------------------------------


def test_a_deadline_that_was_extended_still_cuts_when_it_passes_again(tmp_path):
    async def main():
        kmd = FakeKmd(tmp_path / "k.sock")
        await kmd.start()
        control = AsyncControlClient(kmd.path, token=kmd.token)
        cut = []
        lease = Lease(control, on_deadline=lambda: cut.append(1))
        kmd.deadline = time.time() - 1
        lease.start()
        await until(lambda: cut)
        await asyncio.sleep(1.0)
        kmd.deadline = time.time() + 2
        await lease.renew()
        assert not lease.over
        await kmd.stop()
        await until(lambda: len(cut) == 2)
        assert not lease.valid
        await lease.close()
        await control.close()

    run(main)


@pytest.mark.parametrize("opening", [b"\x16\x03\x01\x00\x05", b"\x16"], ids=["a record", "one byte"])
def test_tls_to_a_literal_address_on_port_80_needs_a_lease_too(opening):
    async def main():
        async with Rig(addresses=[AddressRule("192.0.2.0/24", (80,))]) as rig:
            await rig.up()
            dialled = []

            async def literal(address, port):
                dialled.append(address)
                raise OSError("not here")

            rig.gate.context.dialer.literal = literal
            rig.gate._parts.lease._until = 0.0
            rig.gate._parts.lease._renewing = None
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.7", 80))
            writer.write(opening)
            assert await silence(reader) == b""
            writer.close()
            assert not dialled
            assert any(event.get("rule") == "builtin:lease" for event in rig.events())

    run(main)


# -- addresses ------------------------------------------------------------------------------------


def test_a_wide_exception_does_not_open_the_host_itself():
    async def main():
        async with Rig(hosts=[HostRule("other.test", "exact", (2222,))]) as rig:
            await rig.up()
            dialer = rig.gate.context.dialer
            rig.resolver.table["other.test"] = ("127.0.0.1",)
            for cidr, reached in (("127.0.0.0/8", False), ("127.0.0.1/32", True)):
                private = (("other.test", cidr),)
                rules = compile_rules(rig.plan, private_hosts=private, owned={})
                rig.gate.context.policy = rules.policy
                dialer.use(rules.policy, rules.own_allowed)
                listener = socket.create_server(("127.0.0.1", 0))
                dialer.port = listener.getsockname()[1]
                whole = dialer._connect
                dialer._connect = lambda address, port, listener=listener, whole=whole: whole(
                    address, listener.getsockname()[1]
                )
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("other.test", 2222))
                listener.settimeout(5 if reached else 0.3)
                if reached:
                    taken, _ = await asyncio.to_thread(listener.accept)
                    taken.close()
                else:
                    assert await silence(reader) == b""
                    with pytest.raises(TimeoutError):
                        listener.accept()
                writer.close()
                listener.close()
                dialer._connect = whole
            rules = {event["rule"] for event in rig.events() if event.get("verdict") == "deny"}
            assert rules == {"builtin:own-host"}

    run(main)


def test_a_server_name_that_is_none_does_not_pass_to_a_literal_address():
    async def main():
        async with Rig(addresses=[AddressRule("192.0.2.0/24", (443,))]) as rig:
            await rig.up()
            listener = socket.create_server(("127.0.0.1", 0))
            listener.setblocking(False)
            dialler = rig.gate.context.dialer
            whole = dialler._connect
            dialler._connect = lambda address, port: whole("127.0.0.1", listener.getsockname()[1])
            context = ssl.create_default_context()
            for name, passes in ((AI, False), (AI + "..", False), ("plain.test", True)):
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(incoming, outgoing, server_hostname="n" * len(name))
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                hello = outgoing.read().replace(b"n" * len(name), name.encode())
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.7", 443))
                writer.write(hello)
                if not passes:
                    assert await silence(reader) == ACCESS_DENIED, name
                    with pytest.raises(BlockingIOError):
                        listener.accept()
                    writer.close()
                    continue
                taken, _ = await asyncio.wait_for(asyncio.get_running_loop().sock_accept(listener), 10)
                taken.setblocking(False)
                assert await asyncio.wait_for(asyncio.get_running_loop().sock_recv(taken, 65536), 10) == hello
                taken.close()
                writer.close()
            listener.close()

    run(main)


def test_a_stand_in_that_does_not_resolve_is_502_and_not_silence():
    async def main():
        async with Rig() as rig:
            rig.upstreams[WEB] = Override("no-such-host.invalid", 443, tls=True)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            status, _, body = await answer(reader)
            assert (status, json.loads(body)["error"]) == (502, "dns_failed")
            writer.close()

    run(main)


def test_a_connect_in_single_bytes_is_understood():
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(b"through"), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in b"CONNECT web.test:80 HTTP/1.1\r\nHost: web.test:80\r\n\r\n":
                writer.write(bytes([byte]))
                await asyncio.sleep(0.001)
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 200 Connection established\r\n\r\n"
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[2] == b"through"
            writer.close()

    run(main)
