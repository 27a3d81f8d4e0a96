"""``km-sidecar gate`` as its supervisor starts it: real process, real namespace, real clients inside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys

import pytest
from gate_rig import AI, KEY, WEB, Rig, ok, run

from km_core.ledger.pricing import price
from km_core.types import Usage
from km_host.inside import frames
from km_net_proxy import bootstrap as boot

TOOLS = [tool for tool in ("unshare", "nsenter", "nft", "ip", "curl") if shutil.which(tool) is None]
namespaces = pytest.mark.namespaces
needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or bool(TOOLS), reason=f"needs root and {', '.join(TOOLS) or 'its tools'}"
)


class Inside:
    """A network namespace with the sandbox's listeners in it."""

    def __init__(self, directory):
        resolv = directory / "resolv.conf"
        resolv.write_text("nameserver 127.0.0.1\n")
        self.holder = subprocess.Popen(
            [
                "unshare",
                "-n",
                "-m",
                "sh",
                "-c",
                f"mount --bind {resolv} /etc/resolv.conf; echo; exec sleep 300",
            ],
            stdout=subprocess.PIPE,
        )
        self.holder.stdout.readline()
        mine, theirs = socket.socketpair()
        with mine:
            maker = subprocess.Popen(
                [*self.enter, sys.executable, "-m", "km_host.listeners", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
            )
            theirs.close()
            received = frames.receive(mine, max_descriptors=2)
        maker.wait()
        assert received is not None
        message, self.descriptors = received
        assert self.descriptors, message
        self.how = message["how"]

    @property
    def enter(self):
        return ["nsenter", "-t", str(self.holder.pid), "-n", "-m"]

    async def run(self, *argv):
        process = await asyncio.create_subprocess_exec(*self.enter, *argv, stdout=-1, stderr=-1)
        out, err = await process.communicate()
        return process.returncode, out.decode(), err.decode()

    def close(self):
        frames.close_all(self.descriptors)
        self.holder.stdout.close()
        self.holder.kill()
        self.holder.wait()


class Process:
    """A gate's process and its channel."""

    def __init__(self, rig, inside, **changes):
        mine, theirs = socket.socketpair()
        self.log = rig.directory / "gate.log"
        with theirs, self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "km_core.sidecars.runner", "gate", "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        message = {
            "sandbox_id": "sb-0123abcd",
            "plan": rig.plan.to_data(),
            "how": inside.how,
            "state_dir": str(rig.directory / "gate"),
            "audit_dir": str(rig.directory / "audit"),
            "kmd_socket": str(rig.kmd.path),
            "token": rig.kmd.token,
            "upstreams": {
                host: {
                    "url": f"{'https' if entry.tls else 'http'}://{entry.host}:{entry.port}",
                    "ca_pem": entry.ca_pem,
                }
                for host, entry in rig.upstreams.items()
            },
            "upstream_dns": [],
            "dns_name_budget": [8192, 8192],
            "upstream_proxy": "",
            "private_hosts": [],
            "prices": {},
            "alias": "box",
            **changes,
        }
        frames.send(mine, message, tuple(inside.descriptors))
        self.channel = mine

    async def open(self):
        self.channel.setblocking(False)
        self.reader, self.writer = await asyncio.open_connection(sock=self.channel)
        return json.loads(await asyncio.wait_for(self.reader.readline(), 60))

    async def ping(self, number):
        self.writer.write(json.dumps({"ping": number}).encode() + b"\n")
        return json.loads(await asyncio.wait_for(self.reader.readline(), 60))

    async def ended(self):
        return await asyncio.to_thread(self.process.wait, 60)

    def close(self):
        with contextlib.suppress(AttributeError):
            self.writer.close()
        self.channel.close()
        self.process.kill()
        self.process.wait()


