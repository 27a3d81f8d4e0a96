"""The pod's backend on a real engine: order, hand-over, restarts, and what happens when parts die."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest

from km_core.errors import ProvisionError
from km_core.plan import WorkloadPlan
from km_substrate_docker.containers import Specs
from km_substrate_docker.engine import find
from km_substrate_docker.hostfiles import Owners

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

CONNECT = "import socket; s=socket.create_connection(({!r},{}),{}); print(s.recv(200).decode())"
ASK = """
import socket, sys
s = socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(5); s.connect((sys.argv[1], 53))
s.send(b"\\x12\\x34\\x01\\0\\0\\1\\0\\0\\0\\0\\0\\0\\1a\\0\\0\\1\\0\\1")
print(s.recv(100)[3] & 15)
"""


def running(engine, context):
    return [
        c.name.rpartition("-")[2]
        for c in find(engine, context.config.home, context.id)
        if c.status == "running"
    ]


def until(condition, timeout_s=10.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_connections_reach_the_gate_with_their_destination(live_pod, run_inside):
    pod = live_pod().up()

    assert pod.listeners.how == "tproxy"
    for address in ("192.0.2.7", "2001:db8::7"):
        _, out = run_inside(pod.context, "python3", "-c", CONNECT.format(address, 443, 5))
        assert f'{address}", 443]' in out


def test_dns_is_answered_from_any_address_in_both_families(live_pod, run_inside):
    pod = live_pod().up()

    for address in ("127.0.0.1", "::1", "192.0.2.53", "2001:db8::53"):
        assert run_inside(pod.context, "python3", "-c", ASK, address)[1].strip() == "3"


def test_nothing_is_left_after_close_and_closing_twice_is_fine(live_pod, engine):
    pod = live_pod().up()
    assert sorted(running(engine, pod.context)) == ["gate", "main", "pause"]

    pod.drop_gate()
    pod.run(pod.backend.close())
    pod.run(pod.backend.close())

    assert find(engine, pod.context.config.home) == []
    assert os.listdir(pod.context.runtime_dir / "gate") == []


def test_a_helper_that_fails_leaves_nothing_and_says_why(live_pod, engine, monkeypatch):
    real = Specs.helper
    monkeypatch.setattr(Specs, "helper", lambda *a: real(*a) | {"entrypoint": ["/bin/sh", "-c", "exit 7"]})
    pod = live_pod()

    with pytest.raises(ProvisionError, match=r"helper ended before it connected.*exit code 7"):
        pod.open()

    assert find(engine, pod.context.config.home) == []
    assert not (pod.context.runtime_dir / "handover").exists()


def test_a_helper_without_its_capability_stops_the_create(live_pod, engine, monkeypatch):
    real = Specs.helper
    monkeypatch.setattr(Specs, "helper", lambda *a: real(*a) | {"cap_add": ["NET_BIND_SERVICE"]})
    pod = live_pod()

    with pytest.raises(ProvisionError, match="listeners are not as they must be"):
        pod.open()

    assert find(engine, pod.context.config.home) == []


def test_a_stranger_at_the_handover_socket_is_refused(live_pod, engine, monkeypatch):
    intruder = (
        "import socket,time; s=socket.socket(socket.AF_UNIX); s.connect('/run/km-handover/s'); time.sleep(9)"
    )
    real = Specs.helper
    monkeypatch.setattr(
        Specs,
        "helper",
        lambda *a: real(*a) | {"entrypoint": ["/bin/sh", "-c", f'python3 -c "{intruder}"; true']},
    )
    pod = live_pod()

    with pytest.raises(ProvisionError, match="another process than the listeners' helper"):
        pod.open()

    assert find(engine, pod.context.config.home) == []


def test_a_gate_that_fails_says_its_last_words_and_leaves_no_container(live_pod, engine, monkeypatch):
    real = Specs.gate
    broken = ["/bin/sh", "-c", "echo the gate is ill >&2; exit 3"]
    monkeypatch.setattr(Specs, "gate", lambda *a: real(*a) | {"entrypoint": broken})
    pod = live_pod().open()

    with pytest.raises(ProvisionError, match=r"exit code 3.*the gate is ill"):
        pod.spawn_gate()

    assert running(engine, pod.context) == ["pause"]


def test_while_the_gate_is_down_connections_wait_and_the_next_gate_serves_them(live_pod, run_inside, engine):
    pod = live_pod().up()

    os.kill(pod.gate.pid, signal.SIGKILL)
    assert pod.run(pod.gate.wait()) == 137
    code, out = run_inside(
        pod.context, "timeout", "2", "python3", "-c", CONNECT.format("192.0.2.7", 80, 1.5), check=False
    )
    assert code != 0
    assert "gate saw" not in out
    pod.gate.channel.close()
    pod.spawn_gate()

    assert "gate saw" in run_inside(pod.context, "python3", "-c", CONNECT.format("192.0.2.7", 80, 5))[1]
    assert sorted(running(engine, pod.context)) == ["gate", "main", "pause"]


def test_a_killed_supervisor_takes_gate_and_workload_with_it(live_pod, engine):
    pod = live_pod()
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            pod.up()
            os.write(write, b"up")
            time.sleep(60)
        finally:
            os._exit(1)
    os.close(write)
    assert os.read(read, 2) == b"up"
    os.close(read)
    main = find(engine, pod.context.config.home, pod.context.id, "main")[0]
    main.exec_run(["/bin/sh", "-c", "trap '' TERM HUP; exec sleep 86399"], detach=True)
    assert sorted(running(engine, pod.context)) == ["gate", "main", "pause"]

    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)

    until(lambda: running(engine, pod.context) == [])
    # A new supervisor of the same sandbox clears what was left and comes up.
    pod.up()
    assert sorted(running(engine, pod.context)) == ["gate", "main", "pause"]


def test_restarting_the_workloads_container_keeps_it_behind_the_gate(live_pod, run_inside, engine):
    pod = live_pod().up()

    find(engine, pod.context.config.home, pod.context.id, "main")[0].restart(timeout=0)

    assert "gate saw" in run_inside(pod.context, "python3", "-c", CONNECT.format("192.0.2.7", 80, 5))[1]


def test_without_its_pause_container_the_workload_cannot_start_again(live_pod, engine):
    pod = live_pod().up()
    main = find(engine, pod.context.config.home, pod.context.id, "main")[0]

    find(engine, pod.context.config.home, pod.context.id, "pause")[0].kill()

    until(lambda: running(engine, pod.context) == ["gate"])
    with pytest.raises(Exception, match=r"(?i)non running container|namespace|joining"):
        main.start()


def test_the_end_of_the_workload_is_seen_with_its_code(live_pod, engine):
    pod = live_pod().up()

    find(engine, pod.context.config.home, pod.context.id, "main")[0].kill("SIGKILL")

    assert pod.run(pod.backend.wait()) == 137


def test_freezing_stops_every_process_and_thawing_lets_it_go_on(live_pod, run_inside, engine):
    pod = live_pod().up()
    main = find(engine, pod.context.config.home, pod.context.id, "main")[0]
    main.exec_run(["/bin/sh", "-c", "while :; do echo >>/workspace/beats; sleep 0.05; done"], detach=True)
    beats = pod.context.state_dir / "workspace" / "beats"
    until(beats.exists)

    pod.run(pod.backend.freeze())
    pod.run(pod.backend.freeze())
    before = beats.stat().st_size
    time.sleep(0.4)
    assert beats.stat().st_size == before
    pod.run(pod.backend.thaw())
    pod.run(pod.backend.thaw())

    until(lambda: beats.stat().st_size > before)


def test_killing_lets_processes_end_in_time_and_then_makes_sure(live_pod, engine):
    pod = live_pod().up()
    main = find(engine, pod.context.config.home, pod.context.id, "main")[0]
    polite = "trap 'echo bye >/workspace/bye; exit 0' TERM; while :; do sleep 0.05; done"
    main.exec_run(["/bin/sh", "-c", polite], detach=True)
    main.exec_run(["/bin/sh", "-c", "trap '' TERM; while :; do sleep 1; done"], detach=True)
    time.sleep(0.3)

    start = time.monotonic()
    pod.run(pod.backend.kill(1.0))

    assert (pod.context.state_dir / "workspace" / "bye").read_text() == "bye\n"
    assert 1.0 <= time.monotonic() - start < 6.0
    assert sorted(running(engine, pod.context)) == ["gate", "pause"]


def test_the_next_gate_reaches_a_control_plane_that_has_a_new_socket(live_pod):
    pod = live_pod().up()
    link = pod.context.runtime_dir / "gate" / "kmd.sock"

    pod.control.renew()
    pod.drop_gate()
    pod.spawn_gate()

    assert link.stat().st_ino == pod.control.path.stat().st_ino


def test_the_gates_output_is_kept_in_its_log(live_pod):
    pod = live_pod().up()
    log = pod.context.log_dir / "gate.log"
    for _ in range(40):
        pod.run(asyncio.sleep(0.05))
        if log.exists() and log.stat().st_size:
            break

    assert "fake gate serves" in log.read_text()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_working_directory_below_the_workspace_is_made_by_the_sandboxs_user(live_pod, run_inside):
    pod = live_pod(workload=WorkloadPlan(working_dir="/workspace/deep/er")).up()

    uid, _ = Owners.here().sandbox
    _, out = run_inside(pod.context, "stat", "-c", "%u", "/workspace/deep/er", "/workspace/deep")
    assert [str(uid)] * 2 == out.split()


def test_a_working_directory_that_something_is_in_the_way_of_ends_the_start(live_pod):
    pod = live_pod(workload=WorkloadPlan(working_dir="/workspace/deep/er")).open()
    (pod.context.state_dir / "workspace" / "deep").write_text("a file")

    with pytest.raises(ProvisionError, match="working directory cannot be made"):
        pod.spawn_gate().start()
