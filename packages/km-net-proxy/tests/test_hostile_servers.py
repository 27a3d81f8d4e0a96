"""Servers that lie, flood, answer early or go away: the client gets the truth, and the gate holds little."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket

import pytest
from gate_rig import AI, WEB, Rig, answer, ok, post, run, until

from km_net_proxy.http.stream import HIGH_WATER, Stream
from km_net_proxy.meter.offers import AnthropicMeter

GET = b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"


@contextlib.asynccontextmanager
async def raw_server(rig, name, handler):
    """Serve *name* with a handler that gets the bare streams."""
    server = await asyncio.start_server(handler, "127.0.0.1", 0)
    placeholder = await rig.serve(name, ok(), tls=False)
    port = server.sockets[0].getsockname()[1]
    rig.upstreams[name] = type(rig.upstreams[name])("127.0.0.1", port, tls=False)
    assert placeholder.port != port
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize(
    "said",
    [
        b"<html>HTTP/0.9</html>",
        b"SSH-2.0-x\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
        b"HTTP/1.1 200 OK\r\nA: b\n",
        b"HTTP/2.0 200 OK\r\n",
        b"\x15\x03\x01\0\x02\x02\x0a",
    ],
)
def test_an_answer_that_is_no_http_is_502_at_once_though_the_server_stays(said):
    async def main():
        async with Rig() as rig:

            async def handler(reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(said)
                with contextlib.suppress(ConnectionError):
                    await reader.read()
                writer.close()

            async with raw_server(rig, WEB, handler):
                await rig.up()
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
                writer.write(GET)
                status, _, body = await asyncio.wait_for(answer(reader), 10)
                assert (status, json.loads(body)["error"]) == (502, "upstream_lost")
                writer.close()

    run(main)


@pytest.mark.parametrize(
    "flood",
    [
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" * 1000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 101 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000,
    ],
    ids=["interim answers", "fields", "one endless field", "endless fields"],
)
def test_a_flood_of_heads_ends_in_502(flood):
    async def main():
        async with Rig() as rig:

            async def handler(head, body, writer):
                writer.write(flood)
                await writer.drain()
                await asyncio.sleep(60)

            await rig.serve(WEB, handler, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(GET)
            status = 103
            while status < 200:
                status, _, body = await answer(reader)
            assert (status, json.loads(body)["error"]) == (502, "upstream_lost")
            writer.close()

    run(main)


def test_an_answer_before_the_request_is_read_reaches_the_client_and_ends_both_connections():
    async def main():
        async with Rig() as rig:
            gone = asyncio.Event()

            async def handler(reader, writer):
                await reader.readuntil(b"\r\n\r\n")
                writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
                with contextlib.suppress(ConnectionError):
                    while await reader.read(65536):
                        pass
                gone.set()
                writer.close()

            async with raw_server(rig, WEB, handler):
                await rig.up()
                reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
                writer.write(b"POST / HTTP/1.1\r\nHost: web.test\r\nContent-Length: 1000000\r\n\r\npart")
                status, _, body = await answer(reader)
                assert (status, body) == (413, b"no")
                with contextlib.suppress(ConnectionResetError):
                    assert await asyncio.wait_for(reader.read(), 30) == b""
                await asyncio.wait_for(gone.wait(), 30)
                writer.close()
                assert not rig.gate.context.upstreams._idle

    run(main)


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 204 No Content\r\nContent-Length: 40\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nX",
    ],
    ids=["204", "200", "304"],
)
def test_an_answer_nobody_asked_for_is_never_the_next_ones(sent):
    async def main():
        async with Rig() as rig:
            turn = [0]

            async def handler(head, body, writer):
                turn[0] += 1
                good = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood"
                writer.write(sent if turn[0] == 1 else good)

            server = await rig.serve(WEB, handler, tls=False)
            await rig.up()
            reader, writer = await asyncio.open_connection("127.0.0.1", rig.front(WEB, 80))
            writer.write(GET)
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 200 " in head:
                assert await reader.readexactly(1) == b"a"
            writer.write(GET)
            assert (await answer(reader))[2] == b"good"
            assert server.connections == 2
            writer.close()

    run(main)


def test_a_slow_reader_of_an_opened_host_makes_the_gate_hold_little():
    async def main():
        async with Rig(limit=10**11, meter={"anthropic": AnthropicMeter()}) as rig:
            block = b"data: " + b"x" * 65_528 + b"\n\n"
            written = [0]

            async def handler(head, body, writer):
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
                )
                for _ in range(512):
                    writer.write(b"%x\r\n%b\r\n" % (len(block), block))
                    await writer.drain()
                    written[0] += 1
                writer.write(b"0\r\n\r\n")

            await rig.serve(AI, handler)
            await rig.up()
            front = rig.front(AI, 443)

            def slow():
                sock = socket.socket()
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
                sock.connect(("127.0.0.1", front))
                tls = rig.client_context().wrap_socket(sock, server_hostname=AI)
                tls.sendall(
                    post({"model": "claude-sonnet-4-5", "max_tokens": 100, "stream": True, "messages": []})
                )
                return tls

            tls = await asyncio.to_thread(slow)
            streams: list[Stream] = []
            moved = [-1] * 20

            def stalled():
                streams[:] = [item for item in gc.get_objects() if isinstance(item, Stream) and not item.lost]
                moved.append(written[0])
                return any(item.full for item in streams) and len(set(moved[-20:])) == 1

            await until(stalled)
            held = sum(len(item._data) + item.transport.get_write_buffer_size() for item in streams)
            assert HIGH_WATER <= held <= 3 * 64 * 1024, held

            def drain():
                size = 0
                while data := tls.recv(1 << 16):
                    size += len(data)
                    if data.endswith(b"0\r\n\r\n"):
                        break
                return size

            assert await asyncio.to_thread(drain) > 512 * len(block)
            await asyncio.to_thread(tls.close)
            await rig.settled(1)

    run(main)


def test_aborted_handshakes_leave_nothing_behind():
    async def main():
        import os

        async with Rig(limit=10**10) as rig:
            await rig.serve(AI, ok(b"{}"))
            await rig.up()
            front = rig.front(AI, 443)
            before = len(os.listdir("/proc/self/fd"))
            openings = (b"\x16", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\n\r\n", b"")
            for number in range(200):
                sock = socket.create_connection(("127.0.0.1", front))
                sock.sendall(openings[number % 4])
                if number % 3 == 0:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                sock.close()
                await asyncio.sleep(0)
            await until(lambda: len(rig.gate.context.connections) == 0)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before)
            assert rig.gate.context.connections.failures == 0

    run(main)
