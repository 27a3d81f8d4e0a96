"""The explicit proxy: CONNECT and absolute URLs take the same decisions as the transparent path."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil

import pytest
from gate_rig import AI, KEY, WEB, HostRule, Rig, answer, ok, run, until

CURL = shutil.which("curl")


async def curl(*argv):
    env = {key: value for key, value in os.environ.items() if "proxy" not in key.lower()}
    process = await asyncio.create_subprocess_exec(
        CURL, "-sS", "-m", "60", *argv, stdout=-1, stderr=-1, env=env
    )
    out, err = await process.communicate()
    return process.returncode, out, err


async def raw(port, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    received = b""
    with contextlib.suppress(ConnectionResetError):
        received = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    return received


def test_curl_reaches_allowed_hosts_through_the_proxy_with_and_without_tls():
    async def main():
        async with Rig() as rig:
            await rig.serve(WEB, ok(b"secure"))
            await rig.serve("other.test", ok(b"plain"), tls=False)
            await rig.up()
            (rig.directory / "pki.pem").write_text(rig.pki.pem)
            proxy = f"http://127.0.0.1:{rig.proxy()}"
            code, out, err = await curl(
                "-x", proxy, "--cacert", str(rig.directory / "pki.pem"), f"https://{WEB}/"
            )
            assert (code, out) == (0, b"secure"), err
            code, out, err = await curl("-x", proxy, "http://other.test/a?b=1")
            assert (code, out) == (0, b"plain"), err

    run(main)


def test_curl_sees_an_opened_host_with_the_sandboxs_ca_only():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(AI, ok(b"[]"))
            await rig.up()
            proxy = f"http://127.0.0.1:{rig.proxy()}"
            code, out, err = await curl("-x", proxy, "--cacert", str(rig.ca), f"https://{AI}/v1/models")
            assert (code, out) == (0, b"[]"), err
            assert f"x-api-key: {KEY}".encode() in server.requests[0][0]
            code, _, err = await curl("-x", proxy, f"https://{AI}/v1/models")
            assert code == 60, err

    run(main)


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("denied.test:443", 403),
        ("web.test:22", 403),
        ("169.254.169.254:443", 403),
        ("127.0.0.1:443", 403),
        ("2130706433:443", 403),
        ("0x7f.1:443", 403),
        ("[::1]:443", 403),
        ("127.0.0.1:3128", 403),
        ("[::1]:3128", 403),
        ("km.internal:443", 403),
        ("km.internal:3128", 403),
        ("198.18.0.1:80", 403),
        ("198.18.1.0:443", 403),
        ("[fdc0:6b6d::100]:443", 403),
        ("[::ffff:198.18.1.0]:443", 403),
        ("0.0.0.0:3128", 403),
        ("[::ffff:127.0.0.1]:443", 403),
        ("web.test", 400),
        ("web.test:0443", 400),
        ("web.test:443:80", 400),
        ("user@web.test:443", 400),
        ("web%2etest:443", 400),
        ("[web.test]:443", 400),
        ("web.test..:443", 400),
        ("/", 400),
    ],
)
def test_connect_targets_are_judged_before_anything_is_dialled(target, status):
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            received = await raw(rig.proxy(), f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
            assert received.startswith(b"HTTP/1.1 %d " % status), received[:300]
            if status == 403:
                assert b"Blocked by km sandbox policy" in received
            assert server.connections == 0
            assert any(event.get("verdict") == "deny" for event in rig.events())

    run(main)


@pytest.mark.parametrize(
    "data",
    [
        b"CONNECT web.test:443 HTTP/1.1\r\nHost: other.test:443\r\n\r\n",
        b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\nContent-Length: 4\r\n\r\n",
        b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\nearly",
        b"CONNECT web.test:443\r\nHost: web.test:443\r\n\r\n",
        b"CONNECT web.test:443 HTTP/1.1\nHost: web.test:443\n\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1:3128\r\n\r\n",
        b"GET https://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
        b"GET ftp://web.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
        b"GET http://web.test@other.test/ HTTP/1.1\r\nHost: web.test\r\n\r\n",
        b"GET http://web.test/ HTTP/1.1\r\nHost: other.test\r\n\r\n",
    ],
)
def test_contradictory_proxy_requests_are_malformed(data):
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            received = await raw(rig.proxy(), data)
            assert received.startswith(b"HTTP/1.1 400 "), received[:300]
            assert server.connections == 0

    run(main)


@pytest.mark.parametrize("opening", [b"SSH-2.0-x\r\n", b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"])
def test_opaque_bytes_in_a_connect_to_443_are_cut_off(opening):
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok())
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            writer.write(b"CONNECT web.test:443 HTTP/1.1\r\nHost: web.test:443\r\n\r\n")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
            writer.write(opening)
            with contextlib.suppress(ConnectionResetError):
                assert await asyncio.wait_for(reader.read(), 30) == b""
            writer.close()
            assert server.connections == 0

    run(main)


def test_http_in_a_connect_to_port_80_is_judged_request_by_request():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(b"x"), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            writer.write(b"CONNECT web.test:80 HTTP/1.1\r\nHost: web.test:80\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n")
            assert (await answer(reader))[0] == 200
            writer.write(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n")
            assert (await answer(reader))[0] == 421
            writer.close()
            assert len(server.requests) == 1

    run(main)


def test_a_kept_proxy_connection_serves_several_hosts_each_on_its_own_connection():
    async def main():
        async with Rig() as rig:
            web = await rig.serve(WEB, ok(b"web"), tls=False)
            other = await rig.serve("other.test", ok(b"other"), tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            for name, body, _ in [(WEB, b"web", 0), ("other.test", b"other", 0)] * 3:
                writer.write(f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                assert (await answer(reader))[2] == body
            writer.write(b"GET http://denied.test/ HTTP/1.1\r\nHost: denied.test\r\n\r\n")
            assert (await answer(reader))[0] == 403
            writer.write(b"GET http://km.internal/ HTTP/1.1\r\nHost: km.internal\r\n\r\n")
            assert "/budget" in json.loads((await answer(reader))[2])["services"]
            writer.close()
            assert (web.connections, other.connections) == (1, 1)

    run(main)


def test_an_upload_streams_through_with_expect_continue_and_chunks():
    async def main():
        async with Rig() as rig:
            server = await rig.serve(WEB, ok(b"stored"), tls=False)
            await rig.up()
            blob = rig.directory / "blob"
            blob.write_bytes(os.urandom(3 << 20))
            proxy = f"http://127.0.0.1:{rig.proxy()}"
            for extra in (("-H", "Expect: 100-continue"), ("-H", "Transfer-Encoding: chunked")):
                code, out, err = await curl("-x", proxy, *extra, "-T", str(blob), f"http://{WEB}/up")
                assert (code, out) == (0, b"stored"), err
            assert [len(body) for _, body in server.requests] == [3 << 20, 3 << 20]

    run(main)


def test_head_and_bodiless_statuses_keep_the_connection_in_step():
    async def main():
        async def handler(head, body, writer):
            if head.startswith(b"HEAD"):
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n")
            elif b"/304" in head:
                writer.write(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n")
            elif b"/204" in head:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            elif b"/103" in head:
                writer.write(b"HTTP/1.1 103 Early Hints\r\nLink: </s>\r\n\r\n")
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n1")
            else:
                writer.write(
                    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 9\r\n\r\n"
                )

        async with Rig() as rig:
            server = await rig.serve(WEB, handler, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))

            def ask(method, path):
                writer.write(f"{method} {path} HTTP/1.1\r\nHost: {WEB}\r\n\r\n".encode())

            ask("HEAD", "/")
            head = await reader.readuntil(b"\r\n\r\n")
            assert b"Content-Length: 500" in head
            ask("GET", "/304")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 304")
            ask("GET", "/204")
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 204")
            ask("GET", "/103")
            assert (await answer(reader))[0] == 103
            assert (await answer(reader))[::2] == (200, b"1")
            ask("GET", "/chunked")
            head = await reader.readuntil(b"\r\n\r\n")
            rest = await reader.readuntil(b"0\r\nX-Sum: 9\r\n\r\n")
            assert b"2\r\nhi\r\n" in rest
            writer.close()
            assert server.connections == 1

    run(main)


def test_a_slow_reader_does_not_make_the_gate_hold_the_body():
    async def main():
        import resource
        import socket

        size = 64 << 20

        async def handler(head, body, writer):
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
            block = bytes(1 << 20)
            for _ in range(size >> 20):
                writer.write(block)
                await writer.drain()

        async with Rig() as rig:
            await rig.serve(WEB, handler, tls=False)
            await rig.up()
            front = rig.front(WEB, 80)
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            sock = socket.create_connection(("127.0.0.1", front))
            sock.sendall(b"GET / HTTP/1.1\r\nHost: web.test\r\nConnection: close\r\n\r\n")
            await asyncio.sleep(0.7)
            held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert held < 24 * 1024, held
            sock.setblocking(False)
            got = 0
            while data := await asyncio.get_running_loop().sock_recv(sock, 1 << 20):
                got += len(data)
            sock.close()
            assert got > size

    run(main)


def test_a_relative_host_rule_on_another_port_needs_that_port():
    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact", (8080,))]) as rig:
            await rig.serve(WEB, ok(b"8080"), tls=False)
            await rig.up()
            proxy = f"http://127.0.0.1:{rig.proxy()}"
            code, out, _ = await curl("-x", proxy, f"http://{WEB}:8080/")
            assert (code, out) == (0, b"8080")
            code, out, _ = await curl("-x", proxy, "-w", "%{http_code}", f"http://{WEB}/")
            assert out.endswith(b"403")

    run(main)


def test_http_connections_say_how_much_they_moved_for_each_host():
    async def main():
        async with Rig(
            hosts=[HostRule(WEB, "exact"), HostRule("other.test", "exact"), HostRule(AI, "exact")]
        ) as rig:
            await rig.serve(WEB, ok(b"x" * 1000), tls=False)
            await rig.serve("other.test", ok(b"y" * 2000), tls=False)
            await rig.serve(AI, ok(b"{}"))
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            for name in (WEB, WEB, "denied.test", "other.test"):
                writer.write(f"GET http://{name}/ HTTP/1.1\r\nHost: {name}\r\n\r\n".encode())
                await answer(reader)
            writer.close()
            reader, writer = await rig.tls(AI)
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: " + AI.encode() + b"\r\n\r\n")
            await answer(reader)
            writer.close()

            def closed():
                return [event for event in rig.events() if event["kind"] == "http_closed"]

            await until(lambda: len(closed()) == 3)
            found = {event["name"]: event for event in closed()}
            assert [found[name]["requests"] for name in (WEB, "other.test", AI)] == [2, 1, 1]
            assert [found[name]["port"] for name in (WEB, "other.test", AI)] == [80, 80, 443]
            head = len(f"GET http://{WEB}/ HTTP/1.1\r\nHost: {WEB}\r\n\r\n")
            assert found[WEB]["bytes_up"] >= 2 * head
            assert 2000 < found[WEB]["bytes_down"] < 4000
            assert 2000 < found["other.test"]["bytes_down"] < 3000
            assert found[WEB]["connection"] == found["other.test"]["connection"] != found[AI]["connection"]
            assert sum(event["bytes_up"] for event in closed()) < 1000

    run(main)


def test_a_response_that_is_cut_is_counted_as_far_as_it_came():
    async def endless(_head, _body, writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"400\r\n" + b"x" * 1024 + b"\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        return "close"

    async def main():
        async with Rig(hosts=[HostRule(WEB, "exact")]) as rig:
            await rig.serve(WEB, endless, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.proxy())
            writer.write(f"GET http://{WEB}/ HTTP/1.1\r\nHost: {WEB}\r\n\r\n".encode())
            await reader.readuntil(b"xxx")
            rig.gate.context.connections.cut_all()
            await until(lambda: not len(rig.gate.context.connections))
            [event] = [event for event in rig.events() if event["kind"] == "http_closed"]
            assert event["error"] == "cut"
            assert event["bytes_down"] > 1000
            writer.close()

    run(main)
