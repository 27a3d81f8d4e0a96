"""Hostile messages and clients, inside and outside: read as another parser reads them, or refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import time

import pytest
from gate_rig import until
from hypothesis import example, given
from hypothesis import strategies as st
from test_dns_server import query, run
from test_dns_upstream import built
from test_dns_upstream import run as ask

from km_core.plan import NetworkPlan
from km_core.policy import NetworkPolicy, compile_pattern
from km_net_proxy.dns import answer as wire
from km_net_proxy.dns.answer import SERVFAIL, A, MalformedError
from km_net_proxy.dns.reply import MAX_ADDRESSES, read_reply
from km_net_proxy.dns.server import DnsServer, Lookup
from km_net_proxy.dns.upstream import Resolver

OPT = b"\0\0\x29\4\xd0\0\0\0\0\0\0"
LABEL = st.text("abcXYZ019-_", min_size=1, max_size=12).map(str.encode)
ODD_LABEL = st.one_of(LABEL, st.binary(min_size=1, max_size=63))
NAMES = st.lists(LABEL, min_size=1, max_size=5)


def raw_name(labels):
    return b"".join(bytes([len(label)]) + label for label in labels) + b"\0"


@st.composite
def packets(draw):
    """Messages that are nearly questions: every part right most of the time, and sometimes wrong."""
    header = struct.pack(
        "!6H",
        draw(st.integers(0, 65535)),
        draw(st.sampled_from([0x0100, 0x0000, 0x0120, 0x0110, 0x2800, 0x2000, 0x8180, 0x0300, 0x7800])),
        draw(st.sampled_from([1, 1, 1, 0, 2, 65535])),
        draw(st.sampled_from([0, 0, 0, 1])),
        draw(st.sampled_from([0, 0, 0, 1])),
        draw(st.sampled_from([0, 1, 1, 2, 65535])),
    )
    name = raw_name(draw(st.lists(ODD_LABEL, max_size=6)))
    kind = struct.pack(
        "!2H", draw(st.sampled_from([1, 28, 65, 255, 16, 12, 0, 4711])), draw(st.sampled_from([1, 1, 3, 255]))
    )
    rest = draw(
        st.sampled_from([b"", OPT, OPT, OPT + OPT, OPT[:-2] + b"\0\4\0\x0a\0\0", b"\xc0\x0c\0\1\0\1", b"\0"])
    )
    data = header + name + kind + rest
    cut = draw(st.one_of(st.just(len(data)), st.integers(0, len(data))))
    return data[:cut]


def theirs(data):
    from dnslib import DNSRecord

    try:
        return DNSRecord.parse(data)
    except Exception:
        return None


@given(packets())
@example(query("a.test", edns=True))
def test_what_is_read_is_what_another_parser_reads(data):
    try:
        question = wire.read_query(data)
    except MalformedError:
        return
    other = theirs(data)
    if other is None:
        # dnslib takes no label outside ASCII; such a name is read, and denied.
        assert not question.key.isascii()
        assert wire.name_text(question.key) is None
        return
    assert len(other.questions) == 1
    assert b"".join(bytes([len(x)]) + bytes(x) for x in other.q.qname.label).lower() + b"\0" == question.key
    assert (other.q.qtype, other.q.qclass) == (question.qtype, question.qclass)
    assert (other.header.qr, other.header.opcode) == (0, 0)
    assert len(other.ar) == int(question.edns)


def filter_of(*entries):
    rules = tuple(compile_pattern(e, dns_list=False, source=e) for e in entries)
    decisions = []
    server = DnsServer(
        NetworkPolicy.from_plan(NetworkPlan(hosts=rules)), None, Resolver([]),
        lambda verdict, name, qtype: decisions.append((verdict, name, qtype)), sandbox="sb-0123abcd")  # fmt: skip
    return server, decisions


@given(packets())
def test_only_plain_allowed_names_of_the_policy_are_ever_looked_up(data):
    server, decisions = filter_of(".test", "*")
    result = server.respond(data)
    if isinstance(result, Lookup):
        other = theirs(data)
        name = str(other.q.qname).rstrip(".").lower()
        assert result.name == name
        assert server.policy.name(name).allow
        assert other.q.qtype in {1, 28}
        assert decisions[-1][0].allow
    elif result is not None:
        odd = len(result) > 12 and not wire.read_query(data).key.isascii()
        assert odd or theirs(result) is not None
        assert not decisions or not decisions[-1][0].allow or result[3] & 15 == 0
        assert len(result) <= 512


@pytest.mark.parametrize(
    "label", [b"b\xfccher", b"\xc3\xbc", b"xn--bcher\xe9", b"a\x00b", b"a\xa0b", b"\xe2\x84\xaa"]
)
def test_bytes_that_might_be_letters_somewhere_are_never_looked_up(label):
    server, decisions = filter_of("*", ".allowed.test")
    packet = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + raw_name([label, b"allowed", b"test"]) + b"\0\1\0\1"
    answer = server.respond(packet)
    assert isinstance(answer, bytes)
    assert answer[3] & 15 == 3
    assert decisions[0][0].rule == "builtin:malformed-name"
    assert decisions[0][1].isascii()


@pytest.mark.parametrize(
    ("qtype", "qclass", "rcode", "ede", "rule"),
    [
        ("HTTPS", 1, 0, 17, "builtin:record-type"),
        (64, 1, 0, 17, "builtin:record-type"),
        ("TXT", 1, 0, 17, "builtin:record-type"),
        ("MX", 1, 0, 17, "builtin:record-type"),
        ("ANY", 1, 5, 21, "builtin:record-type"),
        ("AXFR", 1, 5, 21, "builtin:record-type"),
        ("NULL", 1, 5, 21, "builtin:record-type"),
        (48, 1, 5, 21, "builtin:record-type"),
        ("TXT", 3, 5, 21, "builtin:record-class"),
        ("A", 255, 5, 21, "builtin:record-class"),
    ],
)
def test_what_is_not_an_address_is_recorded_as_denied_and_explained(qtype, qclass, rcode, ede, rule):
    server, decisions = filter_of(".allowed.test")
    message = theirs(server.respond(query("www.allowed.test", qtype, edns=True, qclass=qclass)))
    option = message.ar[0].rdata[0]
    assert (message.header.rcode, message.rr, option.code) == (rcode, [], 15)
    assert int.from_bytes(option.data[:2], "big") == ede
    text = option.data[2:].decode()
    assert "sb-0123abcd" in text
    assert rule in text
    assert [(d[0].allow, d[0].rule) for d in decisions] == [(False, rule)]


def test_a_denial_names_sandbox_layer_rule_and_next_step():
    server, _ = filter_of(".allowed.test")
    text = theirs(server.respond(query("evil.test", edns=True))).ar[0].rdata[0].data[2:].decode()
    for part in (
        "km sandbox sb-0123abcd",
        "dns rule builtin:default-deny",
        "no rule of the profile",
        "allowedHosts",
    ):
        assert part in text


def test_a_broken_message_is_evidence():
    server, decisions = filter_of(".allowed.test")
    assert server.respond(query("www.allowed.test") + b"\0")[3] & 15 == 1
    assert [(d[0].allow, d[0].rule) for d in decisions] == [(False, "builtin:malformed-query")]


def test_options_of_the_client_neither_leave_nor_come_back(tmp_path):
    from dnslib import EDNS0, DNSRecord, EDNSOption

    async def test(gate):
        message = DNSRecord.question("good.allowed.test")
        options = [EDNSOption(code, b"carrier!") for code in (3, 8, 10, 12, 65001)]
        message.add_ar(EDNS0(udp_len=65535, opts=options, flags="do"))
        message.header.ad = message.header.cd = 1
        seen = []
        receive = gate.zone.datagram_received
        gate.zone.datagram_received = lambda data, peer: (seen.append(data), receive(data, peer))
        answer = await gate.send(bytes(message.pack()))
        assert len(seen) == 2
        assert all(b"carrier!" not in data and data.endswith(OPT) and data[2:4] == b"\1\0" for data in seen)
        assert b"carrier!" not in answer
        assert answer.endswith(OPT)

    run(tmp_path, test)


@pytest.mark.parametrize("passthrough", [False, True])
def test_a_private_address_is_evidence_outside_and_not_told_inside(tmp_path, passthrough):
    async def test(gate):
        message = await gate.ask("inside.allowed.test", edns=True)
        text = message.ar[0].rdata[0].data[2:].decode()
        assert message.header.rcode == 3
        assert "builtin:private-address" in text
        assert "10.0" not in text
        assert gate.decisions[-1][1] == "builtin:private-address"

    run(tmp_path, test, passthrough=passthrough)


# Replies.

TABLE = st.lists(
    st.tuples(
        st.sampled_from(["a.test", "b.test", "c.test", "A.Test", "evil.test"]),
        st.sampled_from(["A", "CNAME", "AAAA", "TXT"]),
        st.integers(0, 3600),
        st.integers(1, 250),
    ),
    max_size=12,
)


@given(TABLE, st.booleans())
def test_the_addresses_of_a_reply_are_those_a_plain_reading_gives(records, compressed):
    packet = (packed if compressed else written)(records)
    links, own = {}, {}
    for owner, kind, _, number in records:
        if kind == "CNAME":
            links.setdefault(owner.lower(), set()).add(TARGETS[number % 3])
        elif kind == "A":
            own.setdefault(owner.lower(), []).append(f"192.0.2.{number}")
    name, hops = "a.test", 0
    while name not in own and name in links and hops <= 8:
        name, hops = next(iter(links[name])), hops + 1
    try:
        got = read_reply(packet, 12 + 8 + 4, A)
    except MalformedError:
        assert hops > 8 or any(len(targets) > 1 for targets in links.values())
        return
    assert all(len(targets) == 1 for targets in links.values())
    assert [str(address) for address in got.addresses] == own.get(name, [])


TARGETS = ("b.test", "c.test", "a.test")


def packed(records):
    """Return a reply with *records* as dnslib writes it, its names compressed."""
    from dnslib import AAAA, CNAME, RR, TXT, DNSRecord
    from dnslib import A as Address

    message = DNSRecord.question("a.test").reply()
    for owner, kind, ttl, number in records:
        if kind == "A":
            rdata = Address(f"192.0.2.{number}")
        elif kind == "AAAA":
            rdata = AAAA(f"2001:db8::{number:x}")
        else:
            rdata = CNAME(TARGETS[number % 3]) if kind == "CNAME" else TXT(b"x" * number)
        message.add_answer(RR(owner, TYPES[kind], ttl=ttl, rdata=rdata))
    return bytes(message.pack())


TYPES = {"A": 1, "CNAME": 5, "TXT": 16, "AAAA": 28}


def written(records):
    """Return the same reply with every name in full."""
    data = struct.pack("!6H", 7, 0x8180, 1, len(records), 0, 0) + query("a.test")[12:]
    for owner, kind, ttl, number in records:
        rdata = {
            "A": bytes([192, 0, 2, number]),
            "AAAA": b"\x20\1\x0d\xb8" + b"\0" * 11 + bytes([number]),
            "CNAME": raw_name(TARGETS[number % 3].encode().split(b".")),
            "TXT": bytes([number]) + b"x" * number,
        }[kind]
        data += (
            raw_name(owner.encode().split(b"."))
            + struct.pack("!HHIH", TYPES[kind], 1, ttl, len(rdata))
            + rdata
        )
    return data


@given(st.binary(max_size=600), st.integers(0, 65535), st.integers(0, 65535))
def test_a_reply_of_noise_is_read_in_bounded_steps_or_malformed(noise, answers, authorities):
    packet = query("a.test")
    data = packet[:2] + b"\x81\x80\0\1" + struct.pack("!3H", answers, authorities, 0) + packet[12:] + noise
    try:
        reply = read_reply(data, len(packet), A)
    except MalformedError:
        return
    assert len(reply.addresses) <= MAX_ADDRESSES


def test_a_flood_of_guesses_moves_the_question_to_tcp():
    async def test(upstream, resolver):
        task = asyncio.create_task(resolver.query("slow.test", A))
        await upstream.heard.wait()
        (port,) = upstream.ports
        for guess in range(200):
            forged = struct.pack("!H", guess) + built(upstream.seen[0][2])[2:]
            if forged[:2] != upstream.seen[0][2][:2]:
                upstream.transport.sendto(forged, ("127.0.0.1", port))
        reply = await task
        assert [str(address) for address in reply.addresses] == ["192.0.2.1"]
        assert upstream.tcp == 1
        # The port that somebody guesses at is given up.
        upstream.table["b.test"] = {}
        await resolver.query("b.test", A)
        assert len(upstream.ports) == 2

    ask({"slow.test": lambda data, tcp: [built(data, "192.0.2.1")] if tcp else []}, test, sockets=1)


def test_a_dead_upstream_and_a_flood_end_in_a_failure():
    async def test(upstream, resolver):
        upstream.server.close()
        task = asyncio.create_task(resolver.query("slow.test", A))
        await upstream.heard.wait()
        for port in upstream.ports:
            for _ in range(50):
                upstream.transport.sendto(b"\0" * 12, ("127.0.0.1", port))
        assert (await task).rcode == SERVFAIL

    ask({"slow.test": lambda data, tcp: []}, test, tries=1, timeout_s=2.0)


# Connections.


def framed(packet):
    return len(packet).to_bytes(2, "big") + packet


async def connect(gate):
    return await asyncio.open_connection(*gate.tcp.sockets[0].getsockname()[:2])


async def frame(reader):
    async with asyncio.timeout(30):
        return await reader.readexactly(int.from_bytes(await reader.readexactly(2), "big"))


def test_a_slow_lookup_does_not_hold_up_the_answers_behind_it(tmp_path):
    async def test(gate):
        reader, writer = await connect(gate)
        hold = asyncio.Event()
        resolve = gate.resolver.resolve

        async def held(name, **options):
            if name == "good.allowed.test":
                await hold.wait()
            return await resolve(name, **options)

        gate.resolver.resolve = held
        slow, fast = query("good.allowed.test"), query("v6.allowed.test")
        writer.write(framed(slow) + framed(fast) + framed(query("evil.test")))
        got = [await frame(reader), await frame(reader)]
        assert slow[:2] not in {packet[:2] for packet in got}
        writer.write_eof()
        hold.set()
        assert (await frame(reader))[:2] == slow[:2]
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(tmp_path, test)


def test_lookups_over_tcp_count_as_all_others(tmp_path):
    async def test(gate):
        names = [f"n{i}.allowed.test" for i in range(100)]
        answers = await gate.ask_tcp(*(query(name) for name in names))
        codes = [answer.header.rcode for answer in answers]
        assert set(codes) <= {2, 3}
        assert codes.count(2) > 0
        assert len(gate.server._tasks) == 0

    run(tmp_path, test, max_waiting=4)


@pytest.mark.parametrize("start", [b"\xff\xff", b"\x08\x01" + b"x" * 4000, b"\0\0", b"\0\x0c" + b"\xff" * 12])
def test_a_message_that_no_question_has_room_for_ends_the_connection(tmp_path, start):
    async def test(gate):
        reader, writer = await connect(gate)
        writer.write(start)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionResetError):
                assert await reader.read() == b""
        writer.close()
        with contextlib.suppress(ConnectionResetError):
            await writer.wait_closed()

    run(tmp_path, test)


def test_five_hundred_slow_connections_do_not_keep_another_waiting(tmp_path):
    async def test(gate):
        streams = [await connect(gate) for _ in range(500)]
        for _, writer in streams:
            writer.write(b"\1\0half")
        loop = asyncio.get_running_loop()
        started = loop.time()
        answers = await gate.ask_tcp(query("good.allowed.test"))
        assert answers[0].rr
        assert (await gate.ask("evil.test")).header.rcode == 3
        assert loop.time() - started < 5
        for _, writer in streams:
            writer.close()
        for _, writer in streams:
            await writer.wait_closed()

    run(tmp_path, test)


def test_a_client_that_takes_no_answers_is_let_go(tmp_path, monkeypatch):
    from km_net_proxy.dns import server as module

    monkeypatch.setattr(module, "_TCP_IDLE_S", 0.3)

    async def test(gate):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        sock.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(sock, gate.tcp.sockets[0].getsockname()[:2])
        batch = framed(query("evil.test")) * 50
        with pytest.raises((ConnectionError, TimeoutError)):
            async with asyncio.timeout(30):
                while True:
                    await loop.sock_sendall(sock, batch)
                    await asyncio.sleep(0.01)
        sock.close()

    run(tmp_path, test)


def test_a_connection_that_is_cut_ends_though_its_client_takes_no_answers(tmp_path):
    async def test(gate):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            loop = asyncio.get_running_loop()
            with socket.socket() as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                client.setblocking(False)
                await loop.sock_connect(client, listener.getsockname())
                accepted, _ = await loop.sock_accept(listener)
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2048)
                reader, writer = await asyncio.open_connection(sock=accepted)
                serving = asyncio.create_task(gate.server.handle_tcp(reader, writer))
                await loop.sock_sendall(client, framed(query("evil.test")) * 500)
                await until(lambda: writer.transport.get_write_buffer_size() > 0)
                started = time.monotonic()
                serving.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await serving
                assert time.monotonic() - started < 5

    run(tmp_path, test)
