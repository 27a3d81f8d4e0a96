"""The DNS server on real sockets: what a client gets, and what the outside sees (anchors: B-01 to B-13)."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import subprocess
import sys
import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.errors import AuditError
from km_core.plan import NetworkPlan
from km_core.policy import NetworkPolicy, compile_pattern
from km_net_proxy.dns.names import SyntheticNames
from km_net_proxy.dns.server import DnsServer
from km_net_proxy.dns.upstream import Resolver

ZONE = {
    "good.allowed.test": ["93.184.216.34"],
    "v6.allowed.test": ["2606:4700::1111"],
    "inside.allowed.test": ["10.0.0.1", "169.254.169.254"],
    "mapped.allowed.test": ["::ffff:a00:1"],
    "mixed.allowed.test": ["10.0.0.1", "93.184.216.34"],
    "mirror.allowed.test": ["10.0.0.5"],
    "doh.allowed.test": ["8.8.8.8", "1.1.1.1"],
    "mine.allowed.test": ["9.9.9.9"],
    "empty.allowed.test": [],
    "dead.allowed.test": None,
}


class Zone(asyncio.DatagramProtocol):
    """An upstream that remembers every name it hears."""

    def __init__(self):
        self.heard = []

    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, peer):
        from dnslib import AAAA, RR, A, DNSRecord

        query = DNSRecord.parse(data)
        name = str(query.q.qname).lower().rstrip(".")
        self.heard.append(name)
        reply = query.reply()
        addresses = ZONE.get(name, ())
        if name not in ZONE:
            reply.header.rcode = 3
        elif addresses is None:
            reply.header.rcode = 2
        for text in addresses or ():
            rdata, qtype = (AAAA(text), 28) if ":" in text else (A(text), 1)
            if qtype == query.q.qtype:
                reply.add_answer(RR(name, qtype, ttl=300, rdata=rdata))
        self.transport.sendto(bytes(reply.pack()), peer)


class Gate:
    """A server on a dual-stack socket, its upstream, and what was decided."""

    def __init__(self, tmp_path, entries=(".allowed.test",), **options):
        rules = tuple(compile_pattern(e, dns_list=False, source=e) for e in entries)
        self.policy = NetworkPolicy.from_plan(
            NetworkPlan(hosts=rules), private_hosts=[("mirror.allowed.test", "10.0.0.5/32")]
        )
        self.path = tmp_path / "names.jsonl"
        self.options = options
        self.decisions = []
        self.fail = False

    def decide(self, verdict, name, qtype):
        if self.fail:
            raise AuditError("the disk is full")
        self.decisions.append((verdict.allow, verdict.rule, name, qtype))

    async def __aenter__(self):
        loop = asyncio.get_running_loop()
        self.upstream, self.zone = await loop.create_datagram_endpoint(Zone, local_addr=("127.0.0.1", 0))
        self.names = SyntheticNames(self.path, limit=self.options.pop("limit", 1000))
        self.resolver = Resolver([self.upstream.get_extra_info("sockname")], timeout_s=self.options.pop("timeout_s", 30.0), tries=1,
                                 overrides={"api.allowed.test": ("127.0.0.1", 8443)})  # fmt: skip
        self.server = DnsServer(self.policy, self.names, self.resolver, self.decide, **self.options)
        self.sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
        self.sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        self.sock.bind(("::", 0))
        self.port = self.sock.getsockname()[1]
        self.server.attach(self.sock)
        self.tcp = await asyncio.start_server(self.server.handle_tcp, "127.0.0.1", 0)
        return self

    async def __aexit__(self, *exc):
        self.tcp.close()
        await self.tcp.wait_closed()
        serving = {task for task in asyncio.all_tasks() if "handle_tcp" in repr(task.get_coro())}
        if serving:
            await asyncio.wait(serving, timeout=30)
        await self.server.close()
        self.sock.close()
        await self.resolver.close()
        await self.names.close()
        self.upstream.close()

    async def send(self, packet, host="127.0.0.1", bind=None, wait_s=30.0):
        """Ask from a *connected* socket, which takes answers only from the address it asked."""
        loop = asyncio.get_running_loop()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            if bind:
                sock.bind(bind)
            sock.connect((host, self.port))
            await loop.sock_sendall(sock, packet)
            async with asyncio.timeout(wait_s):
                return await loop.sock_recv(sock, 65535)

    async def ask(self, name, qtype="A", edns=False, **where):
        from dnslib import DNSRecord

        return DNSRecord.parse(await self.send(query(name, qtype, edns), **where))

    async def ask_tcp(self, *packets):
        from dnslib import DNSRecord

        reader, writer = await asyncio.open_connection(*self.tcp.sockets[0].getsockname()[:2])
        answers = []
        try:
            for packet in packets:
                writer.write(len(packet).to_bytes(2, "big") + packet)
            for _ in packets:
                length = int.from_bytes(await reader.readexactly(2), "big")
                answers.append(DNSRecord.parse(await reader.readexactly(length)))
            # Each comes as soon as it is there (RFC 7766 section 6.2.1.1).
            ids = [packet[:2] for packet in packets]
            answers.sort(key=lambda answer: ids.index(answer.header.id.to_bytes(2, "big")))
        finally:
            writer.close()
            await writer.wait_closed()
        return answers


def query(name, qtype="A", edns=False, qclass=1):
    from dnslib import EDNS0, QTYPE, DNSRecord
    from dnslib.dns import DNSHeader, DNSQuestion

    number = qtype if isinstance(qtype, int) else getattr(QTYPE, qtype)
    message = DNSRecord(DNSHeader(rd=1), q=DNSQuestion(name, number, qclass))
    if edns:
        message.add_ar(EDNS0(udp_len=4096))
    return bytes(message.pack())


def run(tmp_path, test, *, loop=None, **options):
    async def main():
        async with Gate(tmp_path, **options) as gate:
            await test(gate)

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(main())


def first(message):
    return str(message.rr[0].rdata)


@pytest.mark.parametrize("factory", ["asyncio", "uvloop"])
def test_an_allowed_name_gets_an_address_of_its_own(tmp_path, factory):
    import uvloop

    async def test(gate):
        v4 = await gate.ask("Good.Allowed.TEST")
        v6 = await gate.ask("good.allowed.test", "AAAA")
        assert (first(v4), ip_address(first(v6))) == ("198.18.1.0", ip_address("fdc0:6b6d::100"))
        assert 0 < v4.rr[0].ttl <= 60
        assert str(v4.q.qname) == "Good.Allowed.TEST."
        assert first(await gate.ask("v6.allowed.test")) == "198.18.1.1"
        assert gate.names.lookup(ip_address("198.18.1.0")) == "good.allowed.test"
        assert gate.decisions[0] == (True, ".allowed.test", "good.allowed.test", 1)

    run(tmp_path, test, loop=None if factory == "asyncio" else uvloop.new_event_loop)


@pytest.mark.parametrize(
    "qtype",
    ["A", "AAAA", "TXT", "MX", "SRV", "NS", "HTTPS", "ANY", "AXFR", "NULL", "PTR", "CNAME", "SOA", 4711],
)
def test_a_denied_name_gets_nxdomain_for_every_type_and_never_leaves(tmp_path, qtype):
    async def test(gate):
        for name in ("secret-data.evil.test", "allowed.test.evil.org", "xallowed.test"):
            message = await gate.ask(name, qtype)
            assert (message.header.rcode, message.rr, message.ar) == (3, [], [])
        assert gate.zone.heard == []
        assert [d[:2] for d in gate.decisions] == [(False, "builtin:default-deny")] * 3

    run(tmp_path, test)


def test_a_denial_says_why_to_clients_that_speak_edns(tmp_path):
    async def test(gate):
        option = (await gate.ask("evil.test", edns=True)).ar[0].rdata[0]
        assert (option.code, option.data[:2]) == (15, b"\0\x0f")
        assert b"no rule of the profile" in option.data

    run(tmp_path, test)


@pytest.mark.parametrize("raw", [b"\x10evil\0allowed.tes\x04test\0", b"\x10evil.org.allowed\x04test\0", b"\x04a b\xff\x07allowed\x04test\0",
                                 b"\x0c" + b"good\x07allowed" + b"\x04test\0", b"\0", b"\x01*\x07allowed\x04test\0"])  # fmt: skip
def test_bytes_that_no_host_name_has_are_denied(tmp_path, raw):
    async def test(gate):
        packet = struct.pack("!6H", 1, 0x100, 1, 0, 0, 0) + raw + b"\0\1\0\1"
        answer = await gate.send(packet)
        assert answer[3] & 15 == 3
        assert answer[12:] == packet[12:]
        assert gate.zone.heard == []
        assert gate.decisions[0][0] is False
        assert gate.decisions[0][2].isascii()

    run(tmp_path, test)


def test_nxdomain_and_nodata_pass_on(tmp_path):
    async def test(gate):
        for name, rcode in (("no.allowed.test", 3), ("empty.allowed.test", 0)):
            message = await gate.ask(name)
            assert (message.header.rcode, message.rr) == (rcode, [])
        assert len(gate.names) == 1, "nothing was assigned"

    run(tmp_path, test)


def test_a_silent_upstream_is_a_failure(tmp_path):
    async def test(gate):
        message = await gate.ask("dead.allowed.test")
        assert (message.header.rcode, message.rr) == (2, [])
        assert len(gate.names) == 1, "nothing was assigned"

    run(tmp_path, test, timeout_s=0.5)


@pytest.mark.parametrize("name", ["inside.allowed.test", "mapped.allowed.test"])
def test_a_name_that_leads_inside_is_rebinding(tmp_path, name):
    async def test(gate):
        message = await gate.ask(name)
        assert (message.header.rcode, message.rr) == (3, [])
        assert gate.decisions[-1][:3] == (False, "builtin:private-address", name)
        assert gate.names.host(name) is None

    run(tmp_path, test)


def test_one_public_address_or_an_exception_is_enough(tmp_path):
    async def test(gate):
        assert (await gate.ask("mixed.allowed.test")).rr
        assert (await gate.ask("mirror.allowed.test")).rr

    run(tmp_path, test)


def test_the_inside_name_and_overrides_ask_nobody(tmp_path):
    async def test(gate):
        assert first(await gate.ask("km.internal")) == "198.18.0.1"
        assert ip_address(first(await gate.ask("KM.internal", "AAAA"))) == ip_address("fdc0:6b6d::1")
        assert first(await gate.ask("api.allowed.test")).startswith("198.18.1.")
        assert (await gate.ask("x.km.internal")).header.rcode == 3
        assert gate.zone.heard == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("qtype", "rcode"),
    [("TXT", 0), ("MX", 0), ("HTTPS", 0), (64, 0), ("NULL", 5), ("ANY", 5), ("AXFR", 5), (251, 5)],
)
def test_no_other_type_of_an_allowed_name_leaves(tmp_path, qtype, rcode):
    async def test(gate):
        message = await gate.ask("good.allowed.test", qtype)
        assert (message.header.rcode, message.rr) == (rcode, [])
        assert gate.zone.heard == []

    run(tmp_path, test)


def test_our_addresses_have_names(tmp_path):
    async def test(gate):
        await gate.ask("good.allowed.test")
        for name in ("0.1.18.198.in-addr.arpa", ip_address("fdc0:6b6d::100").reverse_pointer):
            assert str((await gate.ask(name, "PTR")).rr[0].rdata.label) == "good.allowed.test."
        for name in ("1.1.18.198.in-addr.arpa", "1.0.0.127.in-addr.arpa", "999.1.18.198.in-addr.arpa"):
            assert (await gate.ask(name, "PTR")).header.rcode == 3
        assert set(gate.zone.heard) == {"good.allowed.test"}

    run(tmp_path, test)


def test_our_addresses_have_names_below_a_star_and_others_are_not_asked_about(tmp_path):
    async def test(gate):
        await gate.ask("good.allowed.test")
        message = await gate.ask("0.1.18.198.in-addr.arpa", "PTR")
        assert first(message) == "good.allowed.test."
        for qtype in ("PTR", "A"):
            assert (await gate.ask("1.0.0.10.in-addr.arpa", qtype)).header.rcode == 3
        assert set(gate.zone.heard) == {"good.allowed.test"}

    run(tmp_path, test, entries=("*", ".allowed.test"))


@pytest.mark.parametrize(
    "name",
    [
        "printer",
        "wpad",
        "nas.local",
        "x.home.arpa",
        "db.internal",
        "a.lan",
        "intranet.corp",
        "x.onion",
        "y.alt",
    ],
)
def test_names_of_the_operators_network_do_not_leave_below_a_star(tmp_path, name):
    async def test(gate):
        for qtype in ("A", "AAAA", "SRV", "PTR"):
            message = await gate.ask(name, qtype, edns=True)
            assert message.header.rcode == 3
            assert b"builtin:local-name" in message.ar[0].rdata[0].data
        assert gate.zone.heard == []
        assert {rule for _allow, rule, *_ in gate.decisions} == {"builtin:local-name"}

    run(tmp_path, test, entries=("*",))


def test_names_of_the_operators_network_are_asked_for_when_a_rule_names_them(tmp_path):
    async def test(gate):
        for name in ("nas.local", "a.corp.internal", "registry"):
            await gate.ask(name)
        assert set(gate.zone.heard) == {"nas.local", "a.corp.internal", "registry"}

    run(tmp_path, test, entries=("*", "nas.local", ".corp.internal", "registry"))


@pytest.mark.parametrize("passthrough", [False, True])
def test_a_name_that_leads_to_a_public_resolver_is_not_answered(tmp_path, passthrough):
    async def test(gate):
        message = await gate.ask("doh.allowed.test", edns=True)
        assert message.header.rcode == 3
        assert gate.decisions[-1][:2] == (False, "builtin:public-resolver")
        # One that a rule names exactly is the operator's own choice.
        assert (await gate.ask("mine.allowed.test")).header.rcode == 0

    run(tmp_path, test, entries=(".allowed.test", "mine.allowed.test"), passthrough=passthrough)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.8.7", "::1"])
def test_the_answer_comes_from_the_address_that_was_asked(tmp_path, host):
    async def test(gate):
        assert (await gate.ask("good.allowed.test", host=host)).rr
        assert (await gate.ask("evil.test", host=host)).header.rcode == 3

    run(tmp_path, test)


def test_neither_answers_nor_dns_ports_are_answered(tmp_path):
    async def test(gate):
        packet = query("good.allowed.test")
        for wrong in (packet[:2] + b"\x81" + packet[3:], b"", b"x" * 11):
            with pytest.raises(TimeoutError):
                await gate.send(wrong, wait_s=0.1)
        for port in (53, 5353):
            # A resolver of the machine's own may hold the port on every address.
            with contextlib.suppress(OSError), pytest.raises(TimeoutError):
                await gate.send(packet, bind=("127.0.0.77", port), wait_s=0.1)
        assert gate.decisions == []

    run(tmp_path, test)


@pytest.mark.parametrize(
    ("change", "rcode"),
    [
        (lambda p: p[:2] + b"\x29" + p[3:], 4),
        (lambda p: p[:5] + b"\2" + p[6:], 1),
        (lambda p: p[:5] + b"\0" + p[6:], 1),
        (lambda p: p[:-2] + b"\0\3", 5),
        (lambda p: p[:-3], 1),
    ],
)
def test_what_is_no_plain_question_gets_its_error(tmp_path, change, rcode):
    async def test(gate):
        answer = await gate.send(change(query("good.allowed.test")))
        assert answer[3] & 15 == rcode
        assert gate.zone.heard == []

    run(tmp_path, test)


def test_another_edns_version_is_told_so(tmp_path):
    async def test(gate):
        packet = bytearray(query("good.allowed.test", edns=True))
        packet[-5] = 1
        answer = await gate.send(bytes(packet))
        assert (answer[3] & 15, answer[-6]) == (0, 1), "BADVERS is 16: 0 in the header, 1 in the OPT"

    run(tmp_path, test)


def test_tcp_gives_the_same_answers(tmp_path):
    async def test(gate):
        one, two, three = await gate.ask_tcp(
            query("good.allowed.test"), query("evil.test"), query("no.allowed.test")
        )
        assert (first(one), two.header.rcode, three.header.rcode) == ("198.18.1.0", 3, 3)
        assert "evil.test" not in gate.zone.heard
        reader, writer = await asyncio.open_connection(*gate.tcp.sockets[0].getsockname()[:2])
        writer.write(b"\0\5short")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(tmp_path, test)


def test_without_a_lease_nothing_is_answered_or_asked(tmp_path):
    async def test(gate):
        await gate.ask("good.allowed.test")
        heard = len(gate.zone.heard)
        gate.server.open = False
        for name in ("good.allowed.test", "evil.test", "km.internal", "new.allowed.test"):
            assert (await gate.ask(name)).header.rcode == 2
        assert len(gate.zone.heard) == heard
        gate.server.open = True
        assert (await gate.ask("good.allowed.test")).rr

    run(tmp_path, test)


def test_when_the_decision_cannot_be_recorded_the_query_is_refused(tmp_path):
    async def test(gate):
        gate.fail = True
        for name in ("good.allowed.test", "evil.test", "km.internal"):
            message = await gate.ask(name)
            assert (message.header.rcode, message.rr) == (2, [])
        assert gate.zone.heard == []

    run(tmp_path, test)


def test_a_full_table_fails_closed(tmp_path):
    async def test(gate):
        assert (await gate.ask("good.allowed.test")).rr
        assert (await gate.ask("v6.allowed.test")).header.rcode == 2

    run(tmp_path, test, limit=1)


def test_a_new_policy_holds_from_the_next_query(tmp_path):
    async def test(gate):
        assert (await gate.ask("good.allowed.test")).rr
        gate.server.policy = NetworkPolicy.from_plan(NetworkPlan())
        assert (await gate.ask("good.allowed.test")).header.rcode == 3

    run(tmp_path, test)


def test_too_many_lookups_at_once_fail_and_the_server_lives(tmp_path):
    async def test(gate):
        answers = await asyncio.gather(*(gate.ask(f"n{i}.allowed.test") for i in range(40)))
        codes = [a.header.rcode for a in answers]
        assert codes.count(3) >= 4
        assert set(codes) <= {2, 3}
        assert (await gate.ask("good.allowed.test")).rr

    run(tmp_path, test, max_waiting=4)


def test_passthrough_answers_with_the_judged_addresses(tmp_path):
    async def test(gate):
        assert first(await gate.ask("good.allowed.test")) == "93.184.216.34"
        assert [str(r.rdata) for r in (await gate.ask("mixed.allowed.test")).rr] == ["93.184.216.34"]
        assert (await gate.ask("inside.allowed.test")).header.rcode == 3
        assert (await gate.ask("good.allowed.test", "AAAA")).rr == []

    run(tmp_path, test, passthrough=True)


def test_the_names_survive_a_restart(tmp_path):
    async def test(gate):
        got.append(first(await gate.ask("v6.allowed.test")))

    got = []
    run(tmp_path, test)
    run(tmp_path, test)
    assert got == ["198.18.1.0"] * 2


@given(st.binary(max_size=400))
def test_any_packet_is_answered_or_dropped(data):
    server = DnsServer(NetworkPolicy.from_plan(NetworkPlan()), None, None, lambda *_: None)
    answer = server.respond(data)
    if answer is not None:
        assert answer[:2] == data[:2]
        assert answer[2] & 0x80
        assert answer[3] & 15 in {0, 1, 2, 3, 4, 5}
        assert answer[6:8] in {b"\0\0", b"\0\1"}


def test_the_bench_server_answers():
    deadline = time.monotonic() + 60
    answer = b""
    while not answer and time.monotonic() < deadline:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            port = sock.getsockname()[1]
        # Somebody else may take the port before the server does; then it ends, and another one is tried.
        command = [sys.executable, "-m", "km_net_proxy.dns.bench_server", "--listen", f"127.0.0.1:{port}",
                   "--upstream", "127.0.0.1:9", "--allow", "allowed.test", "--audit"]  # fmt: skip
        process = subprocess.Popen(command)
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(0.2)
                sock.connect(("127.0.0.1", port))
                while not answer and process.poll() is None and time.monotonic() < deadline:
                    with contextlib.suppress(OSError):
                        sock.send(query("evil.test"))
                        answer = sock.recv(512)
        finally:
            process.terminate()
            process.wait(60)
    assert answer[3] & 15 == 3
