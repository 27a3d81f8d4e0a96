"""The resolver against an upstream that lies, is slow, or says nothing."""

from __future__ import annotations

import asyncio
import contextlib
import socket

import pytest
from gate_rig import until

from km_core.errors import UsageError
from km_net_proxy.dns.answer import AAAA, NOERROR, NXDOMAIN, SERVFAIL, A
from km_net_proxy.dns.upstream import Resolver, parse_servers

TRUNCATE = "truncate"


class Upstream(asyncio.DatagramProtocol):
    """A resolver with a table: name to {type: zone lines}, rcode, or a function of (packet, address)."""

    def __init__(self, table):
        self.table = table
        self.seen = []
        self.heard = asyncio.Event()
        self.ports = set()
        self.tcp = 0

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        while True:
            self.server = await asyncio.start_server(self.stream, "127.0.0.1", 0)
            self.address = self.server.sockets[0].getsockname()
            try:
                await loop.create_datagram_endpoint(lambda: self, local_addr=self.address)
            except OSError:
                # The number is free for TCP only: some client's socket has it for UDP.
                self.server.close()
                continue
            return self

    async def __aexit__(self, *exc):
        self.transport.close()
        self.server.close()
        await self.server.wait_closed()

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        self.ports.add(peer[1])
        for reply in self.answer(data, tcp=False):
            self.transport.sendto(reply, peer)

    async def stream(self, reader, writer):
        self.tcp += 1
        data = await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))
        for reply in self.answer(data, tcp=True):
            writer.write(len(reply).to_bytes(2, "big") + reply)
        await writer.drain()
        writer.close()

    def answer(self, data, tcp):
        import dnslib

        query = dnslib.DNSRecord.parse(data)
        name, qtype = str(query.q.qname).lower().rstrip("."), dnslib.QTYPE[query.q.qtype]
        self.heard.set()
        self.seen.append((name, qtype, data))
        entry = self.table.get(name, NXDOMAIN)
        if callable(entry):
            return entry(data, tcp)
        reply = query.reply()
        if entry == TRUNCATE and not tcp:
            reply.header.tc = 1
        elif entry == TRUNCATE:
            reply.add_answer(*dnslib.RR.fromZone(f"{name} 60 A 192.0.2.7"))
        elif isinstance(entry, int):
            reply.header.rcode = entry
        else:
            for line in entry.get(qtype, []):
                reply.add_answer(*dnslib.RR.fromZone(line))
        return [bytes(reply.pack())]


def run(table, test, **options):
    async def main():
        async with Upstream(table) as upstream:
            # Long, because a loaded machine answers late; tests of silence set a short one.
            resolver = Resolver([upstream.address], **{"timeout_s": 30.0, **options})
            try:
                await test(upstream, resolver)
            finally:
                await resolver.close()

    asyncio.run(main())


def built(data, address="192.0.2.66", question=None):
    import dnslib

    query = dnslib.DNSRecord.parse(data)
    reply = query.reply()
    if question:
        reply.q.qname = question
    reply.add_answer(*dnslib.RR.fromZone(f"{query.q.qname} 60 A {address}"))
    return bytes(reply.pack())


def test_both_families_are_asked_and_remembered():
    async def test(upstream, resolver):
        got = await resolver.resolve("a.test")
        assert [str(a) for a in got.addresses] == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
        assert (got.rcode, got.ttl, got.override) == (NOERROR, 30, False)
        assert (await resolver.resolve("a.test")).addresses == got.addresses
        assert sorted(q[1] for q in upstream.seen) == ["A", "AAAA"]
        assert resolver.cached("a.test", A).addresses
        assert resolver.cached("a.test", AAAA).ttl <= 60

    run(
        {
            "a.test": {
                "A": ["a.test 30 A 192.0.2.1", "a.test 99 A 192.0.2.2"],
                "AAAA": ["a.test 60 AAAA 2001:db8::1"],
            }
        },
        test,
    )


def test_nxdomain_nodata_and_failure_are_told_apart():
    async def test(_upstream, resolver):
        assert (await resolver.resolve("none.test")).rcode == NXDOMAIN
        empty = await resolver.resolve("empty.test")
        assert (empty.rcode, empty.addresses) == (NOERROR, ())
        assert (await resolver.resolve("broken.test")).rcode == SERVFAIL

    run({"empty.test": {}, "broken.test": SERVFAIL}, test)


def test_ids_ports_and_letter_case_vary():
    async def test(upstream, resolver):
        await asyncio.gather(*(resolver.query(f"a{i}.quite-a-long-name.test", A) for i in range(60)))
        packets = [seen[2] for seen in upstream.seen]
        assert len({p[:2] for p in packets}) > 50
        assert len(upstream.ports) == 16
        assert sum(p[12:40] != p[12:40].lower() for p in packets) > 50
        assert all(b"\0\0\x29" in p and p.endswith(b"\0\0") for p in packets), "an OPT without options"

    run({}, test)


def test_ports_are_given_up_after_some_use():
    async def test(upstream, resolver):
        for i in range(40):
            await asyncio.gather(*(resolver.query(f"n{i}-{j}.test", A) for j in range(40)))
        assert len(upstream.ports) > 2

    run({}, test, sockets=2)


def test_forged_replies_are_not_believed():
    def forged(data, tcp):
        other_id = bytes([data[0] ^ 1]) + built(data)[1:]
        other_name = built(data, question="b.test")
        a_query = data
        return [other_id, other_name, a_query, b"short", built(data, "192.0.2.1")]

    async def test(_upstream, resolver):
        reply = await resolver.query("a.test", A)
        assert [str(a) for a in reply.addresses] == ["192.0.2.1"]

    run({"a.test": forged}, test)


