"""
A gate under attack from its own sandbox: memory, descriptors, and what other connections feel.

    python bench/hostile.py [--only NAME] … [--quick]

Each attack runs against a fresh-started gate process with a full policy (500 suffixes, 200 hosts,
repository and ref rules, AWS, credentials, a ceiling, the audit chain on).  Beside it a bystander sends
64 bytes through a tunnel of its own, and asks for a page, every few milliseconds.  Per attack: resident
memory before, at its peak and after; the bystander's p50, p99 and worst; descriptors before and after.
Prints one JSON document.  ``--quick`` is for tests.  Wants root, ``unshare``, ``nsenter``, ``nft``, ``ip``.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import json
import os
import random
import socket
import ssl
import struct
import sys
import time
from typing import TYPE_CHECKING

from hostile_world import (
    AI,
    FORK,
    GIT,
    MODEL,
    OPAQUE,
    OPAQUE_PORT,
    OPENED,
    PIECE,
    QUIET_OPAQUE,
    QUIET_WEB,
    WEB,
    World,
    bombs,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]
RESET = struct.pack("ii", 1, 0)


class Attack:
    """
    What an attack knows.

    Args:
        ca: the gate's CA, PEM.
        seconds: how long it goes on.
        scale: how many of everything, 1.0 for the full size.
    """

    def __init__(self, ca: str, seconds: float, scale: float) -> None:
        self.seconds = seconds
        self.scale = scale
        self._ca = ca
        self._addresses: dict[str, str] = {}
        self._context: ssl.SSLContext | None = None
        self.ends = time.monotonic() + seconds

    def many(self, count: int) -> int:
        """Scale a number."""
        return max(int(count * self.scale), 4)

    @property
    def over(self) -> bool:
        """Whether time is up."""
        return time.monotonic() > self.ends

    def address(self, name: str) -> str:
        """Ask the gate's DNS."""
        if name not in self._addresses:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.settimeout(10)
                sock.sendto(question(name), ("127.0.0.1", 53))
                self._addresses[name] = socket.inet_ntoa(sock.recv(4096)[-4:])
        return self._addresses[name]

    async def connect(self, name: str, port: int, *, window: int = 0) -> Streams:
        """Open a connection as any client would; *window* bytes is a small receive buffer."""
        sock = socket.socket()
        if window:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (self.address(name), port))
        return await asyncio.open_connection(sock=sock, limit=4096)

    async def tls(self, name: str) -> Streams:
        """Open TLS that the gate ends."""
        if self._context is None:
            self._context = ssl.create_default_context(cadata=self._ca)
        return await asyncio.open_connection(
            self.address(name), 443, ssl=self._context, server_hostname=name, limit=4096
        )

    async def at_once(self, work: Callable[[int], Awaitable[None]], count: int) -> None:
        """Run *work* so often at once; what the gate ends is no error here."""

        async def one(number: int) -> None:
            with contextlib.suppress(OSError, EOFError, asyncio.IncompleteReadError):
                await work(number)

        await asyncio.gather(*(one(number) for number in range(count)))


def question(name: str, number: int = 7) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack("!6H", number, 0x0100, 1, 0, 0, 0) + labels + b"\0" + struct.pack("!2H", 1, 1)


def call(body: bytes, *fields: str) -> bytes:
    lines = "".join(f"{field}\r\n" for field in fields)
    return (
        f"POST /v1/messages HTTP/1.1\r\nHost: {AI}\r\nContent-Type: application/json\r\n"
        f"Anthropic-Version: 2023-06-01\r\nContent-Length: {len(body)}\r\n{lines}\r\n"
    ).encode() + body


def message(*, stream: bool) -> bytes:
    turn = {"role": "user", "content": "x"}
    return json.dumps({"model": MODEL, "max_tokens": 64, "stream": stream, "messages": [turn]}).encode()


# -- attacks -------------------------------------------------------------------------------------------


async def idle(attack: Attack) -> None:
    """Nothing."""
    await asyncio.sleep(attack.seconds)


async def tunnels(attack: Attack) -> None:
    """200 tunnels, each moving data both ways."""

    async def one(_: int) -> None:
        reader, writer = await attack.connect(OPAQUE, OPAQUE_PORT)
        while not attack.over:
            writer.write(PIECE)
            await reader.readexactly(len(PIECE))
        writer.close()

    await attack.at_once(one, attack.many(200))


async def opened(attack: Attack) -> None:
    """200 connections whose TLS the gate ends, each streaming."""

    async def one(_: int) -> None:
        reader, writer = await attack.tls(AI)
        writer.write(call(message(stream=True), "X-Bench: endless"))
        while not attack.over:
            if not await reader.read(65536):
                raise RuntimeError("the stream ended")
            await asyncio.sleep(0.02)
        writer.transport.abort()

    await attack.at_once(one, attack.many(200))


