"""Connections through the gate as the sandbox makes them: by name, by address, on any port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import socket
import ssl

import pytest
from gate_rig import AI, SANDBOX, WEB, AddressRule, HostRule, Rig, answer, ok, run, until

from km_net_proxy.http.dial import Override

CURL = shutil.which("curl")


async def curl(*argv):
    env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    process = await asyncio.create_subprocess_exec(
        CURL, "-sS", "-m", "60", *argv, stdout=-1, stderr=-1, env=env
    )
    out, err = await process.communicate()
    return process.returncode, out, err


async def echo_server(rig, name):
    """A raw server that says hello first and then echoes; returns its port."""

    async def client(reader, writer):
        writer.write(b"220 welcome\r\n")
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(client, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    rig.upstreams[name] = Override("127.0.0.1", port, tls=False)
    return server


def test_an_allowed_https_host_is_reached_end_to_end_and_its_tunnel_is_recorded():
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(b"over the wire"))
            await rig.up()
            (rig.directory / "pki.pem").write_text(rig.pki.pem)
            front = rig.front(WEB, 443)
            code, out, err = await curl(
                "--cacert",
                str(rig.directory / "pki.pem"),
                "--connect-to",
                f"{WEB}:443:127.0.0.1:{front}",
                f"https://{WEB}/x",
            )
            assert (code, out) == (0, b"over the wire"), err
            await until(lambda: any(event["kind"] == "tunnel_closed" for event in rig.events()))
            ends = [event for event in rig.events() if event["kind"] == "tunnel_closed"]
            assert ends[0]["name"] == WEB
            assert ends[0]["sni"] == WEB
            assert ends[0]["bytes_up"] > 100
            assert ends[0]["bytes_down"] > 100
            decided = [event for event in rig.events() if event["kind"] == "connect"]
            assert [(event["verdict"], event["name"], event["port"]) for event in decided] == [
                ("allow", WEB, 443)
            ]

    run(main)


@pytest.mark.parametrize(("sni", "why"), [("other.test", "tls_sni_mismatch"), (None, "tls_sni_missing")])
def test_tls_whose_server_name_is_not_the_dialled_name_is_closed_with_an_alert(sni, why):
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            front = rig.front(WEB, 443)
            with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                await asyncio.open_connection(
                    "127.0.0.1", front, ssl=context, server_hostname=sni or "127.0.0.1"
                )
            denied = [event for event in rig.events() if event.get("verdict") == "deny"]
            assert [why in event["reason"] for event in denied] == [True]
            assert server.connections == 0

    run(main)


def test_bytes_that_are_no_tls_on_port_443_are_cut_off():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 443))
            writer.write(b"SSH-2.0-OpenSSH_9.6\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
            assert server.connections == 0
            assert any("tunnel_not_tls" in event.get("reason", "") for event in rig.events())

    run(main)


def test_a_client_hello_in_single_bytes_still_passes():
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(b"slowly"))
            await rig.up()
            context = ssl.create_default_context(cadata=rig.pki.pem)
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            tls = context.wrap_bio(incoming, outgoing, server_hostname=WEB)
            with pytest.raises(ssl.SSLWantReadError):
                tls.do_handshake()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 443))
            writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in outgoing.read():
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
            while True:
                incoming.write(await asyncio.wait_for(reader.read(65536), 30))
                try:
                    tls.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                break
            assert tls.version() == "TLSv1.3"
            writer.close()

    run(main)


def test_a_denied_port_80_request_gets_a_page_that_says_who_and_why():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (443,))]) as rig:
            await rig.up()
            front = rig.front(WEB, 80)
            code, out, err = await curl(
                "-i", "--connect-to", f"{WEB}:80:127.0.0.1:{front}", f"http://{WEB}/secret?token=1"
            )
            assert code == 0, err
            text = out.decode()
            assert text.startswith("HTTP/1.1 403 ")
            assert "Blocked by km sandbox policy" in text
            for part in (SANDBOX, f"{WEB}:80", "layer:", "rule:", "next:"):
                assert part in text
            assert "token" not in text

    run(main)


def test_https_only_answers_plain_http_with_the_text_of_the_spec():
    async def main():
        async with Rig(https_only=True) as rig:
            await rig.up()
            code, out, err = await curl(
                "-i", "--connect-to", f"{WEB}:80:127.0.0.1:{rig.front(WEB, 80)}", f"http://{WEB}/"
            )
            assert code == 0, err
            assert "Blocked: HTTPS only — plain HTTP is not allowed by sandbox policy" in out.decode()

    run(main)


def test_plain_http_passes_and_each_request_is_judged_anew():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(b"plain"), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET /1 HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[::2] == (200, b"plain")
            writer.write(b"GET /2 HTTP/1.1\r\nHost: other.test\r\n\r\n")
            status, _, body = await answer(reader)
            assert status == 421
            assert b"Blocked by km sandbox policy" in body
            assert await reader.read() == b""
            writer.close()
            assert [request[0].split()[1] for request in server.requests] == [b"/1"]

    run(main)


def test_pipelined_requests_are_answered_in_order():
    async def main():
        async with Rig() as rig:

            async def handler(head, body, writer):
                path = head.split()[1]
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(path), path))

            server = await rig.serve(WEB, handler, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"".join(b"GET /%d HTTP/1.1\r\nHost: web.test\r\n\r\n" % n for n in range(5)))
            bodies = [(await answer(reader))[2] for _ in range(5)]
            assert bodies == [b"/0", b"/1", b"/2", b"/3", b"/4"]
            assert server.connections == 1
            writer.close()

    run(main)


def test_an_unknown_synthetic_address_and_a_literal_one_are_denied():
    async def main():
        async with Rig() as rig:
            await rig.up()
            for destination in ("198.18.9.9", "192.0.2.7", "169.254.169.254", "10.0.0.1"):
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(destination, 2222))
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 30) == b""
                writer.close()
            denied = [event for event in rig.events() if event.get("verdict") == "deny"]
            assert {event["address"] for event in denied} == {
                "198.18.9.9",
                "192.0.2.7",
                "169.254.169.254",
                "10.0.0.1",
            }

    run(main)


def test_a_name_that_resolves_to_loopback_or_to_this_host_is_not_dialled():
    async def main():
        async with Rig() as rig:
            await rig.up()
            own = _own_address()
            for address in filter(None, ("127.0.0.1", "::ffff:127.0.0.1", "169.254.169.254", own)):
                rig.resolver.table["other.test"] = (address,)
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("other.test", 80))
                writer.write(b"GET / HTTP/1.1\r\nHost: other.test\r\nConnection: close\r\n\r\n")
                status, _, body = await answer(reader)
                assert status == 403, (address, body)
                writer.close()
            rules = {event["rule"] for event in rig.events() if event.get("verdict") == "deny"}
            assert rules <= {"builtin:private-address", "builtin:own-host"}

    run(main)


def _own_address():
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect(("192.0.2.1", 9))
        return probe.getsockname()[0]
    return ""


def test_a_server_that_speaks_first_works_on_a_port_of_its_own():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (2222,))]) as rig:
            server = await echo_server(rig, WEB)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 2222))
            assert await reader.readline() == b"220 welcome\r\n"
            writer.write(b"ping")
            assert await reader.readexactly(4) == b"ping"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            server.close()

    run(main)


def test_tls_with_another_name_is_refused_on_every_port():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (8443,))]) as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            context = ssl.create_default_context(cadata=rig.pki.pem)
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(
                    "127.0.0.1", rig.front(WEB, 8443), ssl=context, server_hostname="other.test"
                )
            _, writer = await asyncio.open_connection(
                "127.0.0.1", rig.front(WEB, 8443), ssl=context, server_hostname=WEB
            )
            writer.close()
            assert not server.requests

    run(main)


def test_a_large_transfer_is_spliced_and_arrives_whole():
    size = 24 << 20

    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (2222,))]) as rig:
            server = await echo_server(rig, WEB)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 2222), limit=1 << 20)
            await reader.readline()
            block = os.urandom(1 << 20)

            async def send():
                for _ in range(size >> 20):
                    writer.write(block)
                    await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            for _ in range(size >> 20):
                assert await reader.readexactly(1 << 20) == block
            assert await reader.read() == b""
            await sending
            writer.close()
            server.close()

    run(main)


def test_an_allowed_literal_address_is_dialled_but_never_for_an_intercepted_name():
    async def main():
        async with Rig(addresses=[AddressRule("192.0.2.0/24", (443, 80))]) as rig:
            await rig.up()
            context = ssl.create_default_context(cadata=rig.pki.pem)
            dialled = []

            async def literal(address, port):
                dialled.append((str(address), port))
                left, right = socket.socketpair()
                left.setblocking(False)
                rig.pair = right
                from km_net_proxy.http.dial import Dialled

                return Dialled(left, f"{address}:{port}")

            rig.gate.context.dialer.literal = literal
            with pytest.raises(ssl.SSLError, match="ACCESS_DENIED"):
                await asyncio.open_connection(
                    "127.0.0.1", rig.front("192.0.2.9", 443), ssl=context, server_hostname=AI
                )
            assert dialled == []
            incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
            with pytest.raises(ssl.SSLWantReadError):
                context.wrap_bio(incoming, outgoing, server_hostname="plain.test").do_handshake()
            _, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.9", 443))
            writer.write(outgoing.read())
            await until(lambda: dialled)
            writer.close()
            rig.pair.close()
            assert dialled == [("192.0.2.9", 443)]
            reasons = [event.get("reason", "") for event in rig.events()]
            assert any("tls_sni_mismatch" in reason for reason in reasons)

    run(main)


def test_the_inside_api_lists_its_services_and_tells_the_budget_in_dollars():
    async def main():
        async with Rig(limit=2_000_000_000) as rig:
            rig.kmd.spent = 500_000_000
            await rig.up()
            front = rig.front("198.18.0.1", 80)
            base = ("--connect-to", f"km.internal:80:127.0.0.1:{front}")
            code, out, _ = await curl(*base, "http://km.internal/")
            assert code == 0
            assert "/budget" in json.loads(out)["services"]
            code, out, _ = await curl("-i", *base, "http://km.internal/budget")
            head, _, body = out.partition(b"\r\n\r\n")
            assert b"no-store" in head
            data = json.loads(body)
            assert data["ai"]["limit_usd"] == 2.0
            assert data["ai"]["spent_usd"] == 0.5
            assert data["ai"]["remaining_usd"] == 1.5
            assert "nusd" not in body.decode()
            code, out, _ = await curl("-w", "%{http_code}", *base, "http://km.internal/nothing")
            assert out.endswith(b"404")
            assert b"/budget" in out
            code, out, _ = await curl("-w", "%{http_code}", "-d", "x", *base, "http://km.internal/budget")
            assert out.endswith(b"405")

    run(main)


def test_without_a_lease_new_connections_are_closed_and_http_says_503():
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            rig.gate._parts.lease._until = 0.0
            await rig.kmd.stop()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            status, _, body = await answer(reader)
            assert (status, json.loads(body)["error"]) == (503, "control_plane_unavailable")
            writer.close()
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await rig.tls(WEB)

    run(main)


def test_at_the_deadline_open_tunnels_are_cut_even_with_the_control_plane_gone():
    import time

    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (2222,))]) as rig:
            server = await echo_server(rig, WEB)
            rig.kmd.deadline = time.time() + 3
            await rig.up()
            await rig.kmd.stop()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 2222))
            await reader.readline()
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            assert time.time() >= rig.kmd.deadline
            writer.close()
            server.close()
            await until(lambda: len(rig.gate.context.connections) == 0)

    run(main)


def test_a_gate_that_cannot_record_refuses():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            front = rig.front(WEB, 80)
            os.truncate(rig.directory / "audit" / "gate.jsonl", 3)
            reader, writer = await asyncio.open_connection("127.0.0.1", front)
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert (await reader.read())[:12] in (b"", b"HTTP/1.1 503")
            writer.close()
            assert not server.requests
            rig.gate._parts.log._open.clear()

    run(main)


def test_more_connections_than_slots_are_reset_and_the_gate_goes_on():
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            rig.gate.context.connections.limit = 8
            front = rig.front(WEB, 80)
            held = [socket.create_connection(("127.0.0.1", front)) for _ in range(12)]
            await until(lambda: rig.fronts[-1][0].refused == 4)
            assert len(rig.gate.context.connections) == 8
            for sock in held:
                sock.close()
            await until(lambda: len(rig.gate.context.connections) == 0)
            reader, writer = await asyncio.open_connection("127.0.0.1", front)
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[0] == 200
            writer.close()

    run(main)


def test_a_split_client_hello_on_another_port_is_judged_whole():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (8443,))]) as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            for name, passes in ((WEB, True), ("other.test", False)):
                context = ssl.create_default_context(cadata=rig.pki.pem)
                incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
                tls = context.wrap_bio(incoming, outgoing, server_hostname=name)
                with pytest.raises(ssl.SSLWantReadError):
                    tls.do_handshake()
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 8443))
                data = outgoing.read()
                for at in range(0, len(data), 50):
                    writer.write(data[at : at + 50])
                    await asyncio.sleep(0.002)
                received = b""
                with contextlib.suppress(ConnectionError):
                    received = await asyncio.wait_for(reader.read(100), 30)
                assert bool(received) is passes
                writer.close()
            assert not server.requests

    run(main)


@pytest.mark.parametrize("kind", [0x14, 0x15, 0x17, 0x18])
@pytest.mark.parametrize("at_once", [True, False])
def test_a_record_before_the_hello_hides_no_name_on_a_port_of_its_own(kind, at_once):
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (8443,))]) as rig:
            received = []

            async def handler(reader, writer):
                received.append(await reader.read(65536))
                writer.close()

            server = await asyncio.start_server(handler, "127.0.0.1", 0)
            rig.upstreams[WEB] = Override("127.0.0.1", server.sockets[0].getsockname()[1], tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 8443))
            data = bytes([kind]) + b"\x03\x03\0\x02\x01\x5a" + b"\x16\x03\x01\0\x05hello"
            for piece in [data] if at_once else [data[:1], data[1:]]:
                writer.write(piece)
                await asyncio.sleep(0.05)
            with contextlib.suppress(ConnectionError):
                assert await asyncio.wait_for(reader.read(100), 10) == b""
            writer.close()
            assert b"".join(received) == b""
            assert "builtin:tls-malformed" in {event.get("rule") for event in rig.events()}
            server.close()

    run(main)


def test_dns_over_tcp_gets_the_filters_answers():
    async def main():
        async with Rig() as rig:
            await rig.up()
            rig.gate._parts.dns.open = True
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front("192.0.2.53", 53))
            question = b"\x06denied\x04test\0\0\x01\0\x01"
            query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0" + question
            for _ in range(2):
                writer.write(len(query).to_bytes(2, "big") + query)
                size = int.from_bytes(await reader.readexactly(2), "big")
                reply = await reader.readexactly(size)
                assert reply[:2] == b"\x12\x34"
                assert reply[3] & 0x0F == 3
            writer.close()

    run(main)


def test_the_operators_own_proxy_carries_tunnels_and_requests():
    async def main():
        async with Rig() as rig:
            asked = []

            async def proxy(reader, writer):
                head = await reader.readuntil(b"\r\n\r\n")
                asked.append(head)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                request = await reader.readuntil(b"\r\n\r\n")
                asked.append(request)
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nvia")
                await writer.drain()
                await reader.read()
                writer.close()

            server = await asyncio.start_server(proxy, "127.0.0.1", 0)
            await rig.up()
            from urllib.parse import urlsplit

            port = server.sockets[0].getsockname()[1]
            rig.gate.context.dialer._proxy = urlsplit(f"http://me:pass%20word@127.0.0.1:{port}")
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(b"GET /x HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[::2] == (200, b"via")
            assert asked[0].startswith(b"CONNECT web.test:80 HTTP/1.1\r\n")
            assert b"Proxy-Authorization: Basic bWU6cGFzcyB3b3Jk" in asked[0]
            assert b"GET /x HTTP/1.1" in asked[1]
            assert b"Proxy-Authorization" not in asked[1]
            writer.close()
            server.close()

    run(main)


def test_running_out_of_descriptors_refuses_and_recovers():
    import resource

    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(), tls=False)
            await rig.up()
            front = rig.front(WEB, 80)
            listener = rig.fronts[-1][0]
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            client = socket.socket()
            filler = []
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            try:
                with contextlib.suppress(OSError):
                    while True:
                        filler.append(os.open(os.devnull, os.O_RDONLY))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(("127.0.0.1", front))
                await until(lambda: listener.refused >= 1)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
                for descriptor in filler:
                    os.close(descriptor)
                client.close()
            await asyncio.sleep(0.2)
            reader, writer = await asyncio.open_connection("127.0.0.1", front)
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[0] == 200
            writer.close()

    run(main)
