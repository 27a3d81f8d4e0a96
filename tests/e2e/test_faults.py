"""
Any part may be killed at any moment: egress stops or goes on as promised, never opens, and comes back.

The load during each fault is a loop inside the sandbox that uses the allowed host and tries the canary.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from standins.world import ORIGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from standins.world import Sandbox, World

pytestmark = pytest.mark.timeout(240)

LOAD = """
import socket, ssl, sys, time, urllib.request
token, port, addresses, host = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(","), sys.argv[4]
context = ssl.create_default_context()
context.load_verify_locations("origin-ca.pem")
while True:
    try:
        urllib.request.urlopen(f"https://{host}/{token}-allowed", timeout=3, context=context).read()
        print("ok", flush=True)
    except OSError:
        print("no", flush=True)
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            try:
                with socket.socket(family, kind) as sock:
                    sock.settimeout(0.3)
                    sock.connect((address, port))
                    sock.send(token.encode() + b"-escaped")
            except OSError:
                pass
    time.sleep(0.02)
"""


@pytest.fixture
def loaded(fresh: Callable[..., Sandbox], world: World) -> Iterator[tuple[Sandbox, str]]:
    """A sandbox under load and the load's token."""
    box = fresh()
    token = f"load{secrets.token_hex(6)}"
    box.put("origin-ca.pem", world.authority.ca_pem.decode())
    box.put("load.py", LOAD)
    canary = world.canary
    load = box.start("python3", "load.py", token, str(canary.tcp_ports[0]), ",".join(world.addresses), ORIGIN)
    assert load.stdout is not None
    assert load.stdout.readline().strip() == "ok", "the load does not reach the allowed host"
    yield box, token
    load.kill()
    load.communicate(timeout=10)
    assert not canary.saw(f"{token}-escaped")


def pids(status: dict[str, Any]) -> dict[str, int]:
    runtime = status["runtime"]
    return {"gate": int(runtime["gate"]["pid"]), "pod": int(runtime["pod"]["pid"])}


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def kill(*victims: int) -> None:
    for pid in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 5
    while not all(map(gone, victims)):
        assert time.monotonic() < deadline, "a killed process does not go away"
        time.sleep(0.01)


def reaches(box: Sandbox, world: World) -> bool:
    """Whether the allowed host is reached from a new command inside, with arrival at the origin."""
    path = f"/{secrets.token_hex(6)}"
    box.put_quietly("origin-ca.pem", world.authority.ca_pem.decode())
    box.run("curl", "-sS", "-m", "5", "--cacert", "origin-ca.pem", f"https://{ORIGIN}{path}")
    return path in [arrival.path for arrival in world.origin.arrivals]


def recovers(box: Sandbox, world: World, within_s: float = 30) -> None:
    deadline = time.monotonic() + within_s
    while not reaches(box, world):
        assert time.monotonic() < deadline, ("no recovery", box.world.km("status", box.id))
        time.sleep(0.3)


def test_a_killed_gate_is_replaced_on_the_same_listeners(loaded: tuple[Sandbox, str], world: World) -> None:
    box, _ = loaded
    before = pids(box.status())
    kill(before["gate"])
    recovers(box, world, within_s=10)
    status = box.wait("a new gate", lambda s: s["runtime"]["gate"].get("pid"))
    after = pids(status)
    assert after["pod"] == before["pod"]
    assert after["gate"] != before["gate"]
    assert status["runtime"]["gate"]["restarts"] >= 1
    assert world.km("audit", "verify", box.id, "--json").json()["ok"] is True


def test_a_killed_supervisor_takes_gate_and_workload_with_it_and_the_sandbox_comes_back(
    loaded: tuple[Sandbox, str], world: World
) -> None:
    box, _token = loaded
    before = pids(box.status())
    kill(before["pod"])
    deadline = time.monotonic() + 5
    while not gone(before["gate"]):
        assert time.monotonic() < deadline, "the gate outlives its supervisor"
        time.sleep(0.02)
    status = box.wait("recovery", lambda s: s["state"] == "running" and "recovered" in (s["reason"] or ""))
    box.wait("a new gate", lambda s: s["runtime"].get("gate", {}).get("pid"))
    assert pids(box.status())["pod"] != before["pod"]
    assert status["restarts"] == 1
    recovers(box, world)