async def _dripped(attack: Attack, name: str, port: int, data: bytes, count: int) -> None:
    async def one(_: int) -> None:
        reader, writer = await attack.connect(name, port)
        for byte in data:
            writer.write(bytes([byte]))
            await asyncio.sleep(1)
            if attack.over or reader.at_eof():
                break
        writer.transport.abort()

    await attack.at_once(one, count)


async def slow_heads(attack: Attack) -> None:
    """500 request heads at a byte a second."""
    await _dripped(
        attack, WEB, 80, b"GET / HTTP/1.1\r\nHost: web.test\r\n" + b"A: b\r\n" * 50, attack.many(500)
    )


async def slow_hellos(attack: Attack) -> None:
    """500 ClientHellos at a byte a second."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=AI).do_handshake()
    await _dripped(attack, AI, 443, outgoing.read(), attack.many(500))


async def half_connects(attack: Attack) -> None:
    """500 CONNECT requests at a byte a second, and 500 that are never finished."""

    async def one(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", 3128)
        head = f"CONNECT {WEB}:443 HTTP/1.1\r\nHost: {WEB}:443\r\n".encode()
        if number % 2:
            writer.write(head)
        for byte in head:
            if not number % 2:
                writer.write(bytes([byte]))
            await asyncio.sleep(1)
            if attack.over or reader.at_eof():
                break
        writer.transport.abort()

    await attack.at_once(one, attack.many(1000))


async def bombs_up(attack: Attack) -> None:
    """Request bodies that inflate: model calls in four codings, pushes and LFS batches in gzip."""
    size = attack.many(256 << 20)
    coded = bombs(size)
    coded["deflate"] = gzip.compress(bytes(1 << 20))[10:-8] * 1
    push = f"POST /acme/app.git/git-receive-pack HTTP/1.1\r\nHost: {GIT}\r\n"
    batch = f"POST /acme/app.git/info/lfs/objects/batch HTTP/1.1\r\nHost: {GIT}\r\n"
    lines = gzip.compress(b"0032" + b"0" * 46, 9) * 20_000

    async def one(number: int) -> None:
        while not attack.over:
            kind = ("gzip", "br", "zstd", "deflate", "push", "batch")[number % 6]
            if kind in coded:
                body = coded[kind][: 32 << 20]
                reader, writer = await attack.tls(AI)
                writer.write(call(body, f"Content-Encoding: {kind}"))
            else:
                body = lines if kind == "push" else coded["gzip"]
                reader, writer = await attack.tls(GIT)
                head = (push if kind == "push" else batch) + "Content-Encoding: gzip\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            with contextlib.suppress(OSError, EOFError):
                await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

    await attack.at_once(one, attack.many(24))


async def large_calls(attack: Attack) -> None:
    """Model calls of 30 MiB, as texts and as very many parts."""
    text = json.dumps({"role": "user", "content": "x" * (30 << 20)}).encode()
    parts = b'{"role":"user","content":[' + b",".join([b'{"type":"text","text":"x"}'] * 450_000) + b"]}"

    async def one(number: int) -> None:
        while not attack.over:
            reader, writer = await attack.tls(AI)
            turn = parts if number % 2 else text
            body = b'{"model":"%b","max_tokens":64,"messages":[%b]}' % (MODEL.encode(), turn)
            writer.write(call(body))
            with contextlib.suppress(OSError, EOFError):
                await reader.readuntil(b"\r\n\r\n")
            writer.transport.abort()

    await attack.at_once(one, 4)


async def bombs_down(attack: Attack) -> None:
    """Answers that inflate: of model calls, and of an LFS batch."""

    async def one(number: int) -> None:
        while not attack.over:
            kind = ("gzip", "br", "zstd", "batch")[number % 4]
            fields = (f"X-Bench: bomb-{kind}", "Accept-Encoding: gzip, br, zstd")
            if kind == "batch":
                reader, writer = await attack.tls(GIT)
                head = f"POST /acme/app.git/info/lfs/objects/batch HTTP/1.1\r\nHost: {GIT}\r\nX-Bench: endless\r\n"
                writer.write(
                    f"{head}Content-Length: 40\r\n\r\n".encode()
                    + b'{"operation":"download","objects":[   ]} '
                )
            else:
                reader, writer = await attack.tls(AI)
                writer.write(call(message(stream=False), *fields))
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(3):
                    while await reader.read(65536):
                        pass
            writer.transport.abort()

    await attack.at_once(one, attack.many(16))


async def stalled_readers(attack: Attack) -> None:
    """Endless event streams and endless tunnels whose readers have stopped."""

    async def one(number: int) -> None:
        if number % 2:
            _, writer = await attack.tls(AI)
            writer.write(call(message(stream=True), "X-Bench: endless"))
        else:
            _, writer = await attack.connect(OPAQUE, OPAQUE_PORT, window=8192)
            writer.write(b"FLOOD")
        await asyncio.sleep(max(attack.ends - time.monotonic(), 0))
        writer.transport.abort()

    await attack.at_once(one, attack.many(200))


async def stalled_uploads(attack: Attack) -> None:
    """10 GB each to servers that do not read: a tunnel, plain HTTP, opened TLS, a push."""
    size = 10 << 30

    async def one(number: int) -> None:
        if number % 4 == 0:
            _, writer = await attack.connect(OPAQUE, OPAQUE_PORT)
            writer.write(b"STALL")
        else:
            host, path = ((WEB, "/"), (AI, "/v1/models"), (GIT, "/acme/app.git/git-upload-pack"))[
                number % 4 - 1
            ]
            _, writer = await (attack.connect(WEB, 80) if host == WEB else attack.tls(host))
            head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nX-Bench: stall\r\n"
            writer.write(f"{head}Content-Length: {size}\r\n\r\n".encode())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(attack.ends - time.monotonic(), 0.1)):
                for _ in range(size // len(PIECE)):
                    writer.write(PIECE)
                    await writer.drain()
        # A reset, which the gate can see: an end would wait behind the bytes that nobody takes.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        writer.transport.abort()

    await attack.at_once(one, attack.many(100))


async def header_floods(attack: Attack) -> None:
    """Heads as long as they may be, longer, of many fields, byte by byte; and such answers."""
    floods = (
        b"GET / HTTP/1.1\r\nHost: web.test\r\nA: " + b"a" * 65_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: web.test\r\nA: " + b"a" * 200_000,
        b"GET / HTTP/1.1\r\nHost: web.test\r\n" + b"A: b\r\n" * 30_000,
        b"GET / HTTP/1.1\r\nHost: web.test\r\nX-Bench: heads\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: web.test\r\n" + b"A: b\r\n" * 90 + b"\r\n",
    )

    async def one(number: int) -> None:
        while not attack.over:
            reader, writer = await attack.connect(WEB, 80)
            data = floods[number % len(floods)]
            if number % 10 == 0:
                writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for start in range(0, len(data), 7):
                    writer.write(data[start : start + 7])
                    if start % 700 == 0:
                        await asyncio.sleep(0)
            else:
                writer.write(data)
            with contextlib.suppress(OSError, EOFError, TimeoutError):
                async with asyncio.timeout(3):
                    await reader.read(65536)
            writer.transport.abort()

    await attack.at_once(one, attack.many(50))


async def churn(attack: Attack) -> None:
    """5,000 connections opened and dropped, in each state that a connection can be dropped in."""
    loop = asyncio.get_running_loop()
    hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"
    states = (
        (WEB, 80, b""), (WEB, 80, b"GET / HTTP/1.1\r\n"), (AI, 443, hello), (AI, 443, b""), (OPENED, 443, hello),
        (OPAQUE, OPAQUE_PORT, b"x"), (OPAQUE, OPAQUE_PORT, b""), (WEB, 80, b"GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"),
    )  # fmt: skip

    async def one(worker: int) -> None:
        for number in range(attack.many(5000) // 50):
            name, port, data = states[(number + worker) % len(states)]
            sock = socket.socket()
            sock.setblocking(False)
            with sock, contextlib.suppress(OSError):
                await loop.sock_connect(sock, (attack.address(name), port))
                if data:
                    sock.send(data)
                if number % 3:
                    await asyncio.sleep(0.01 * (number % 4))
                if number % 2:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)

    await attack.at_once(one, 50)


async def dns_flood(attack: Attack) -> None:
    """Ever new denied names, ever new names below an allowed suffix, and broken messages."""
    rng = random.Random(1)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        number = 0
        while not attack.over:
            for _ in range(200):
                number += 1
                label = f"{rng.getrandbits(64):x}"
                name = f"{label}.evil.example" if number % 2 else f"{label}.team{number % 500}.example"
                packet = question(name, number & 0xFFFF)
                with contextlib.suppress(OSError):
                    sock.sendto(packet[: 20 + number % 8] if number % 10 == 0 else packet, ("127.0.0.1", 53))
                    sock.recv(4096)
            await asyncio.sleep(0)


ATTACKS: dict[str, tuple[Callable[[Attack], Awaitable[None]], float]] = {
    "idle": (idle, 5), "tunnels": (tunnels, 10), "opened": (opened, 10), "slow_heads": (slow_heads, 30),
    "slow_hellos": (slow_hellos, 30), "half_connects": (half_connects, 30), "bombs_up": (bombs_up, 10),
    "bombs_down": (bombs_down, 10), "large_calls": (large_calls, 10), "stalled_readers": (stalled_readers, 15),
    "stalled_uploads": (stalled_uploads, 15), "header_floods": (header_floods, 10), "churn": (churn, 10),
    "dns_flood": (dns_flood, 10),
}  # fmt: skip


# -- the bystander -------------------------------------------------------------------------------------


async def bystander(attack: Attack, times: object, done: object) -> None:
    """Time a tunnel and a kept HTTP connection that have nothing to do with the attack."""
    tunnel: list[float] = []
    pages: list[float] = []
    reader, writer = await attack.connect(QUIET_OPAQUE, OPAQUE_PORT)
    web_reader, web_writer = await attack.connect(QUIET_WEB, 80)
    while not done.is_set():
        begun = time.perf_counter()
        writer.write(bytes(64))
        await reader.readexactly(64)
        tunnel.append(time.perf_counter() - begun)
        begun = time.perf_counter()
        web_writer.write(f"GET / HTTP/1.1\r\nHost: {QUIET_WEB}\r\n\r\n".encode())
        await web_reader.readuntil(b"\r\n\r\n")
        await web_reader.readexactly(1024)
        pages.append(time.perf_counter() - begun)
        await asyncio.sleep(0.005)
    writer.close()
    web_writer.close()
    times.send((tunnel, pages))


def quantiles(values: list[float]) -> dict[str, float]:
    ordered = sorted(values)
    at = {"p50_ms": 0.5, "p99_ms": 0.99, "worst_ms": 1.0}
    last = len(ordered) - 1
    return {key: round(ordered[int(last * part)] * 1e3, 2) for key, part in at.items()} | {
        "count": len(ordered)
    }


async def _attacked(work: Callable[[Attack], Awaitable[None]], ca: str, seconds: float, scale: float) -> None:
    await work(Attack(ca, seconds, scale))


async def _stood_by(ca: str, times: object, done: object) -> None:
    await bystander(Attack(ca, 0, 1), times, done)


def measure(world: World, name: str, *, seconds: float, scale: float) -> dict[str, object]:
    work, full_s = ATTACKS[name]
    near, far = FORK.Pipe()
    done = FORK.Event()
    world.ping()
    beside = world.inside(_stood_by, world.ca, far, done)
    time.sleep(0.5)
    before = world.memory()
    open_before, audit_before, cpu_before = world.descriptors_open(), world.audit_bytes(), world.cpu_seconds()
    world.forget_peak()
    begun = time.monotonic()
    attacker = world.inside(_attacked, work, world.ca, seconds or full_s, scale)
    pings = [0.0]
    most = 0
    while attacker.is_alive():
        pings.append(world.ping())
        most = max(most, world.descriptors_open())
        attacker.join(0.1)
    took = time.monotonic() - begun
    cpu = world.cpu_seconds() - cpu_before
    done.set()
    tunnel, pages = near.recv() if near.poll(60) else ([1e3], [1e3])
    beside.join()
    # Answers of calls are read on for a minute when their client is gone; freed memory goes back each 10 s.
    settled = time.monotonic() + (75 if scale == 1 else 15)
    while world.descriptors_open() > open_before - 4 and time.monotonic() < settled:
        time.sleep(0.2)
    if scale == 1:
        time.sleep(11)
    after = world.memory()
    return {
        "rss_before_mib": before["rss_mib"],
        "rss_peak_mib": after["peak_mib"],
        "rss_after_mib": after["rss_mib"],
        "bystander_tunnel": quantiles(tunnel),
        "bystander_page": quantiles(pages),
        "slowest_ping_ms": round(max(pings) * 1e3, 1),
        "descriptors": {"before": open_before - 4, "most": most, "after": world.descriptors_open()},
        "audit_kib": (world.audit_bytes() - audit_before) // 1024,
        "cpu_share": round(cpu / took, 2),
        "seconds": round(took, 1),
        "attacker_exit": attacker.exitcode,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", action="append", choices=list(ATTACKS))
    parser.add_argument("--quick", action="store_true", help="a tenth of everything, two seconds each")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("root is needed for a network namespace")
    scale, seconds = (0.1, 2.0) if arguments.quick else (1.0, 0.0)
    found: dict[str, object] = {}
    load = os.getloadavg()[0]
    for name in arguments.only or ATTACKS:
        with World(bomb_bytes=int((1 << 30) * scale) if name == "bombs_down" else 1 << 20) as world:
            found[name] = measure(world, name, seconds=seconds, scale=scale)
        print(name, json.dumps(found[name]), file=sys.stderr)
    document = {
        "bench": "hostile",
        "cpus": os.cpu_count(),
        "load_before": load,
        "scale": scale,
        "attacks": found,
    }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
