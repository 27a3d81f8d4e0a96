"""A kept connection serves a name as long as the name leads there (anchors: B-12)."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from gate_rig import FakeResolver, run, until

from km_core.plan import NetworkPlan
from km_core.policy import NetworkPolicy
from km_net_proxy.http.dial import DialDenied, Dialer, DialError
from km_net_proxy.http.upstream import Trust, Upstreams

NAME = "web.test"
HERE, THERE = "127.0.0.1", "127.0.0.2"


@contextlib.asynccontextmanager
async def world(ttl):
    """Yield the port of servers at two addresses, a resolver, and connections that trust it."""

    async def client(reader, writer):
        with contextlib.suppress(OSError):
            await reader.read()
        writer.close()

    first = await asyncio.start_server(client, HERE, 0)
    port = first.sockets[0].getsockname()[1]
    try:
        second = await asyncio.start_server(client, THERE, port)
    except OSError:
        first.close()
        pytest.skip("the port is taken at the other address")
    resolver = FakeResolver()
    resolver.ttl = ttl
    resolver.table[NAME] = (HERE,)
    policy = NetworkPolicy.from_plan(
        NetworkPlan(), private_hosts=[(NAME, f"{HERE}/32"), (NAME, f"{THERE}/32")]
    )
    upstreams = Upstreams(Dialer(policy, resolver, own_allowed=frozenset({HERE, THERE})), Trust({}))
    try:
        yield port, resolver, upstreams
    finally:
        await upstreams.close()
        first.close()
        second.close()


async def opened(upstreams, port):
    upstream = await upstreams.open(NAME, port, tls=False)
    upstreams.keep(upstream)
    return upstream


def test_within_its_time_a_name_is_not_looked_up_again():
    async def main():
        async with world(60) as (port, resolver, upstreams):
            one, two = await opened(upstreams, port), await opened(upstreams, port)
            assert one.stream is two.stream
            assert (one.reused, two.reused) == (False, True)
            resolver.table[NAME] = (THERE,)
            assert (await opened(upstreams, port)).stream is one.stream
            assert resolver.asked == [NAME]

    run(main)


def test_a_name_that_still_leads_there_keeps_its_connection():
    async def main():
        async with world(0) as (port, resolver, upstreams):
            one = await opened(upstreams, port)
            resolver.table[NAME] = (THERE, HERE)
            assert (await opened(upstreams, port)).stream is one.stream
            assert resolver.asked == [NAME] * 2

    run(main)


def test_a_name_that_leads_elsewhere_gets_a_connection_to_there():
    async def main():
        async with world(0) as (port, resolver, upstreams):
            one = await opened(upstreams, port)
            resolver.table[NAME] = (THERE,)
            two = await opened(upstreams, port)
            assert (one.address, two.address) == (f"{HERE}:{port}", f"{THERE}:{port}")
            assert two.stream is not one.stream
            await until(lambda: one.stream.lost)
            assert two.stream.transport.get_extra_info("socket").getpeername()[:2] == (THERE, port)

    run(main)


@pytest.mark.parametrize(("addresses", "error"), [(("10.0.0.1",), DialDenied), ((), DialError)])
def test_a_name_that_may_lead_nowhere_ends_what_was_kept(addresses, error):
    async def main():
        async with world(0) as (port, resolver, upstreams):
            one = await opened(upstreams, port)
            resolver.table[NAME] = addresses
            with pytest.raises(error):
                await opened(upstreams, port)
            await until(lambda: one.stream.lost)

    run(main)


def test_all_kept_connections_of_a_name_are_asked_about():
    async def main():
        async with world(0) as (port, resolver, upstreams):
            several = [await upstreams.open(NAME, port, tls=False) for _ in range(5)]
            for upstream in several:
                upstreams.keep(upstream)
            resolver.table[NAME] = (THERE,)
            assert (await opened(upstreams, port)).address == f"{THERE}:{port}"
            await until(lambda: all(upstream.stream.lost for upstream in several))

    run(main)


def test_both_families_are_written_alike():
    if not socket.has_ipv6:
        pytest.skip("no IPv6")

    async def main():
        resolver = FakeResolver()
        resolver.table[NAME] = ("2606:4700::1111",)
        dialer = Dialer(NetworkPolicy.from_plan(NetworkPlan()), resolver)
        assert await dialer.still(NAME, 443, "[2606:4700::1111]:443") is not None
        assert await dialer.still(NAME, 443, "[2606:4700::1112]:443") is None

    run(main)