def test_a_killed_control_plane_is_started_again_by_a_supervisor(
    loaded: tuple[Sandbox, str], world: World
) -> None:
    box, _ = loaded
    before = world.pid("kmd")
    kill(before)
    assert reaches(box, world), "the lease is valid for a minute: allowed traffic goes on"
    deadline = time.monotonic() + 30
    while True:
        daemon = world.km("daemon", "status", "--json").stdout
        if '"running": true' in daemon:
            break
        assert time.monotonic() < deadline, daemon
        time.sleep(0.3)
    assert world.pid("kmd") != before
    box.wait("a valid lease", lambda s: s["runtime"]["gate"].get("lease") == "valid")


@pytest.mark.parametrize(
    "victims", [("gate", "kmd"), ("pod", "kmd"), ("gate", "pod"), ("gate", "pod", "kmd")], ids="+".join
)
def test_parts_killed_together_come_back(
    loaded: tuple[Sandbox, str], world: World, victims: tuple[str, ...]
) -> None:
    box, _ = loaded
    alive = pids(box.status()) | {"kmd": world.pid("kmd")}
    kill(*(alive[name] for name in victims))
    box.wait("running again", lambda s: s["state"] == "running" and s["runtime"].get("running"), timeout_s=40)
    recovers(box, world)
    assert world.km("audit", "verify", box.id, "--json").json()["ok"] is True


def test_a_gate_that_dies_again_and_again_freezes_the_sandbox(
    fresh: Callable[..., Sandbox], world: World
) -> None:
    box = fresh()
    deadline = time.monotonic() + 60
    while True:
        status = box.status()
        if status["state"] == "frozen":
            break
        assert time.monotonic() < deadline, status
        if pid := (status["runtime"].get("gate") or {}).get("pid"):
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.2)
    world.km("exec", box.id, "--", "true").assert_failed(4)
    world.km("resume", box.id).assert_ok()
    recovers(box, world)


def test_the_time_to_live_holds_while_the_control_plane_is_dead(
    fresh: Callable[..., Sandbox], world: World
) -> None:
    """kmd is stopped (not killed, so nobody starts another): the gate cuts everything at the deadline."""
    lives_s = 12
    box = fresh("--ttl", f"{lives_s}s", "--idle", f"{lives_s - 1}s")
    deadline = time.time() + lives_s
    load = LoadInside(box, world)
    daemon = world.pid("kmd")
    os.kill(daemon, signal.SIGSTOP)
    try:
        stopped = time.time()
        assert stopped < deadline - 2, "this machine is too slow for the test"
        time.sleep(deadline + 2 - stopped)
        assert load.arrived_after(stopped, world), (
            "the load ended with the control plane, not at the deadline"
        )
        assert load.arrived_after(deadline + 0.5, world) == []
    finally:
        os.kill(daemon, signal.SIGCONT)
    end = time.monotonic() + 30
    while world.km("status", box.id).code == 0:
        assert time.monotonic() < end, "the sandbox was not destroyed after its deadline"
        time.sleep(0.3)


@pytest.mark.slow
def test_without_a_lease_new_connections_are_refused_within_a_minute(
    fresh: Callable[..., Sandbox], world: World
) -> None:
    box = fresh()
    load = LoadInside(box, world)
    daemon = world.pid("kmd")
    os.kill(daemon, signal.SIGSTOP)
    try:
        time.sleep(75)  # the lease is valid for 60 s from its last renewal, up to 10 s ago
        assert load.arrived_after(time.time() - 5, world) == []
    finally:
        os.kill(daemon, signal.SIGCONT)
    recovers(box, world, within_s=30)


class LoadInside:
    """A loop inside that asks for a fresh path of the allowed host every 0.2 s, without using km."""

    def __init__(self, box: Sandbox, world: World) -> None:
        self.mark = secrets.token_hex(6)
        box.put("origin-ca.pem", world.authority.ca_pem.decode())
        loop = (
            f"i=0; while :; do i=$((i+1)); curl -s -m 2 --cacert origin-ca.pem "
            f"https://{ORIGIN}/{self.mark}/$i >/dev/null; sleep 0.2; done"
        )
        box.run("sh", "-c", f"setsid sh -c '{loop}' >/dev/null 2>&1 </dev/null &").assert_ok()
        deadline = time.monotonic() + 5
        while not self.arrived_after(0, world):
            assert time.monotonic() < deadline, "the loop does not reach the allowed host"
            time.sleep(0.1)

    def arrived_after(self, at: float, world: World) -> list[str]:
        return [a.path for a in world.origin.arrivals if self.mark in a.path and a.at >= at]
