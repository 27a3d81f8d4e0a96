"""A policy changes between two requests: what it allows goes on, what it no longer allows ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import time

import pytest
from attrs import evolve
from gate_rig import AI, WEB, AddressRule, Rig, answer, ok, run, until

from km_core.errors import AuditError, ControlUnavailableError, GuardError, KmError, PlanError
from km_core.plan import Grant, HostRule, NetworkPlan, policy_data, policy_version
from km_net_proxy.http.dial import DialDenied, Dialled

SLOW = 5
"""Patience with a loaded machine."""
OPEN = (HostRule(AI, "exact"), HostRule(WEB, "exact"))


def hosts(plan, *rules, **changes):
    return evolve(plan, network=NetworkPlan(hosts=rules, **changes), profile_digest="1")


async def refresh(rig, plan=None, grants=()):
    """Let the control plane have another policy and the gate be told."""
    rig.kmd.plan = plan or rig.kmd.plan or rig.plan
    rig.kmd.grants = list(grants)
    return await rig.gate.answer("policy.refresh", {})


async def get(rig, port, host):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(f"GET http://{host}/ HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return (await answer(reader))[0]
    finally:
        writer.close()


async def ended(reader):
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 5) == b""


async def echo(_head, _body, writer):
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")


def test_a_new_policy_opens_and_closes_hosts_and_is_recorded_with_both_versions():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.serve("other.test", ok(), tls=False)
            await rig.up()
            proxy = rig.proxy()
            assert [await get(rig, proxy, name) for name in (WEB, "other.test")] == [200, 403]

            new = hosts(rig.plan, HostRule("other.test", "exact"))
            told = await refresh(rig, new)

            assert told["policy_version"] == new.digest()
            assert [await get(rig, proxy, name) for name in (WEB, "other.test")] == [403, 200]
            event = next(event for event in rig.events() if event["kind"] == "policy_changed")
            assert (event["policy_before"], event["policy_after"]) == (rig.plan.digest(), new.digest())
            assert not rig.gate._parts.dns.policy.name(WEB).allow

    run(main)


def test_tunnels_that_are_no_longer_allowed_are_cut_and_no_other():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact"), HostRule("other.test", "exact")]) as rig:
            await rig.serve(WEB, echo, cert=WEB)
            await rig.serve("other.test", echo, cert="other.test")
            await rig.up()
            trust = ssl.create_default_context(cadata=rig.pki.pem)
            tunnels = {}
            for name in (WEB, "other.test"):
                tunnels[name] = await asyncio.open_connection(
                    "127.0.0.1", rig.front(name, 443), ssl=trust, server_hostname=name
                )

            told = await refresh(rig, hosts(rig.plan, HostRule("other.test", "exact")))

            assert told["cut"] == 1
            await ended(tunnels[WEB][0])
            reader, writer = tunnels["other.test"]
            for _ in range(3):
                writer.write(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
                assert (await answer(reader))[2] == b"hi"
            for _, writer in tunnels.values():
                writer.close()

    run(main)


def test_a_response_that_never_ends_is_cut_when_its_host_is_closed():
    async def endless(_head, _body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"1\r\nx\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        return "close"

    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, endless, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            writer.write(f"GET http://{WEB}/ HTTP/1.1\r\nHost: {WEB}\r\n\r\n".encode())
            await reader.readuntil(b"x")

            await refresh(rig, hosts(rig.plan))

            with contextlib.suppress(ConnectionError):
                async with asyncio.timeout(5):
                    while await reader.read(65536):
                        pass
            writer.close()

    run(main)


@pytest.mark.parametrize("closed", ["name", "address"])
def test_a_request_for_a_name_at_an_address_is_cut_when_either_is_closed(closed):
    async def endless(_head, _body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n")
        await asyncio.sleep(60)

    async def main():
        named, literal = HostRule(WEB, "exact"), AddressRule("192.0.2.0/24", (80,))
        async with Rig(hosts=[named], addresses=[literal]) as rig:
            server = await rig.serve(WEB, endless, tls=False)
            await rig.up()
            dialer = rig.gate.context.dialer
            dialer.literal = lambda *_: dialer._trusted("127.0.0.1", server.port)
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.7", 80))
            writer.write(f"GET / HTTP/1.1\r\nHost: {WEB}\r\n\r\n".encode())
            await reader.readuntil(b"x")

            same = await refresh(rig, hosts(rig.plan, named, addresses=(literal,)))
            rules, left = ((), (literal,)) if closed == "name" else ((named,), ())
            told = await refresh(rig, hosts(rig.plan, *rules, addresses=left))

            assert (same["cut"], told["cut"]) == (0, 1)
            writer.close()

    run(main)


def test_no_request_to_an_allowed_host_fails_while_policies_change():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            proxy = rig.proxy()
            stop = False
            seen = []

            async def client():
                while not stop:
                    seen.append(await get(rig, proxy, WEB))

            tasks = [asyncio.ensure_future(client()) for _ in range(8)]
            for number in range(40):
                name = f"n{number}.test"
                await refresh(rig, hosts(rig.plan, HostRule(WEB, "exact"), HostRule(name, "exact")))
                await asyncio.sleep(0.01)
            stop = True
            await asyncio.gather(*tasks)
            assert len(seen) > 40
            assert set(seen) == {200}

    run(main)


def test_a_grant_opens_its_port_until_the_gates_own_clock_closes_it():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve("other.test", ok(), tls=False)
            await rig.up()
            proxy = rig.proxy()
            ticking = asyncio.ensure_future(rig.gate._ticking())
            grant = Grant("other.test:80", time.time() + 1.0)
            told = await refresh(rig, grants=[grant])
            assert told["policy_version"] == policy_version(rig.plan.digest(), [grant])
            assert await get(rig, proxy, "other.test") == 200
            assert not rig.gate.context.policy.connect("other.test", 443).allow

            # The control plane falls silent: nobody tells the gate that the time is over.
            await rig.kmd.stop()
            await until(lambda: not rig.gate.context.policy.name("other.test").allow, within=10)
            assert await get(rig, proxy, "other.test") == 403
            ticking.cancel()

            versions = [e["policy_after"] for e in rig.events() if e["kind"] == "policy_changed"]
            assert versions == [told["policy_version"], rig.plan.digest()]

    run(main)


def test_an_expired_grant_cuts_its_tunnel():
    async def main():
        async with Rig(hosts=[]) as rig:
            await rig.serve("other.test", echo, cert="other.test")
            await rig.up()
            await refresh(rig, grants=[Grant("other.test", time.time() + 0.8)])
            reader, writer = await asyncio.open_connection(
                "127.0.0.1",
                rig.front("other.test", 443),
                ssl=ssl.create_default_context(cadata=rig.pki.pem),
                server_hostname="other.test",
            )
            ticking = asyncio.ensure_future(rig.gate._ticking())
            await ended(reader)
            ticking.cancel()
            writer.close()

    run(main)


def test_a_policy_that_cannot_be_taken_over_closes_the_gate_at_once():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            proxy = rig.proxy()
            # A model host: the sandbox's CA was made without it.
            with pytest.raises(GuardError, match="CA was not made for"):
                await refresh(rig, hosts(rig.plan, *OPEN))
            assert await get(rig, proxy, WEB) == 503
            assert not rig.gate._parts.lease.valid

            await refresh(rig, rig.plan)
            assert await get(rig, proxy, WEB) == 200

    run(main)


def test_another_sandboxs_plan_or_a_damaged_policy_is_not_taken_over():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.up()
            with pytest.raises(PlanError, match="another sandbox"):
                await refresh(rig, evolve(hosts(rig.plan, *OPEN), profile="stranger"))
            rig.kmd.do_policy_current = lambda: {"version": rig.kmd.plan.digest(), "policy": {"x": 1}}
            with pytest.raises(PlanError, match="damaged"):
                await refresh(rig, hosts(rig.plan, HostRule("other.test", "exact")))
            rig.kmd.do_policy_current = list
            with pytest.raises(PlanError, match="cannot be read"):
                await refresh(rig)
            assert not rig.gate.context.policy.name(AI).allow

    run(main)


def test_a_check_changes_nothing():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.up()
            gate = rig.gate
            fine = hosts(rig.plan, HostRule("other.test", "exact"))
            told = await gate.answer("policy.check", {"policy": policy_data(fine), "grants": []})
            assert told == {"policy_version": fine.digest()}
            for policy, grants in (
                (policy_data(hosts(rig.plan, *OPEN)), []),
                (policy_data(hosts(rig.plan, enforcement="ebpf")), []),
                ({}, []),
                (None, [{"entry": "a..b", "expires_at": time.time() + 60}]),
                (None, [{"entry": AI, "expires_at": time.time() + 60}]),
                (None, "x"),
            ):
                with pytest.raises(KmError):
                    await gate.answer("policy.check", {"policy": policy, "grants": grants})
            assert not gate.context.policy.name("other.test").allow
            assert gate._parts.lease.valid

    run(main)


def test_a_change_that_cannot_be_recorded_is_not_made():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.up()
            chain = rig.directory / "audit" / "gate.jsonl"
            with chain.open("ab") as other:
                other.write(b"x")
            with pytest.raises(KmError, match="audit"):
                await refresh(rig, hosts(rig.plan, HostRule("other.test", "exact")))
            assert not rig.gate.context.policy.name("other.test").allow
            assert not rig.gate._parts.lease.valid

    run(main)


@contextlib.contextmanager
def full_disk(rig):
    """The chain's file is /dev/full's: every write fails as on a full disk."""
    chain, write = rig.gate._parts.chain, os.write
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "km_core.audit.chain.os.write", lambda fd, data: write(full if fd == chain._fd else fd, data)
        )
        yield
    os.close(full)


async def tunnel(rig, name):
    trust = ssl.create_default_context(cadata=rig.pki.pem)
    return await asyncio.open_connection("127.0.0.1", rig.front(name, 443), ssl=trust, server_hostname=name)


def test_a_grant_ends_on_a_full_disk_too_and_nothing_begins_until_that_is_recorded():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve("other.test", echo, cert="other.test")
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            proxy = rig.proxy()
            await refresh(rig, grants=[Grant("other.test", time.time() + 1.0)])
            reader, writer = await tunnel(rig, "other.test")
            ticking = asyncio.ensure_future(rig.gate._ticking())
            with full_disk(rig):
                await ended(reader)
                await until(lambda: not rig.gate._parts.lease.valid)
                assert not rig.gate._parts.dns.open
            await until(lambda: not rig.gate.context.policy.name("other.test").allow)
            rig.kmd.grants = []
            assert await rig.gate._parts.lease.renew()
            assert await get(rig, proxy, WEB) == 200
            ticking.cancel()
            writer.close()
            changes = [e for e in rig.events() if e["kind"] == "policy_changed"]
            assert len(changes) == 2

    run(main)


def test_what_a_policy_closes_is_cut_though_the_change_cannot_be_recorded():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact"), HostRule("other.test", "exact")]) as rig:
            for name in (WEB, "other.test"):
                await rig.serve(name, echo, cert=name)
            await rig.up()
            closed, kept = await tunnel(rig, WEB), await tunnel(rig, "other.test")
            new = hosts(rig.plan, HostRule("other.test", "exact"))
            with full_disk(rig):
                with pytest.raises(AuditError):
                    await refresh(rig, new)
                await ended(closed[0])
                assert not rig.gate._parts.lease.valid
            assert (await refresh(rig, new))["policy_version"] == new.digest()
            kept[1].write(b"GET / HTTP/1.1\r\nHost: other.test\r\n\r\n")
            assert (await answer(kept[0]))[2] == b"hi"
            for _, writer in (closed, kept):
                writer.close()

    run(main)


def test_a_policy_that_cannot_be_read_cuts_what_is_open():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, echo, cert=WEB)
            await rig.up()
            reader, writer = await tunnel(rig, WEB)
            rig.kmd.do_policy_current = lambda: {"version": rig.kmd.plan.digest(), "policy": {"x": 1}}
            with pytest.raises(PlanError, match="damaged"):
                await refresh(rig, hosts(rig.plan, HostRule("other.test", "exact")))
            await ended(reader)
            writer.close()

    run(main)


def test_a_control_plane_that_dies_over_a_change_cuts_nothing_and_lets_nothing_begin():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, echo, cert=WEB)
            await rig.up()
            reader, writer = await tunnel(rig, WEB)

            def die():
                raise ConnectionResetError

            rig.kmd.do_policy_current = die
            new = hosts(rig.plan, HostRule(WEB, "exact"), HostRule("other.test", "exact"))
            with pytest.raises(ControlUnavailableError):
                await refresh(rig, new)
            assert not rig.gate._parts.lease.valid
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[2] == b"hi"
            del rig.kmd.do_policy_current
            assert (await refresh(rig, new))["policy_version"] == new.digest()
            writer.close()

    run(main)


def test_a_clock_that_is_set_back_prolongs_no_grant():
    async def main():
        async with Rig(hosts=[]) as rig:
            await rig.up()
            live, behind = rig.gate._parts.live, 0.0
            live._clock = lambda: time.time() - behind
            grant = Grant("other.test", time.time() + 1.0)
            await refresh(rig, grants=[grant])
            behind = 3600.0
            live.expire()
            assert rig.gate.context.policy.name("other.test").allow
            await asyncio.sleep(1.1)
            live.expire()
            assert not rig.gate.context.policy.name("other.test").allow
            # Nor when the control plane goes by the same clock and names it again.
            await refresh(rig, grants=[grant])
            assert not rig.gate.context.policy.name("other.test").allow

    run(main)


def test_a_clock_that_is_set_back_prolongs_no_life():
    async def main():
        async with Rig(hosts=[]) as rig:
            rig.kmd.deadline = time.time() + 1.0
            await rig.up()
            lease = rig.gate._parts.lease
            lease._wall = lambda: time.time() - 3600
            assert lease.valid
            await asyncio.sleep(1.1)
            await lease.renew()
            assert (lease.valid, lease.over) == (False, True)
            rig.kmd.deadline += 3600
            assert await lease.renew()
            assert lease.valid

    run(main)


def test_a_grant_that_no_gate_was_asked_about_leaves_its_host_closed_and_the_others_open():
    """Given to a stopped sandbox: the CA that it starts with does not sign for a model host."""

    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            end = time.time() + 60
            grants = [Grant(AI, end), Grant("a..b", end), Grant("other.test", end)]
            told = await refresh(rig, grants=grants)
            assert told["policy_version"] == policy_version(rig.plan.digest(), grants)
            policy = rig.gate.context.policy
            assert [policy.name(name).allow for name in (AI, "other.test")] == [False, True]
            assert await get(rig, rig.proxy(), WEB) == 200

    run(main)


def test_two_hundred_tunnels_survive_policies_that_allow_them_and_end_within_a_second_when_not():
    async def main():
        both = [HostRule(WEB, "exact"), HostRule("other.test", "exact")]
        async with Rig(hosts=both) as rig:
            for name in (WEB, "other.test"):
                await rig.serve(name, echo, cert=name)
            await rig.up()
            open_ = {name: [await tunnel(rig, name) for _ in range(100)] for name in (WEB, "other.test")}

            async def ask(reader, writer, name):
                writer.write(f"GET / HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                return (await answer(reader))[2]

            for number in range(5):
                asked = asyncio.gather(*(ask(*pair, name) for name in open_ for pair in open_[name]))
                await refresh(rig, hosts(rig.plan, *both, HostRule(f"n{number}.test", "exact")))
                assert set(await asked) == {b"hi"}

            began = time.monotonic()
            told = await refresh(rig, hosts(rig.plan, HostRule("other.test", "exact")))
            assert told["cut"] == 100
            await asyncio.gather(*(ended(reader) for reader, _ in open_[WEB]))
            took = time.monotonic() - began
            assert took < 1.0 * SLOW
            assert {await ask(*pair, "other.test") for pair in open_["other.test"]} == {b"hi"}
            for _, writer in (*open_[WEB], *open_["other.test"]):
                writer.close()

    run(main)


def test_an_address_that_a_policy_closes_while_it_is_dialled_is_not_reached():
    """The connection itself is of a name that stays allowed."""

    async def main():
        private = AddressRule("10.1.2.3/32", host="other.test", source="the mirror's")
        async with Rig(hosts=[HostRule("other.test", "exact")], addresses=[private]) as rig:
            await rig.up()
            rig.resolver.table["other.test"] = ["10.1.2.3"]
            dialer, mine, theirs = rig.gate.context.dialer, *socket.socketpair()
            dialling, answered = asyncio.Event(), asyncio.Event()

            async def connect(address, port):
                dialling.set()
                await answered.wait()
                return Dialled(mine, f"{address}:{port}")

            dialer._connect = connect
            waiting = asyncio.ensure_future(dialer.name("other.test", 443))
            await dialling.wait()
            await refresh(rig, hosts(rig.plan, HostRule("other.test", "exact")))
            answered.set()
            with pytest.raises(DialDenied, match=r"10\.1\.2\.3"):
                await waiting
            assert mine.fileno() == -1
            theirs.close()

    run(main)


def test_a_defect_over_a_change_closes_and_the_lease_is_asked_for_again():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, echo, cert=WEB)
            await rig.up()
            reader, writer = await tunnel(rig, WEB)
            live, compiled = rig.gate._parts.live, rig.gate._parts.live._compile

            def broken(*_arguments):
                raise RuntimeError("a defect")

            live._compile = broken
            new = hosts(rig.plan, HostRule(WEB, "exact"), HostRule("other.test", "exact"))
            with pytest.raises(KmError, match="cannot be taken over"):
                await refresh(rig, new)
            await ended(reader)
            writer.close()
            assert not rig.gate._parts.lease.valid
            live._compile = compiled
            assert (await refresh(rig))["policy_version"] == new.digest()

    run(main)