@namespaces
@needs_root
def test_a_whole_gate_serves_a_namespace_with_no_device():
    async def main():
        answered = {
            "id": "msg_1",
            "type": "message",
            "role": "assistant",
            "model": "claude-sonnet-4-5",
            "content": [{"type": "text", "text": "pong"}],
            "stop_reason": "end_turn",
            "usage": {"input_tokens": 11, "output_tokens": 7},
        }
        async with Rig(limit=10**10) as rig:
            ai = await rig.serve(AI, ok(json.dumps(answered).encode(), b"Content-Type: application/json"))
            await rig.serve(WEB, ok(b"plain web"), tls=False)
            inside = Inside(rig.directory)
            gate = Process(rig, inside)
            try:
                ready = await gate.open()
                assert ready.get("ready") is True, ready
                assert ready["pid"] == gate.process.pid
                ca = rig.directory / "ca.pem"
                ca.write_text(ready["ca_pem"])

                code, out, err = await inside.run("curl", "-sS", "-m", "10", f"http://{WEB}/")
                assert (code, out) == (0, "plain web"), (err, gate.log.read_text())

                body = {
                    "model": "claude-sonnet-4-5",
                    "max_tokens": 64,
                    "messages": [{"role": "user", "content": "x"}],
                }
                code, out, err = await inside.run(
                    "curl", "-sS", "-m", "10", "--cacert", str(ca), "-H", "content-type: application/json",
                    "-H", "x-api-key: placeholder", "-d", json.dumps(body), f"https://{AI}/v1/messages",
                )  # fmt: skip
                assert json.loads(out)["content"][0]["text"] == "pong", (err, gate.log.read_text())
                assert f"x-api-key: {KEY}".encode() in ai.requests[0][0]
                await rig.settled(1)
                cost, _ = next(iter(rig.kmd.settled.values()))
                expected = price(Usage("anthropic", "claude-sonnet-4-5", input_tokens=11, output_tokens=7))
                assert cost == expected.cost_nusd

                code, _, err = await inside.run("curl", "-sS", "-m", "10", "https://denied.test/")
                assert code == 6, err
                code, _, err = await inside.run("curl", "-sS", "-m", "10", "https://192.0.2.1/")
                assert code in (35, 56), err
                code, out, _ = await inside.run(
                    "curl", "-sS", "-m", "10", "-x", "http://127.0.0.1:3128", f"http://{WEB}/"
                )
                assert (code, out) == (0, "plain web")
                code, out, _ = await inside.run("curl", "-sS", "-m", "10", "http://km.internal/budget")
                assert json.loads(out)["ai"]["limit_usd"] == 10.0

                pong = await gate.ping(1)
                assert pong["pong"] == 1
                assert pong["lease"] == "valid"
                status = (await asyncio.to_thread(_status, gate.process.pid)).splitlines()
                assert "NoNewPrivs:\t1" in status

                gate.process.send_signal(signal.SIGKILL)
                await gate.ended()
                gate.close()
                gate = Process(rig, inside)
                again = await gate.open()
                assert again["ca_pem"] == ready["ca_pem"]
                code, out, err = await inside.run("curl", "-sS", "-m", "10", f"http://{WEB}/")
                assert (code, out) == (0, "plain web"), err

                gate.writer.close()
                assert await gate.ended() == 0, gate.log.read_text()
                everything = gate.log.read_text() + (rig.directory / "audit" / "gate.jsonl").read_text()
                assert KEY not in everything
                assert rig.kmd.token not in everything
            finally:
                gate.close()
                inside.close()

    run(main, timeout=300)


def _status(pid):
    with open(f"/proc/{pid}/status") as file:
        return file.read()


def test_listeners_of_the_gates_own_namespace_are_refused():
    async def main():
        async with Rig() as rig:

            class Own:
                how = "tproxy"

            tcp, dns = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)
            with tcp, dns:
                Own.descriptors = [tcp.fileno(), dns.fileno()]
                gate = Process(rig, Own)
                try:
                    answer = await gate.open()
                    assert answer["ready"] is False
                    assert "own network namespace" in answer["error"]["what"]
                    assert await gate.ended() == 1
                finally:
                    gate.close()

    run(main)


def test_a_bootstrap_without_descriptors_or_with_a_broken_plan_is_refused():
    for descriptors, change, why in (
        ([], {}, "0 descriptors"),
        (None, {"plan": {"api": 99}}, "plan API"),
        (None, {"how": "magic"}, "malformed"),
        (None, {"token": ""}, "malformed"),
    ):

        async def main(descriptors=descriptors, change=change, why=why):
            async with Rig() as rig:
                tcp, dns = socket.create_server(("127.0.0.1", 0)), socket.socket(type=socket.SOCK_DGRAM)

                class Given:
                    how = "tproxy"

                Given.descriptors = [tcp.fileno(), dns.fileno()] if descriptors is None else descriptors
                with tcp, dns:
                    gate = Process(rig, Given, **change)
                    try:
                        answer = await gate.open()
                        assert answer["ready"] is False
                        assert why in answer["error"]["what"]
                    finally:
                        gate.close()

        run(main)


def test_a_token_is_not_in_the_bootstraps_repr():
    with socket.socket() as tcp:
        assert tcp.fileno() >= 0
    given = boot.parse(
        {
            "sandbox_id": "sb-0123abcd",
            "plan": _plan(),
            "how": "tproxy",
            "state_dir": "/s",
            "audit_dir": "/a",
            "kmd_socket": "/k",
            "token": "very-secret",
            "dns_name_budget": [8192, 0],
        }
    )
    assert "very-secret" not in repr(given)
    assert given.token == "very-secret"


def _plan():
    from km_core.plan import SandboxPlan

    return SandboxPlan(profile="p", profile_digest="d", prefix="sb", substrate="local").to_data()