def test_a_reply_from_another_source_never_arrives():
    async def test(upstream, resolver):
        task = asyncio.create_task(resolver.query("slow.test", A))
        await upstream.heard.wait()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            attacker.bind(("127.0.0.1", 0))
            for port in upstream.ports:
                attacker.sendto(built(upstream.seen[0][2]), ("127.0.0.1", port))
        assert (await task).rcode == SERVFAIL

    run({"slow.test": lambda data, tcp: []}, test, tries=1, timeout_s=1.0)


def test_a_reply_in_another_case_is_asked_again_over_tcp():
    def lowered(data, tcp):
        reply = built(data, "192.0.2.1" if tcp else "192.0.2.66")
        return [reply[:12] + reply[12:].lower()]

    async def test(upstream, resolver):
        reply = await resolver.query("a-long-enough-name.test", A)
        assert [str(a) for a in reply.addresses] == ["192.0.2.1"]
        assert upstream.tcp == 1

    run({"a-long-enough-name.test": lowered}, test)


def test_a_truncated_reply_is_asked_again_over_tcp():
    async def test(upstream, resolver):
        reply = await resolver.query("big.test", A)
        assert [str(a) for a in reply.addresses] == ["192.0.2.7"]
        assert upstream.tcp == 1

    run({"big.test": TRUNCATE}, test)


def test_silence_is_a_failure_in_bounded_time():
    async def test(upstream, resolver):
        async with asyncio.timeout(60):
            assert (await resolver.resolve("quiet.test")).rcode == SERVFAIL
            await until(lambda: len(upstream.seen) >= 4)
        assert len(upstream.seen) == 4, "two families, two tries"

    run({"quiet.test": lambda data, tcp: []}, test, timeout_s=0.3)


def test_a_crafted_reply_is_a_failure_and_no_crash():
    def crafted(data, tcp):
        return [data[:2] + b"\x81\x80\0\1\0\1\0\0\0\0" + data[12:-11] + b"\xc0\x0c\0\1\0\1\0\0\0\1\xff\xff"]

    async def test(_upstream, resolver):
        assert (await resolver.resolve("bad.test")).rcode == SERVFAIL

    run({"bad.test": crafted}, test)


def test_an_override_asks_nobody():
    async def test(upstream, resolver):
        got = await resolver.resolve("api.anthropic.com")
        assert ([str(a) for a in got.addresses], got.port, got.override) == (["127.0.0.1"], 8443, True)
        assert upstream.seen == []

    run({}, test, overrides={"api.anthropic.com": ("127.0.0.1", 8443)})


def test_an_answer_expires():
    now = [0.0]

    async def test(upstream, resolver):
        await resolver.query("a.test", A)
        now[0] = 29
        assert resolver.cached("a.test", A).ttl == 1
        now[0] = 31
        assert resolver.cached("a.test", A) is None
        await resolver.query("a.test", A)
        assert len(upstream.seen) == 2

    run({"a.test": {"A": ["a.test 30 A 192.0.2.1"]}}, test, clock=lambda: now[0])


def test_memory_is_bounded():
    async def test(_upstream, resolver):
        for i in range(50):
            await resolver.query(f"n{i}.test", A)
        assert resolver.cached("n0.test", A) is None
        assert resolver.cached("n49.test", A) is not None
        got = await asyncio.gather(*(resolver.query(f"m{i}.test", A) for i in range(20)))
        assert [r.rcode for r in got].count(SERVFAIL) == 15

    run({}, test, cache_size=10, max_pending=5)


def test_the_same_question_is_asked_once():
    async def test(upstream, resolver):
        await asyncio.gather(*(resolver.query("a.test", A) for _ in range(20)))
        assert len(upstream.seen) == 1

    run({}, test)


@pytest.mark.parametrize("count", [1, 2])
def test_the_last_server_is_asked_when_those_before_it_are_dead(count):
    async def main():
        async with Upstream({"a.test": {"A": ["a.test 30 A 192.0.2.1"]}}) as upstream:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dead:
                dead.bind(("127.0.0.1", 0))
                gone = dead.getsockname()
            resolver = Resolver([*[gone] * count, upstream.address], timeout_s=30.0)
            assert (await resolver.query("a.test", A)).addresses
            await resolver.close()

    asyncio.run(main())


def test_without_a_server_every_name_fails():
    async def main():
        resolver = Resolver([])
        assert (await resolver.resolve("a.test")).rcode == SERVFAIL
        await resolver.close()

    asyncio.run(main())


def test_closing_ends_what_is_under_way():
    async def test(upstream, resolver):
        task = asyncio.create_task(resolver.query("quiet.test", A))
        await upstream.heard.wait()
        await resolver.close()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    run({"quiet.test": lambda data, tcp: []}, test)


def test_servers_are_addresses():
    assert parse_servers(["192.0.2.53", "192.0.2.53:5353", "2001:db8::53", "[2001:db8::53]:54"]) == [
        ("192.0.2.53", 53),
        ("192.0.2.53", 5353),
        ("2001:db8::53", 53),
        ("2001:db8::53", 54),
    ]
    for text in ("dns.example", "192.0.2.53:0", "192.0.2.53:x", ""):
        with pytest.raises(UsageError):
            parse_servers([text])
