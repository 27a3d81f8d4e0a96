"""
What `hostile.py` attacks: a real gate process with a full policy, a namespace, a control plane, servers.

The gate runs as its supervisor starts it (``km-sidecar gate``), with listeners of a network namespace that
has nothing but loopback.  Clients run inside that namespace, servers and control plane outside, each in a
process of its own, so that no figure of the gate holds a part of somebody else's.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import multiprocessing
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import brotli
import uvloop
import zstandard

from km_core.plan import AddressRule, BudgetPlan, GitPlan, HostRule, NetworkPlan, SandboxPlan
from km_host.inside import frames
from km_net_proxy.http.ca import Authority

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

AI, GIT, WEB, OPENED, OPAQUE = (
    "api.anthropic.com", "github.com", "web.test", "tls.test", "echo.test",
)  # fmt: skip
OPAQUE_PORT = 7000
QUIET_WEB, QUIET_OPAQUE = "quiet-web.test", "quiet-echo.test"
"""Served by a process that no attack burdens: what a bystander waits for is the gate."""
MODEL = "claude-sonnet-4-5"
PIECE = bytes(65536)
FORK = multiprocessing.get_context("fork")


def full_plan() -> SandboxPlan:
    """500 suffixes, 200 hosts, repositories and refs, addresses, a dollar ceiling."""
    hosts = [HostRule(f"team{number}.example", "suffix") for number in range(500)]
    hosts += [HostRule(f"service{number}.internal-tools.example", "exact") for number in range(200)]
    hosts += [HostRule(name, "exact") for name in (AI, WEB, OPENED, "api.example.com", GIT, "api.github.com")]
    hosts += [HostRule("amazonaws.com", "suffix"), HostRule(OPAQUE, "exact", (OPAQUE_PORT,))]
    hosts += [HostRule(QUIET_WEB, "exact"), HostRule(QUIET_OPAQUE, "exact", (OPAQUE_PORT,))]
    addresses = (AddressRule("203.0.113.0/24", (443,)),)
    return SandboxPlan(
        profile="hostile",
        profile_digest="0",
        prefix="sb",
        substrate="local",
        network=NetworkPlan(hosts=tuple(hosts), addresses=addresses),
        git=GitPlan("allowlist", ("acme/*", "other/tool"), ("main", "agent/*")),
        budget=BudgetPlan(ai_limit_nusd=10**15),
    )


CREDENTIALS = [{"host": "api.example.com", "secret": "example-token"}]
AWS = {"access_key_ids": ["AKIAIOSFODNN7EXAMPLE"], "services": ["s3", "sts"], "regions": ["eu-west-1"]}


# -- control plane -------------------------------------------------------------------------------------


async def control_plane(path: str) -> None:
    """Grant everything: what the sandbox's socket answers a gate."""
    ai = {"spent_nusd": 0, "reserved_nusd": 0, "limit_nusd": 10**15, "remaining_nusd": 10**15}
    answers = {
        "lease": {"valid_s": 60, "deadline": 0, "state": "running", "policy_version": "", "grants": []},
        "ledger.reserve": {"granted": True, **ai},
        "ledger.settle": ai,
        "ledger.release": ai,
        "budget.get": {"ai": {**ai, "exhausted": False, "models": []}},
        "secret.for": {"anthropic-api-key": "sk-ant-x", "github-token": "ghs_x", "example-token": "x"},
        "secret.stamp": {"stamp": "1"},
    }

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while line := await reader.readline():
                message = json.loads(line)
                result = answers.get(message["op"], {})
                writer.write(json.dumps({"id": message["id"], "ok": True, "result": result}).encode() + b"\n")
        writer.close()

    server = await asyncio.start_unix_server(serve, path)
    await server.serve_forever()


# -- servers -------------------------------------------------------------------------------------------


def bombs(size: int) -> dict[str, bytes]:
    """Zeros in each coding."""
    compress = brotli.Compressor(quality=5, lgwin=22)
    br = b"".join(compress.process(bytes(1 << 20)) for _ in range(size >> 20)) + compress.finish()
    made = zstandard.ZstdCompressor(level=3).compressobj()
    zstd = b"".join(made.compress(bytes(1 << 20)) for _ in range(size >> 20)) + made.flush()
    return {"gzip": gzip.compress(bytes(size), 6), "br": br, "zstd": zstd}


