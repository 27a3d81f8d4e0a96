"""A policy changes between two requests: what it allows goes on, what it no longer allows ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import time

import pytest
from attrs import evolve
from gate_rig import AI, WEB, Rig, answer, ok, run, until

from km_core.errors import GuardError, KmError, PlanError
from km_core.plan import Grant, HostRule, NetworkPlan, policy_data, policy_version

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
            import ssl

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
            import ssl

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
