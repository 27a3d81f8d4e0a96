"""A ClientHello after the first one, hidden names, and TLS where the profile opens an address."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct

import pytest
from gate_rig import WEB, AddressRule, HostRule, Rig, ok, run, until
from hypothesis import given
from hypothesis import strategies as st

from km_net_proxy.http.dial import Override
from km_net_proxy.http.hello import ClientHello, HelloError, read_client_hello
from km_net_proxy.http.refusal import ACCESS_DENIED
from km_net_proxy.http.relay import PASS, WATCH
from km_net_proxy.http.second_hello import RETRY, SecondHello


def extension(kind, value=b""):
    return struct.pack(">HH", kind, len(value)) + value


def server_name(name):
    entry = b"\0" + struct.pack(">H", len(name)) + name
    return extension(0, struct.pack(">H", len(entry)) + entry)


def records(message, size=16384, kind=22):
    return b"".join(
        bytes([kind])
        + b"\x03\x03"
        + struct.pack(">H", len(message[at : at + size]))
        + message[at : at + size]
        for at in range(0, len(message), size)
    )


def hello(name, *extensions, size=16384):
    body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
    rest = server_name(name.encode()) + b"".join(extensions)
    body += struct.pack(">H", len(rest)) + rest
    return records(b"\x01" + len(body).to_bytes(3, "big") + body, size)


def server_hello(random=bytes(32), size=16384):
    body = b"\x03\x03" + random + b"\0" + b"\x13\x01\0" + b"\0\0"
    return records(b"\x02" + len(body).to_bytes(3, "big") + body, size)


EARLY = extension(42)
FIRST = hello("a.test")
CCS = b"\x14\x03\x03\0\x01\x01"
DATA = b"\x17\x03\x03\0\x04data"
KEY_EXCHANGE = records(b"\x10\0\0\x02xy")


class Names:
    """A judge that lets one name pass."""

    def __init__(self):
        self.seen = []

    def __call__(self, found):
        self.seen.append(found.sni)
        if found.sni != "a.test":
            raise HelloError("another name")


def begun(first=FIRST):
    found = read_client_hello(first)
    assert isinstance(found, ClientHello)
    watch = SecondHello(judge := Names())
    watch.begin(found)
    assert watch.up(first) == WATCH
    return watch, judge


@pytest.mark.parametrize("between", [b"", CCS], ids=["at once", "after a change_cipher_spec"])
def test_a_second_hello_with_another_name_is_refused_and_with_the_same_one_passes(between):
    for name, passes in (("a.test", True), ("b.test", False)):
        watch, judge = begun()
        assert watch.down(server_hello(RETRY)) == PASS
        if passes:
            assert watch.up(between + hello(name)) == PASS
        else:
            with pytest.raises(HelloError, match="another name"):
                watch.up(between + hello(name))
        assert judge.seen == [name]


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 30))
def test_no_split_of_either_direction_hides_a_second_hello(record, answer_record, step):
    watch, judge = begun()
    answer = server_hello(RETRY, size=answer_record)
    for at in range(0, len(answer), step):
        if watch.down(answer[at : at + step]) == PASS:
            break
    second = CCS + hello("b.test", size=record)
    held = b""
    with pytest.raises(HelloError, match="another name"):
        for at in range(0, len(second), step):
            held += second[at : at + step]
            verdict = watch.up(held)
            assert verdict == WATCH or verdict > len(held)
            if verdict == WATCH:
                held = b""
    assert judge.seen == ["b.test"]


def test_a_hello_sent_before_the_server_asked_for_one_is_refused():
    watch, _ = begun()
    with pytest.raises(HelloError, match="before the server's answer"):
        watch.up(hello("a.test"))


def test_early_data_does_not_end_the_watch_and_other_data_does():
    first = hello("a.test", EARLY)
    watch, _ = begun(first)
    assert watch.up(CCS + DATA * 3 + DATA[:6]) == WATCH
    assert watch.up(DATA[6:] + DATA[:2]) == 5 + 3
    assert watch.down(server_hello(RETRY)) == PASS
    with pytest.raises(HelloError):
        watch.up(DATA[6:] + hello("b.test"))
    watch, _ = begun()
    assert watch.up(DATA) == PASS


@pytest.mark.parametrize(
    "flight", [KEY_EXCHANGE + CCS, CCS + records(b"\x01\0\0\x20" + bytes(36)), CCS + DATA, DATA]
)
def test_what_follows_an_ordinary_answer_passes_unread(flight):
    watch, judge = begun()
    assert watch.down(server_hello()) == PASS
    assert watch.up(flight) == PASS
    assert judge.seen == []


@pytest.mark.parametrize(
    "answer",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", records(b"\x0b\0\0\x01x"), DATA, b"\x16\x03\x03\0\0" * 900],
)
def test_an_answer_that_is_not_understood_lets_no_handshake_pass(answer):
    watch, _ = begun()
    assert watch.down(answer) == PASS
    with pytest.raises(HelloError):
        watch.up(hello("a.test"))


def test_a_warning_before_the_answer_is_passed_over():
    watch, _ = begun()
    assert watch.down(b"\x15\x03\x03\0\x02\x01\x70") == WATCH
    assert watch.down(server_hello()) == PASS
    assert watch.up(KEY_EXCHANGE) == PASS


@pytest.mark.parametrize(
    "junk", [b"\x18\x03\x03\0\x01x", b"\x14\x02\x03\0\x01\x01", b"GET / HTTP/1.1\r\n", b"\x14\x03\x03\0\0"]
)
def test_bytes_that_are_no_records_after_the_hello_are_refused(junk):
    watch, _ = begun()
    with pytest.raises(HelloError):
        watch.up(junk)


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=80)), max_size=8))
def test_no_bytes_make_the_watch_do_anything_but_answer_or_refuse(pieces):
    watch, judge = begun(hello("a.test", EARLY))
    held = b""
    with contextlib.suppress(HelloError):
        for upward, data in pieces:
            if not upward:
                assert watch.down(data) in (PASS, WATCH)
                continue
            held += data
            verdict = watch.up(held)
            assert verdict in (PASS, WATCH) or verdict > len(held)
            if verdict == WATCH:
                held = b""
    assert set(judge.seen) <= {"a.test"}


# -- through the gate -----------------------------------------------------------------------------


async def asker(answer):
    """Start a server that answers the first bytes with *answer* and keeps what it gets."""
    got = bytearray()

    async def client(reader, writer):
        first = True
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                got.extend(data)
                if first:
                    writer.write(answer)
                    first = False
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    return server, got


@pytest.mark.parametrize("port", [443, 8443])
def test_a_tunnel_ends_before_the_server_sees_a_second_hello_with_another_name(port):
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (443, 8443))]) as rig:
            server, got = await asker(server_hello(RETRY))
            rig.upstreams[WEB] = Override("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, port))
            first, second = hello(WEB), hello("other.test")
            writer.write(first)
            assert await reader.readexactly(len(server_hello())) == server_hello(RETRY)
            writer.write(CCS)
            await until(lambda: bytes(got) == first + CCS)
            writer.write(second)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            assert bytes(got) == first + CCS
            reasons = [event.get("reason", "") for event in rig.events()]
            assert any("second ClientHello: tls_sni_mismatch" in reason for reason in reasons)
            writer.close()
            server.close()

    run(main)


def test_a_real_handshake_with_a_retry_passes():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(b"retried"))
            # The client offers a key share of another group first, so the server must ask again.
            server.context.set_ecdh_curve("secp521r1")
            await rig.up()
            context = ssl.create_default_context(cadata=rig.pki.pem)
            reader, writer = await asyncio.open_connection(
                "127.0.0.1", rig.front(WEB, 443), ssl=context, server_hostname=WEB
            )
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await reader.readuntil(b"retried")).startswith(b"HTTP/1.1 200")
            writer.close()

    run(main)


@pytest.mark.parametrize("resumed", [False, True])
def test_tls_1_2_passes_fresh_and_resumed(resumed):
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(b"older"))
            await rig.up()
            context = ssl.create_default_context(cadata=rig.pki.pem)
            context.maximum_version = ssl.TLSVersion.TLSv1_2
            front, session = rig.front(WEB, 443), None
            for _ in range(20 if resumed else 1):
                # Blocking sockets on a thread: asyncio has no way to offer a session.
                session = await asyncio.to_thread(older, context, front, session if resumed else None)

    def older(context, port, session):
        import socket

        with (
            socket.create_connection(("127.0.0.1", port), 10) as raw,
            context.wrap_socket(raw, server_hostname=WEB, session=session) as tls,
        ):
            assert tls.session_reused is (session is not None)
            tls.sendall(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            received = b""
            while not received.endswith(b"older"):
                received += tls.recv(4096)
            return tls.session

    run(main)


@pytest.mark.parametrize("kind", [0xFE0D, 0xFFCE], ids=["ECH", "ESNI"])
@pytest.mark.parametrize("target", [WEB, "192.0.2.7"])
def test_a_hello_that_can_hide_another_name_is_refused_with_an_alert(kind, target):
    async def main():
        async with Rig(addresses=[AddressRule("192.0.2.0/24", (443,))]) as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(target, 443))
            writer.write(hello(WEB, extension(kind, bytes(64))))
            assert await asyncio.wait_for(reader.read(), 10) == ACCESS_DENIED
            writer.close()
            assert server.connections == 0
            assert any(event.get("rule") == "builtin:tls-ech" for event in rig.events())

    run(main)


@pytest.mark.parametrize(
    ("name", "ceiling", "rule"),
    [
        ("dns.google", None, "builtin:public-resolver"),
        ("generativelanguage.googleapis.com", 10**9, "builtin:tls-sni-mismatch"),
    ],
)
def test_an_open_range_of_addresses_opens_neither_resolvers_nor_unmetered_model_hosts(name, ceiling, rule):
    async def main():
        async with Rig(limit=ceiling, addresses=[AddressRule("192.0.2.0/24", (443,))]) as rig:
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.7", 443))
            writer.write(hello(name))
            assert await asyncio.wait_for(reader.read(), 10) == ACCESS_DENIED
            writer.close()
            assert any(event.get("rule") == rule for event in rig.events())

    run(main)


def test_bytes_that_are_no_tls_do_not_reach_an_address_on_port_443():
    async def main():
        async with Rig(addresses=[AddressRule("192.0.2.0/24", (443,))]) as rig:
            await rig.up()
            dialled = []

            async def literal(address, port):
                dialled.append(address)
                raise OSError("not here")

            rig.gate.context.dialer.literal = literal
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.7", 443))
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            assert not dialled

    run(main)


def test_a_hello_of_60_kib_in_small_segments_with_its_name_at_the_end_passes():
    async def main():
        async with Rig() as rig:
            server, got = await asker(b"")
            rig.upstreams[WEB] = Override("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
            await rig.up()
            body = b"\x03\x03" + bytes(32) + b"\0" + b"\0\x02\x13\x01" + b"\x01\0"
            rest = extension(51, bytes(60000)) + server_name(WEB.encode())
            body += struct.pack(">H", len(rest)) + rest
            sent = records(b"\x01" + len(body).to_bytes(3, "big") + body, 700)
            _, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 443))
            for at in range(0, len(sent), 97):
                writer.write(sent[at : at + 97])
                await asyncio.sleep(0)
            await until(lambda: bytes(got) == sent)
            writer.close()
            server.close()

    run(main)


def test_a_defect_in_the_judge_lets_nothing_pass(monkeypatch):
    def broken(data):
        raise IndexError("a defect")

    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (8443,))]) as rig:
            server, got = await asker(b"")
            rig.upstreams[WEB] = Override("127.0.0.1", server.sockets[0].getsockname()[1], tls=True)
            await rig.up()
            monkeypatch.setattr("km_net_proxy.http.judge.read_client_hello", broken)
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 8443))
            writer.write(hello(WEB))
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 10) == b""
            writer.close()
            assert not got
            assert rig.gate.context.connections.failures == 1
            server.close()

    run(main)