class AnyName(asyncio.DatagramProtocol):
    """A resolver that has an address for every name; nothing connects to it."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, peer: tuple[str, int]) -> None:
        end = data.index(b"\0", 12) + 5
        found = data[end - 4 : end - 2] == b"\0\1"
        answer = b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4" if found else b""
        self.transport.sendto(
            data[:2] + b"\x81\x80\0\1\0" + bytes([found]) + bytes(4) + data[12:end] + answer, peer
        )


async def servers(pki: Path, report: object, bomb_bytes: int) -> None:
    """Serve every behaviour: an opaque echo, HTTP, HTTPS; what a request wants stands in ``x-bench``."""
    authority = Authority.load_or_make(pki, (AI, GIT, OPENED), sandbox_id="standins", life_s=3600)
    coded = bombs(bomb_bytes)

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            first = await reader.read(65536)
            if first.startswith(b"STALL"):
                await asyncio.sleep(3600)
            while first.startswith(b"FLOOD"):
                writer.write(PIECE)
                await writer.drain()
            while first:
                writer.write(first)
                await writer.drain()
                first = await reader.read(65536)
        writer.close()

    async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                found = re.search(rb"(?i)x-bench: (\S+)", head)
                wanted = found[1].decode() if found else ""
                if wanted == "stall":
                    await asyncio.sleep(3600)
                length = re.search(rb"(?i)content-length: (\d+)", head)
                await reader.readexactly(int(length[1]) if length else 0)
                await answer(wanted, writer)
                await writer.drain()
        writer.close()

    async def answer(wanted: str, writer: asyncio.StreamWriter) -> None:
        kind = b"application/json" if wanted.startswith("bomb-") else b"text/event-stream"
        if wanted.startswith("bomb-"):
            coding = wanted.removeprefix("bomb-")
            fields = b"Content-Encoding: %b\r\nContent-Length: %d\r\n" % (coding.encode(), len(coded[coding]))
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n%b\r\n" % (kind, fields) + coded[coding])
        elif wanted == "endless":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: %b\r\n" % kind)
            writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
            event = b'event: content_block_delta\ndata: {"delta":{"text":"%b"}}\n\n' % (b"x" * 200)
            block = event * 64
            while True:
                writer.write(b"%x\r\n%b\r\n" % (len(block), block))
                await writer.drain()
        elif wanted == "heads":
            writer.write(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 20_000)
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1024\r\n\r\n" + b"x" * 1024)

    started = [
        await asyncio.start_server(echo, "127.0.0.1", 0, backlog=4096),
        await asyncio.start_server(http, "127.0.0.1", 0, backlog=4096, limit=1 << 17),
        *[
            await asyncio.start_server(
                http, "127.0.0.1", 0, backlog=4096, limit=1 << 17, ssl=authority.context(name)
            )
            for name in (AI, GIT, OPENED)
        ],
    ]
    loop = asyncio.get_running_loop()
    resolver, _ = await loop.create_datagram_endpoint(AnyName, local_addr=("127.0.0.1", 0))
    report.send(
        [resolver.get_extra_info("sockname")[1]]
        + [server.sockets[0].getsockname()[1] for server in started]
        + [authority.pem]
    )
    await asyncio.sleep(86400)


def apart(work: Callable[..., Awaitable[None]], *arguments: object) -> multiprocessing.Process:
    """Run a coroutine function in a process of its own."""
    process = FORK.Process(target=_run, args=(work, *arguments), daemon=True)
    process.start()
    return process


def _run(work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    uvloop.run(work(*arguments))


# -- namespace and gate --------------------------------------------------------------------------------


class World:
    """Everything around one gate; use as a context manager."""

    def __init__(self, bomb_bytes: int = 256 << 20) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="kh"))
        self._bomb_bytes = bomb_bytes
        self._number = 0
        self._processes: list[multiprocessing.Process] = []

    def __enter__(self) -> Self:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self) -> None:
        self.holder = subprocess.Popen(["unshare", "-n", "sleep", "86400"])
        mine = os.stat("/proc/self/ns/net").st_ino
        while os.stat(f"/proc/{self.holder.pid}/ns/net").st_ino == mine:
            time.sleep(0.01)
        ours, theirs = socket.socketpair()
        with ours:
            command = ["nsenter", "-t", str(self.holder.pid), "-n", sys.executable, "-m", "km_host.listeners"]
            with theirs:
                maker = subprocess.Popen([*command, str(theirs.fileno())], pass_fds=[theirs.fileno()])
            message, self.descriptors = frames.receive(ours, max_descriptors=2) or ({}, [])
        maker.wait()
        if not self.descriptors:
            raise RuntimeError(f"no listeners: {message}")
        (self.directory / "pki").mkdir()
        self._processes.append(apart(control_plane, str(self.directory / "k.sock")))
        near, far = FORK.Pipe()
        self._processes.append(apart(servers, self.directory / "pki", far, self._bomb_bytes))
        dns, *ports, pem = near.recv()
        urls = dict(zip((OPAQUE, WEB, AI, GIT, OPENED), ports, strict=True))
        upstreams = {
            name: {
                "url": f"{'https' if secure else 'http'}://127.0.0.1:{port}",
                "ca_pem": pem if secure else "",
            }
            for (name, port), secure in zip(urls.items(), (False, False, True, True, True), strict=True)
        }
        (self.directory / "quiet").mkdir()
        self._processes.append(apart(servers, self.directory / "quiet", far, 1 << 20))
        for name, port in zip((QUIET_OPAQUE, QUIET_WEB), near.recv()[1:3], strict=True):
            upstreams[name] = {"url": f"http://127.0.0.1:{port}", "ca_pem": ""}
        self._start_gate(message["how"], upstreams, dns)

    def _start_gate(self, how: str, upstreams: dict[str, dict[str, str]], dns: int) -> None:
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-m", "km_core.sidecars.runner", "gate", "--fd", str(theirs.fileno())]
        with theirs, (self.directory / "gate.log").open("wb") as log:
            self.gate = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], stderr=log, stdin=subprocess.DEVNULL
            )
        self.channel = ours
        message = {
            "sandbox_id": "sb-0123abcd",
            "plan": full_plan().to_data(),
            "how": how,
            "state_dir": str(self.directory / "gate"),
            "audit_dir": str(self.directory / "audit"),
            "kmd_socket": str(self.directory / "k.sock"),
            "token": "a-token",
            "upstreams": upstreams,
            "upstream_dns": [f"127.0.0.1:{dns}"],
            "dns_name_budget": [8192, 8192],
            "upstream_proxy": "",
            "private_hosts": [],
            "prices": {},
            "alias": "hostile",
            "credentials": CREDENTIALS,
            "aws": AWS,
        }
        frames.send(ours, message, tuple(self.descriptors))
        ours.settimeout(60)
        self._channel = ours.makefile("rwb")
        ready = json.loads(self._channel.readline() or b"{}")
        if not ready.get("ready"):
            raise RuntimeError(f"the gate did not start: {ready}")
        self.ca = ready["ca_pem"]

    def ping(self) -> float:
        """Seconds until the gate answers its supervisor."""
        self._number += 1
        begun = time.perf_counter()
        self._channel.write(json.dumps({"ping": self._number}).encode() + b"\n")
        self._channel.flush()
        self._channel.readline()
        return time.perf_counter() - begun

    def memory(self) -> dict[str, float]:
        """Resident MiB: now, and the most since `forget_peak`."""
        text = Path(f"/proc/{self.gate.pid}/status").read_text()
        return {
            key: round(int(re.search(name + r":\s+(\d+)", text)[1]) / 1024, 1)
            for key, name in (("rss_mib", "VmRSS"), ("peak_mib", "VmHWM"))
        }

    def forget_peak(self) -> None:
        """Let the kernel count the most resident memory anew."""
        Path(f"/proc/{self.gate.pid}/clear_refs").write_text("5")

    def descriptors_open(self) -> int:
        """How many files the gate has open."""
        return len(os.listdir(f"/proc/{self.gate.pid}/fd"))

    def cpu_seconds(self) -> float:
        """User and system time of the gate so far."""
        tasks = Path(f"/proc/{self.gate.pid}/task").iterdir()
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9

    def audit_bytes(self) -> int:
        """Length of the audit chain."""
        return (self.directory / "audit" / "gate.jsonl").stat().st_size

    def inside(self, work: Callable[..., Awaitable[None]], *arguments: object) -> multiprocessing.Process:
        """Run a coroutine function in the namespace, in a process of its own."""
        process = FORK.Process(target=_enter, args=(self.holder.pid, work, *arguments), daemon=True)
        process.start()
        return process

    def close(self) -> None:
        """End everything that was started."""
        if hasattr(self, "gate"):
            self._channel.close()
            self.channel.close()
            self.gate.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.gate.wait(20)
            self.gate.kill()
            self.gate.wait()
        for process in self._processes:
            process.kill()
            process.join()
        if hasattr(self, "descriptors"):
            frames.close_all(self.descriptors)
        if hasattr(self, "holder"):
            self.holder.kill()
            self.holder.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def _enter(holder: int, work: Callable[..., Awaitable[None]], *arguments: object) -> None:
    descriptor = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY)
    os.setns(descriptor, os.CLONE_NEWNET) if hasattr(os, "setns") else _setns(descriptor)
    os.close(descriptor)
    _run(work, *arguments)


def _setns(descriptor: int) -> None:
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0x40000000) != 0:
        raise OSError(ctypes.get_errno(), "setns")
