"""WebSockets where the gate reads HTTP: judged as requests, passed on only after a real handshake."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import time

import pytest
from attrs import evolve
from gate_rig import AI, WEB, HostRule, Rig, answer, ok, run, until

from km_core.plan import GitPlan, NetworkPlan
from km_core.secrets import CredentialRule

KEY = base64.b64encode(b"sixteen bytes ok").decode()
ACCEPT = base64.b64encode(
    hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
).decode()
ASK = ("Connection: Upgrade", "Upgrade: websocket", f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13")
YES = ("Upgrade: websocket", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}")


def get(*fields, host=WEB, start="GET /chat HTTP/1.1"):
    return "\r\n".join([start, f"Host: {host}", *fields, "", ""]).encode()


class Echo:
    """A server that switches, says hello first and sends back what it gets."""

    def __init__(self, *fields, status="101 Switching Protocols", hello=b"hello"):
        self.answer = "\r\n".join([f"HTTP/1.1 {status}", *(fields or YES), "", ""]).encode() + hello
        self.heads = []
        self.received = b""
        self.ended = asyncio.Event()
        self.server = None

    async def serve(self, rig, name, *, tls=False):
        server = await rig.serve(name, ok(), tls=tls)
        server.client = self.client
        server.server.close()
        self.server = await asyncio.start_server(
            self.client, "127.0.0.1", server.port, ssl=rig.pki.context(name) if tls else None
        )
        return self

    async def client(self, reader, writer):
        try:
            self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            writer.write(self.answer)
            while data := await reader.read(65536):
                self.received += data
                writer.write(data)
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.ended.set()
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def stop(self):
        self.server.close()


async def opened(rig, name, *, tls=False):
    if tls:
        return await rig.tls(name)
    return await asyncio.open_connection("127.0.0.1", rig.front(name, 80))


@pytest.mark.parametrize("tls", [False, True])
def test_a_websocket_passes_after_its_handshake_and_is_recorded_with_its_bytes(tls):
    rules = [CredentialRule(WEB, "web-token")] if tls else []

    async def main():
        async with Rig(credentials=rules) as rig:
            rig.kmd.secrets["web-token"] = "the-operators-own"
            server = await Echo().serve(rig, WEB, tls=tls)
            await rig.up()
            reader, writer = await opened(rig, WEB, tls=tls)
            # Bytes that follow at once are messages if the server switches.
            writer.write(get(*ASK, "Authorization: Bearer mine", "Sec-WebSocket-Protocol: chat") + b"early")
            status, fields, _ = await answer(reader)
            assert status == 101
            assert fields["sec-websocket-accept"] == ACCEPT
            assert fields["connection"] == "Upgrade"
            assert await reader.readexactly(10) == b"helloearly"
            large = bytes(range(256)) * 8192
            writer.write(large)
            assert await reader.readexactly(len(large)) == large
            writer.close()
            await asyncio.wait_for(server.ended.wait(), 10)
            await until(lambda: any(event["kind"] == "tunnel_closed" for event in rig.events()))
            [end] = [event for event in rig.events() if event["kind"] == "tunnel_closed"]
            assert (end["layer"], end["name"], end["port"]) == ("http", WEB, 443 if tls else 80)
            assert (end["bytes_up"], end["bytes_down"]) == (len(large) + 5, len(large) + 10)
            [head] = server.heads
            assert head.lower().count(b"upgrade") == 2
            assert b"Sec-WebSocket-Protocol: chat\r\n" in head
            if tls:
                assert b"mine" not in head
                assert b"the-operators-own" in head
            server.stop()

    run(main)


def test_an_echoed_credential_does_not_come_back_and_nothing_waits_for_long():
    secret = "the-operators-own"

    async def main():
        async with Rig(credentials=[CredentialRule(WEB, "web-token")]) as rig:
            rig.kmd.secrets["web-token"] = secret
            server = await Echo(*YES, f"X-Seen: {secret}").serve(rig, WEB, tls=True)
            await rig.up()
            reader, writer = await opened(rig, WEB, tls=True)
            writer.write(get(*ASK, "Sec-WebSocket-Extensions: permessage-deflate"))
            status, fields, _ = await answer(reader)
            assert (status, fields["x-seen"]) == (101, "*" * len(secret))
            assert await reader.readexactly(5) == b"hello"
            # Echoed in two pieces it is overwritten too; what only begins like it comes as it is.
            writer.write(b"A" + secret[:7].encode())
            await asyncio.sleep(0.01)
            writer.write(secret[7:].encode() + b"B" + secret[:4].encode())
            received = await asyncio.wait_for(reader.readexactly(len(secret) + 6), 5)
            assert received[-5:] == b"B" + secret[:4].encode()
            assert secret.encode() not in received
            assert b"xtensions" not in server.heads[0]
            writer.close()
            await asyncio.wait_for(server.ended.wait(), 10)
            server.stop()

    run(main)


FALSE = {
    "another key's answer": ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Accept: AAAA"),
    "no answer to the key": ("Upgrade: websocket", "Connection: Upgrade"),
    "two answers": (*YES, f"Sec-WebSocket-Accept: {ACCEPT}"),
    "no upgrade named": ("Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}"),
    "another protocol": ("Upgrade: h2c", "Connection: Upgrade", f"Sec-WebSocket-Accept: {ACCEPT}"),
    "no connection named": ("Upgrade: websocket", f"Sec-WebSocket-Accept: {ACCEPT}"),
}


@pytest.mark.parametrize("label", FALSE)
def test_a_101_that_does_not_answer_the_handshake_is_502_and_no_byte_follows(label):
    async def main():
        async with Rig() as rig:
            server = await Echo(*FALSE[label]).serve(rig, WEB)
            await rig.up()
            reader, writer = await opened(rig, WEB)
            writer.write(get(*ASK) + get(host="other.test", start="GET /secret HTTP/1.1"))
            assert (await answer(reader))[0] == 502
            await asyncio.wait_for(server.ended.wait(), 10)
            assert server.received == b""
            writer.close()
            server.stop()

    run(main)


@pytest.mark.parametrize("status", ["200 OK", "426 Upgrade Required", "403 Forbidden"])
def test_a_server_that_does_not_switch_gets_no_message_and_what_follows_is_judged(status):
    async def main():
        async with Rig() as rig:
            server = await Echo("Content-Length: 2", status=status, hello=b"no").serve(rig, WEB)
            await rig.up()
            reader, writer = await opened(rig, WEB)
            writer.write(get(*ASK) + get(host="other.test"))
            assert await answer(reader) == (int(status[:3]), {"content-length": "2"}, b"no")
            assert (await answer(reader))[0] == 421
            assert server.received == b""
            writer.close()
            server.stop()

    run(main)


MALFORMED = {
    "POST": get(*ASK, start="POST /chat HTTP/1.1"),
    "HTTP/1.0": get(*ASK, start="GET /chat HTTP/1.0"),
    "a body": get(*ASK, "Content-Length: 3") + b"abc",
    "chunks": get(*ASK, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "no key": get(*ASK[:2], ASK[3]),
    "a short key": get(*ASK[:2], "Sec-WebSocket-Key: eHg=", ASK[3]),
    "two keys": get(*ASK, f"Sec-WebSocket-Key: {KEY}"),
    "no version": get(*ASK[:3]),
    "another version": get(*ASK[:3], "Sec-WebSocket-Version: 8"),
    "no connection option": get(*ASK[1:]),
}


@pytest.mark.parametrize("label", MALFORMED)
def test_what_is_no_handshake_does_not_reach_the_server(label):
    async def main():
        async with Rig() as rig:
            server = await Echo().serve(rig, WEB)
            await rig.up()
            reader, writer = await opened(rig, WEB)
            writer.write(MALFORMED[label])
            status, fields, body = await answer(reader)
            assert status == 400
            assert "builtin:http-malformed" in fields["x-km-denied"]
            assert b"websocket" in body
            assert server.heads == []
            writer.close()
            server.stop()

    run(main)


@pytest.mark.parametrize(
    ("name", "upgrade", "said", "why"),
    [
        (AI, "websocket", 426, b"not metered"),
        (AI, "h2c", 403, b"only upgrades to WebSocket"),
        ("api.github.com", "websocket", 403, b"judged by repository"),
        (WEB, "websocket, h2c", 403, b"only upgrades to WebSocket"),
        (WEB, "spdy/3", 403, b"only upgrades to WebSocket"),
    ],
)
def test_an_upgrade_that_nobody_could_read_along_is_refused_with_the_reason(name, upgrade, said, why):
    async def main():
        async with Rig(git=GitPlan("allowlist", ("a/b",))) as rig:
            server = await rig.serve(name, ok(), tls=name != WEB)
            await rig.up()
            reader, writer = await opened(rig, name, tls=name != WEB)
            writer.write(get(ASK[0], f"Upgrade: {upgrade}", *ASK[2:], host=name))
            status, fields, body = await answer(reader)
            assert status == said
            assert "builtin:upgrade" in fields["x-km-denied"]
            assert why in body
            assert not server.requests
            writer.close()

    run(main)


@pytest.mark.parametrize("still_open", [True, False])
def test_a_new_policy_cuts_a_websocket_exactly_when_its_host_is_closed(still_open):
    async def main():
        rules = (HostRule(WEB, "exact"), HostRule("other.test", "exact"))
        async with Rig(hosts=rules) as rig:
            server = await Echo().serve(rig, WEB)
            await rig.up()
            reader, writer = await opened(rig, WEB)
            writer.write(get(*ASK))
            assert (await answer(reader))[0] == 101
            assert await reader.readexactly(5) == b"hello"
            kept = rules[:1] if still_open else rules[1:]
            rig.kmd.plan = evolve(rig.plan, network=NetworkPlan(hosts=kept), profile_digest="1")
            told = await rig.gate.answer("policy.refresh", {})
            assert told["cut"] == (not still_open)
            if still_open:
                writer.write(b"more")
                assert await reader.readexactly(4) == b"more"
            else:
                with pytest.raises(ConnectionResetError):
                    await asyncio.wait_for(reader.read(), 5)
                await asyncio.wait_for(server.ended.wait(), 5)
                [end] = [event for event in rig.events() if event["kind"] == "tunnel_closed"]
                assert end["error"] == "cut"
            writer.close()
            server.stop()

    run(main)


def test_a_server_that_goes_away_ends_the_clients_side_soon():
    async def main():
        async with Rig() as rig:

            async def switch_and_leave(_head, _body, writer):
                writer.write("\r\n".join(["HTTP/1.1 101 Switching Protocols", *YES, "", "bye"]).encode())
                return "close"

            await rig.serve(WEB, switch_and_leave, tls=False)
            await rig.up()
            reader, writer = await opened(rig, WEB)
            began = time.monotonic()
            writer.write(get(*ASK))
            assert (await answer(reader))[0] == 101
            assert await asyncio.wait_for(reader.read(), 5) == b"bye"
            assert time.monotonic() - began < 5
            writer.close()

    run(main)
