"""Supervision of gates with handles that are no processes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
import time

import pytest

from km_core.errors import AuditError, ControlUnavailableError, ProvisionError
from km_host.gatekeeper import GateKeeper, GateTiming, reset_waiting
from km_host.listeners import Listeners

CA = "-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----\n"
READY = {"ready": True, "ca_pem": CA, "pid": 1}
FAST = GateTiming(ready_s=0.5, ping_s=0.02, silent_s=0.2, failures=3, window_s=10, pause_s=0.01)


class FakeGate:
    """A gate in this process: says what it is told to, then answers pings until killed."""

    reply = {"result": {"x": 1}}  # noqa: RUF012 - replaced whole, never changed

    def __init__(self, says, answers=True):
        self.channel, self.theirs = socket.socketpair()
        self.theirs.setblocking(False)
        self.pid = 4711
        self.ended = asyncio.get_running_loop().create_future()
        self.killed = 0
        self.task = asyncio.ensure_future(self.run(says, answers))

    async def run(self, says, answers):
        loop = asyncio.get_running_loop()
        for message in says:
            data = message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n"
            await loop.sock_sendall(self.theirs, data)
        buffer = b""
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(self.theirs, 65536):
                buffer += data
                while b"\n" in buffer:
                    line, _, buffer = buffer.partition(b"\n")
                    message = json.loads(line)
                    if "ask" in message:
                        reply = {"answer": message["ask"], **self.reply}
                        await loop.sock_sendall(self.theirs, json.dumps(reply).encode() + b"\n")
                    elif answers:
                        pong = {"pong": message["ping"], "lease": "valid", "connections": 3}
                        await loop.sock_sendall(self.theirs, json.dumps(pong).encode() + b"\n")

    def end(self, code=0):
        if not self.ended.done():
            self.ended.set_result(code)
            self.theirs.close()
            self.task.cancel()

    def kill(self):
        self.killed += 1
        self.end(-9)

    async def wait(self):
        return await asyncio.shield(self.ended)


class Scene:
    """A keeper, its listeners, and the gates that it was given in order."""

    def __init__(self, *gates):
        self.scripts = list(gates)
        self.gates = []
        self.lost, self.events, self.lines = [], [], []
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.tcp.setblocking(False)
        self.dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.keeper = GateKeeper(
            self.spawn,
            Listeners("tproxy", self.tcp, self.dns),
            lost=self.on_lost,
            event=lambda kind, detail: self.events.append((kind, detail)),
            log=lambda event, **fields: self.lines.append((event, fields)),
            timing=FAST,
        )

    async def spawn(self):
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        if isinstance(script, Exception):
            raise script
        self.gates.append(FakeGate(*script))
        return self.gates[-1]

    async def on_lost(self, reason):
        self.lost.append(reason)

    async def until(self, condition):
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if condition():
                return
            await asyncio.sleep(0.005)
        raise AssertionError("it did not happen in time")

    async def close(self):
        await self.keeper.stop()
        for gate in self.gates:
            gate.end()
        self.tcp.close()
        self.dns.close()
        await asyncio.sleep(0)


def play(scenario, *gates):
    async def run():
        scene = Scene(*gates)
        try:
            return await scenario(scene)
        finally:
            await scene.close()

    return asyncio.run(run())


@contextlib.asynccontextmanager
async def running(scene):
    await scene.keeper.start()
    task = asyncio.ensure_future(scene.keeper.run())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def test_a_ready_gate_gives_its_ca():
    async def scenario(scene):
        assert await scene.keeper.start() == CA
        assert scene.keeper.status()["state"] == "running"

    play(scenario, ([READY],))


def test_pongs_are_what_status_tells():
    async def scenario(scene):
        async with running(scene):
            await scene.until(lambda: scene.keeper.status()["lease"] == "valid")
            assert scene.keeper.status()["connections"] == 3

    play(scenario, ([READY],))


@pytest.mark.parametrize(
    "says",
    [
        [],
        [b"noise\n"],
        [b"[1]\n"],
        [{"ready": True}],
        [{"ready": True, "ca_pem": 5}],
        [{"ready": True, "ca_pem": "no certificate"}],
        [b"x" * 300_000],
    ],
    ids=["silence", "noise", "list", "no ca", "number", "text", "too long"],
)
def test_a_first_gate_that_makes_no_sense_is_an_error(says):
    async def scenario(scene):
        with pytest.raises(ProvisionError, match="gate does not start"):
            await scene.keeper.start()
        assert scene.gates[0].killed == 1

    play(scenario, (says,))


def test_a_gates_own_error_is_passed_on():
    async def scenario(scene):
        with pytest.raises(AuditError, match="the chain is broken"):
            await scene.keeper.start()

    play(scenario, ([{"ready": False, "error": {"code": "audit", "what": "the chain is broken"}}],))


def test_a_question_gets_the_gates_answer_or_its_error():
    async def scenario(scene):
        await scene.keeper.start()
        task = asyncio.ensure_future(scene.keeper.run())
        assert await scene.keeper.ask("policy.check", policy=None) == {"x": 1}
        scene.gates[0].reply = {"error": AuditError("no room").to_dict()}
        with pytest.raises(AuditError, match="no room"):
            await scene.keeper.ask("policy.refresh")
        task.cancel()

    play(scenario, ([READY],))


def test_a_question_to_a_gate_that_ends_or_is_not_there_fails_at_once():
    async def scenario(scene):
        with pytest.raises(ControlUnavailableError):
            await scene.keeper.ask("policy.refresh")
        await scene.keeper.start()
        asked = asyncio.ensure_future(scene.keeper.ask("policy.refresh"))
        await asyncio.sleep(0)
        await scene.keeper.stop()
        with pytest.raises(ControlUnavailableError):
            await asked

    play(scenario, ([READY],))


def test_an_ended_gate_is_replaced_and_told():
    async def scenario(scene):
        async with running(scene):
            scene.gates[0].end(3)
            await scene.until(lambda: scene.keeper.restarts == 1)
            assert scene.keeper.status()["state"] == "running"
        assert scene.events == [("gate_restarted", {"restarts": 1})]
        assert scene.lost == []

    play(scenario, ([READY],))


def test_a_gate_that_closes_its_channel_is_killed_and_replaced():
    async def scenario(scene):
        async with running(scene):
            scene.gates[0].theirs.shutdown(socket.SHUT_RDWR)
            await scene.until(lambda: scene.keeper.restarts == 1)
        assert scene.gates[0].killed == 1

    play(scenario, ([READY],))


def test_a_silent_gate_is_killed_and_replaced():
    async def scenario(scene):
        async with running(scene):
            await scene.until(lambda: scene.keeper.restarts == 1)
        assert scene.gates[0].killed == 1
        assert "not answered" in str(scene.lines)

    play(scenario, ([READY], False), ([READY],))


def test_a_gate_with_another_ca_counts_as_a_failure():
    other = CA.replace("AA==", "BB==")

    async def scenario(scene):
        async with running(scene):
            scene.gates[0].end()
            await scene.until(lambda: scene.keeper.restarts == 1)
        assert "another CA" in str(scene.lines)
        assert scene.keeper.ca_pem == CA

    play(scenario, ([READY],), ([{**READY, "ca_pem": other}],), ([READY],))


def test_repeated_failure_is_loss_of_enforcement_once():
    async def scenario(scene):
        await scene.keeper.start()
        scene.gates[0].end(1)
        await asyncio.wait_for(scene.keeper.run(), 5)
        assert len(scene.lost) == 1
        assert "failed 3 times" in scene.lost[0]
        assert scene.keeper.status() == {
            "pid": 0,
            "restarts": 0,
            "state": "lost",
            "lease": "",
            "connections": 0,
        }

    play(scenario, ([READY],), ([{"ready": False, "error": {"code": "audit", "what": "no"}}],))


def test_a_spawn_that_fails_counts_too():
    async def scenario(scene):
        await scene.keeper.start()
        scene.gates[0].end(1)
        await asyncio.wait_for(scene.keeper.run(), 5)
        assert len(scene.lost) == 1

    play(scenario, ([READY],), OSError("no more processes"))


def test_waiting_connections_are_reset_when_a_gate_ends():
    async def scenario(scene):
        async with running(scene):
            clients = [socket.create_connection(scene.tcp.getsockname()) for _ in range(3)]
            scene.gates[0].end(1)
            await scene.until(lambda: scene.keeper.restarts == 1)
            for client in clients:
                with client:
                    client.settimeout(2)
                    with pytest.raises(ConnectionResetError):
                        client.recv(1)

    play(scenario, ([READY],))


def test_resetting_counts_and_stops_when_nobody_waits():
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        clients = [socket.create_connection(server.getsockname()) for _ in range(5)]
        assert reset_waiting(server) == 5
        assert reset_waiting(server) == 0
        for client in clients:
            client.close()
    assert struct.calcsize("ii") == 8
