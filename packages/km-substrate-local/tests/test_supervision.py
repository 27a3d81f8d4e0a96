"""Who dies with whom, who comes back, and what a supervisor does when the others are gone."""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import pytest
from attrs import evolve

from km_core.errors import ControlUnavailableError, GuardError, KmError, ProvisionError
from km_core.plan import WorkloadPlan
from km_host.cgroup import ControlGroup
from km_host.pod_client import call_pod, pod_is_alive, pods_of, spawn_pod
from km_host.supervisor import MAX_CLIENTS

pytestmark = pytest.mark.namespaces
IS_ROOT = os.getuid() == 0
CONNECT = "exec 3<>/dev/tcp/192.0.2.1/{port}; cat <&3"


def eventually(condition, timeout: float = 10.0):
    """Return the first true value of *condition*; fails after *timeout* seconds."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def pids(sandbox) -> dict[str, int]:
    """Return pod, gate and the sandbox's own process (bubblewrap)."""
    answer = call_pod(sandbox.box.runtime_dir, "status")
    return {"pod": answer["pod_pid"], "gate": answer["gate"]["pid"], "box": answer["backend"]["pid"]}


def workload(sandbox) -> list[int]:
    """Return every process of the sandbox's pid namespace, as the host numbers them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                text = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"KM_SANDBOX_ID={sandbox.box.id}".encode() in text:
                found.append(int(entry.name))
    return found


def traces(sandbox) -> dict[str, object]:
    """Return what is left of a sandbox on the host."""
    name = sandbox.box.id
    mounts = [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if name in line]
    groups = [str(path) for root in ("/sys/fs/cgroup",) for path, _, _ in os.walk(root) if name in path]
    return {
        "processes": [pid for pid in workload(sandbox) if is_alive(pid)],
        "supervisors": pods_of(sandbox.box.config, name),
        "leftovers": [
            item
            for item in sandbox.substrate.leftovers(sandbox.box.config)
            if item.what != "runtime directory"
        ],
        "mounts": mounts,
        "groups": groups,
    }


NOTHING = {"processes": [], "supervisors": {}, "leftovers": [], "mounts": [], "groups": []}


def in_background(sandbox, script: str) -> subprocess.Popen[bytes]:
    import json
    import sys

    code = (
        "import json, sys; from pathlib import Path; from km_host.exec_client import run_command\n"
        "sys.exit(run_command(Path(sys.argv[1]), json.loads(sys.argv[2]), env={}, cwd='/', terminal=False))"
    )
    path = str(sandbox.box.runtime_dir / "exec.sock")
    return subprocess.Popen(
        [sys.executable, "-c", code, path, json.dumps(["/bin/bash", "-c", script])],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


# Ends.


def test_nothing_is_left_after_destroy(make_sandbox):
    sandbox = make_sandbox().up()
    client = in_background(sandbox, "setsid sleep 5000 & setsid sleep 5000 & echo up; sleep 5000")
    assert client.stdout.readline() == b"up\n"
    namespaces = (
        {
            os.readlink(f"/proc/{pid}/ns/net")
            for pid in workload(sandbox)
            if Path(f"/proc/{pid}/ns/net").exists()
        }
        if IS_ROOT
        else set()
    )
    sandbox.substrate.destroy(sandbox.box)
    with client:
        client.wait(10)
    assert traces(sandbox) == NOTHING
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and namespaces:
            try:
                assert os.readlink(entry / "ns" / "net") not in namespaces
            except OSError:
                continue
    assert list(sandbox.box.runtime_dir.iterdir()) == [sandbox.box.control_socket]
    sandbox.substrate.destroy(sandbox.box)


def test_stop_asks_first(make_sandbox):
    sandbox = make_sandbox().up()
    script = "trap 'sleep 0.2; echo bye > /workspace/bye; exit' TERM; echo up; while :; do sleep 0.05; done"
    with in_background(sandbox, script) as client:
        assert client.stdout.readline() == b"up\n"
        sandbox.substrate.stop(sandbox.box)
    assert (sandbox.box.state_dir / "workspace" / "bye").read_text() == "bye\n"
    assert sandbox.status() == {"running": False, "enforcement": "", "limits": "none", "gate": {}, "pod": {}}
    assert traces(sandbox) == NOTHING


def test_stop_does_not_wait_for_ever(make_sandbox):
    sandbox = make_sandbox().up()
    with in_background(sandbox, "trap '' TERM; echo up; while :; do sleep 0.05; done") as client:
        assert client.stdout.readline() == b"up\n"
        begin = time.monotonic()
        call_pod(sandbox.box.runtime_dir, "stop", {"timeout_s": 0.5})
        assert time.monotonic() - begin < 5
    eventually(lambda: traces(sandbox) == NOTHING)


def test_a_stopped_sandbox_starts_again_with_its_files(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.sh("echo kept > /workspace/file; echo lost > /tmp/file")
    sandbox.substrate.stop(sandbox.box)
    sandbox.substrate.resume(sandbox.box)
    assert sandbox.sh("cat /workspace/file; ls /tmp; id -u; echo more >> /workspace/file") == "kept\n1000\n"


def test_files_the_operator_adds_while_it_is_stopped_become_the_workloads(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.substrate.stop(sandbox.box)
    folder = sandbox.box.state_dir / "workspace" / "added" / "deep"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    (folder / "link").symlink_to("/etc/passwd")
    owner = Path("/etc/passwd").stat().st_uid
    sandbox.up()
    assert sandbox.sh("echo y >> /workspace/added/deep/file; cat /workspace/added/deep/file") == "xy\n"
    assert Path("/etc/passwd").stat().st_uid == owner


def test_sigterm_to_the_supervisor_is_an_orderly_stop(make_sandbox):
    sandbox = make_sandbox().up()
    os.kill(pids(sandbox)["pod"], signal.SIGTERM)
    eventually(lambda: traces(sandbox) == NOTHING)
    eventually(lambda: sandbox.control.states() == ["stopped"])


def test_killed_supervisor_takes_gate_and_sandbox_along(make_sandbox):
    sandbox = make_sandbox().up()
    before = pids(sandbox)
    client = in_background(sandbox, "setsid sleep 5000 & echo up; sleep 5000")
    assert client.stdout.readline() == b"up\n"
    inside = workload(sandbox)
    assert inside
    os.kill(before["pod"], signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, [*before.values(), *inside])), 5)
    with client:
        assert client.wait(10) != 0
    assert not sandbox.status()["running"]
    assert not pod_is_alive(sandbox.box.runtime_dir)


def test_what_a_killed_supervisor_leaves_is_found_and_removed(make_sandbox):
    sandbox = make_sandbox().up()
    before = pids(sandbox)
    os.kill(before["pod"], signal.SIGKILL)
    eventually(lambda: not any(map(is_alive, before.values())), 5)
    substrate, config = sandbox.substrate, sandbox.box.config
    found = substrate.leftovers(config)
    assert {item.sandbox_id for item in found} == {sandbox.box.id}
    assert "runtime directory" in {item.what for item in found}
    if IS_ROOT:
        assert "control group" in {item.what for item in found}
    sandbox.control.stop()
    for item in found:
        substrate.remove_leftover(config, item)
        substrate.remove_leftover(config, item)
    assert substrate.leftovers(config) == ()
    assert traces(sandbox) == NOTHING


def test_a_killed_supervisors_sandbox_can_be_prepared_again(make_sandbox):
    sandbox = make_sandbox().up()
    os.kill(pids(sandbox)["pod"], signal.SIGKILL)
    eventually(lambda: not pod_is_alive(sandbox.box.runtime_dir))
    sandbox.up()
    assert sandbox.sh("echo again") == "again\n"


def test_killed_sandbox_ends_everything_and_is_reported(make_sandbox):
    sandbox = make_sandbox().up()
    os.kill(pids(sandbox)["box"], signal.SIGKILL)
    eventually(lambda: traces(sandbox) == NOTHING)
    eventually(lambda: sandbox.control.states() == ["stopped"])


def test_killed_first_process_ends_everything(make_sandbox):
    sandbox = make_sandbox().up()
    box = pids(sandbox)["box"]
    first = int(Path(f"/proc/{box}/task/{box}/children").read_text().split()[0])
    os.kill(first, signal.SIGKILL)
    eventually(lambda: traces(sandbox) == NOTHING)
    eventually(lambda: sandbox.control.states() == ["stopped"])


def test_leftovers_of_a_running_sandbox_can_be_removed_while_it_runs(make_sandbox):
    sandbox = make_sandbox().up()
    for item in sandbox.substrate.leftovers(sandbox.box.config):
        if item.what != "runtime directory":
            sandbox.substrate.remove_leftover(sandbox.box.config, item)
    eventually(lambda: traces(sandbox) == NOTHING)


def test_another_homes_sandboxes_are_not_leftovers(make_sandbox):
    first, second = make_sandbox().up(), make_sandbox()
    assert {item.sandbox_id for item in second.substrate.leftovers(second.box.config)} == {second.box.id}
    assert first.status()["running"]


# Gates.


def test_killed_gate_is_replaced_within_a_second_on_the_same_listeners(make_sandbox):
    sandbox = make_sandbox().up()
    first = pids(sandbox)["gate"]
    assert f"PID {first}" in sandbox.sh(CONNECT.format(port=443))
    begin = time.monotonic()
    os.kill(first, signal.SIGKILL)
    second = eventually(lambda: (pid := pids(sandbox)["gate"]) and pid != first and pid)
    eventually(lambda: sandbox.status()["gate"]["state"] == "running")
    took = time.monotonic() - begin
    assert f"PID {second}" in sandbox.sh(CONNECT.format(port=443))
    assert took < 3, took  # a second on a quiet machine
    assert sandbox.status()["gate"]["restarts"] == 1
    eventually(lambda: "gate_restarted" in sandbox.control.events())
    assert sandbox.status()["running"]


def test_connections_that_wait_on_a_dead_gate_are_reset(make_sandbox):
    sandbox = make_sandbox().up()
    gate = pids(sandbox)["gate"]
    os.kill(gate, signal.SIGSTOP)
    code = """
import socket
socks = [socket.socket() for _ in range(5)]
for s in socks: s.settimeout(10); s.connect(("192.0.2.1", 443))
print("waiting", flush=True)
for s in socks:
    try: print("got", s.recv(10))
    except ConnectionResetError: print("reset")
"""
    with in_background(sandbox, f"exec /usr/bin/python3 -uc '{code}'") as client:
        assert client.stdout.readline() == b"waiting\n"
        os.kill(gate, signal.SIGKILL)
        assert client.stdout.read() == b"reset\n" * 5


def test_nothing_inside_can_take_the_ports_while_the_gate_is_down(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.fault("mute")
    os.kill(pids(sandbox)["gate"], signal.SIGKILL)
    code = """
import socket
for host, port, kind in (("0.0.0.0", 3128, 1), ("127.0.0.1", 3128, 1), ("192.0.2.1", 3128, 1), ("0.0.0.0", 53, 2)):
    s = socket.socket(socket.AF_INET, kind)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try: s.bind((host, port)); kind == 1 and s.listen(); print("taken", host, port)
    except OSError as e: pass
"""
    assert sandbox.python(code) == ""


def test_a_silent_gate_is_killed_and_replaced(make_sandbox):
    sandbox = make_sandbox().up()
    first = pids(sandbox)["gate"]
    sandbox.sh(CONNECT.format(port=7002))
    eventually(lambda: not is_alive(first), 10)
    eventually(lambda: sandbox.status()["gate"]["state"] == "running")
    assert "has not answered" in sandbox.log()


def test_a_gate_with_another_ca_is_not_accepted(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.fault("other-ca")
    os.kill(pids(sandbox)["gate"], signal.SIGKILL)
    eventually(lambda: "another CA" in sandbox.log())
    sandbox.fault("")
    eventually(lambda: sandbox.status()["gate"]["state"] == "running")


def test_repeated_failure_freezes_the_sandbox(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.sh(
        "echo 0 > /workspace/beat; (while :; do echo x >> /workspace/beat; sleep 0.02; done) > /dev/null 2>&1 &"
    )
    sandbox.fault("exit")
    os.kill(pids(sandbox)["gate"], signal.SIGKILL)
    eventually(lambda: "frozen" in sandbox.control.states(), 20)
    assert "enforcement_lost" in sandbox.control.events()
    status = call_pod(sandbox.box.runtime_dir, "status")
    assert (status["state"], status["running"], status["gate"]["state"]) == ("frozen", False, "lost")
    beat = sandbox.box.state_dir / "workspace" / "beat"
    before = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == before
    if not status["backend"]["freezer"]:
        assert workload(sandbox) == []
    for op in ("start", "thaw", "freeze"):
        with pytest.raises(GuardError):
            call_pod(sandbox.box.runtime_dir, op)
    sandbox.substrate.destroy(sandbox.box)
    assert traces(sandbox) == NOTHING


@pytest.mark.parametrize(
    ("fault", "code", "text"), [("exit", "provision", "does not start"), ("error", "audit", "audit chain")]
)
def test_a_first_gate_that_fails_is_the_answer_of_prepare(make_sandbox, fault, code, text):
    sandbox = make_sandbox()
    sandbox.fault(fault)
    with pytest.raises(KmError, match=text) as caught:
        sandbox.substrate.prepare(sandbox.box)
    assert caught.value.code == code
    eventually(lambda: traces(sandbox) == NOTHING)
    assert not pod_is_alive(sandbox.box.runtime_dir)


# Control plane.


def test_a_silent_control_plane_is_brought_back_but_not_all_the_time(make_sandbox):
    sandbox = make_sandbox().up()
    eventually(lambda: sandbox.control.leases >= 2)
    sandbox.control.stop()
    mark = sandbox.box.config.home / "ensured"
    eventually(mark.exists, 5)
    time.sleep(1)
    assert 1 <= len(mark.read_text().split()) <= 8  # at most one in 0.2 s here, one in 2 s for real
    assert sandbox.sh("echo still") == "still\n"


def test_reports_wait_for_the_control_plane(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.control.stop()
    os.kill(pids(sandbox)["gate"], signal.SIGKILL)
    eventually(lambda: sandbox.status()["gate"].get("restarts") == 1)
    sandbox.control.start()
    eventually(lambda: "gate_restarted" in sandbox.control.events())


def test_time_to_live_is_kept_without_the_control_plane(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.control.deadline = time.time() + 2
    leases = sandbox.control.leases
    eventually(lambda: sandbox.control.leases >= leases + 2)
    sandbox.control.stop()
    eventually(lambda: not pod_is_alive(sandbox.box.runtime_dir), 15)
    assert traces(sandbox) == NOTHING
    assert "time to live" in sandbox.log()


def test_time_to_live_is_the_control_planes_business_while_it_answers(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.control.deadline = time.time() - 5
    time.sleep(2.5)
    assert sandbox.status()["running"]


# One at a time, and in order.


def test_a_second_supervisor_is_refused(make_sandbox):
    sandbox = make_sandbox().up()
    before = pids(sandbox)["pod"]
    sandbox.substrate.prepare(sandbox.box)
    sandbox.substrate.start(sandbox.box)
    assert pids(sandbox)["pod"] == before
    # Past the check too, as when two are started at the same time.
    (sandbox.box.runtime_dir / "pod.lock").rename(sandbox.box.runtime_dir / "kept")
    (sandbox.box.runtime_dir / "pod.lock").touch()
    with (sandbox.box.runtime_dir / "pod.lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert pod_is_alive(sandbox.box.runtime_dir) is False
        with pytest.raises(GuardError, match="has a supervisor already"):
            spawn_pod(sandbox.box, command=sandbox.pod)
    (sandbox.box.runtime_dir / "kept").rename(sandbox.box.runtime_dir / "pod.lock")


def test_commands_before_the_start_are_refused(make_sandbox):
    sandbox = make_sandbox()
    sandbox.substrate.prepare(sandbox.box)
    assert sandbox.status()["running"] is False
    code, _, err = sandbox.run("/bin/true")
    assert (code, "has not been started" in err) == (250, True)


def test_preparing_needs_a_token(make_sandbox):
    sandbox = make_sandbox()
    with pytest.raises(ProvisionError, match="token"):
        sandbox.substrate.prepare(evolve(sandbox.box, token=""))


def test_starting_without_preparing_is_refused(make_sandbox):
    sandbox = make_sandbox()
    with pytest.raises(ControlUnavailableError):
        sandbox.substrate.start(sandbox.box)


def test_stop_pause_and_destroy_of_what_never_was(make_sandbox):
    sandbox = make_sandbox()
    sandbox.substrate.stop(sandbox.box)
    sandbox.substrate.destroy(sandbox.box)
    with pytest.raises(ControlUnavailableError):
        sandbox.substrate.pause(sandbox.box)


def test_damaged_inputs_are_refused_without_showing_them(make_sandbox):
    sandbox = make_sandbox()
    done = subprocess.run(
        [*sandbox.pod, sandbox.box.id],
        input=b'{"token": "hush-hush", "id": 3}\n',
        capture_output=True,
        check=False,
        env={"KM_HOME": str(sandbox.box.config.home), "PATH": "/usr/bin"},
    )
    assert b"inputs are damaged" in done.stdout
    assert b"hush" not in done.stdout + done.stderr


def test_the_profiles_working_directory_is_made(make_sandbox):
    sandbox = make_sandbox(workload=WorkloadPlan(working_dir="/workspace/a/b")).up()
    assert sandbox.run("/bin/pwd", cwd="/workspace/a/b")[1] == "/workspace/a/b\n"


def test_a_shell_that_is_not_there_does_not_stop_the_start(make_sandbox):
    sandbox = make_sandbox(workload=WorkloadPlan(env=(("MINE", "yes"), ("PATH", "/usr/bin")))).up()
    assert sandbox.sh("echo $MINE $PATH") == "yes /usr/bin\n"


def test_the_supervisors_sockets_refuse_other_uids(make_sandbox):
    if not IS_ROOT:
        pytest.skip("needs root to be somebody else")
    sandbox = make_sandbox().up()
    for path in (sandbox.root, sandbox.box.config.runtime_dir, sandbox.box.runtime_dir):
        path.chmod(0o755)
    for name in ("pod.sock", "exec.sock"):
        (sandbox.box.runtime_dir / name).chmod(0o777)
        child = os.fork()
        if child == 0:
            os.setresuid(4242, 4242, 4242)
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(5)
            sock.connect(str(sandbox.box.runtime_dir / name))
            try:
                sock.sendall(b'{"id": 1, "op": "status", "args": {}}\n')
                data = sock.recv(1000)
            except OSError:
                data = b""
            os._exit(0 if b"pod_pid" not in data else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_group_of_the_same_name_does_not_disturb(make_sandbox):
    sandbox = make_sandbox().up()
    group = ControlGroup.existing("km-no-such-group-at-all")
    assert group.directories == ()
    group.remove()
    assert sandbox.status()["running"]


def test_clients_that_say_nothing_cost_neither_gate_nor_sandbox(make_sandbox):
    sandbox = make_sandbox().up()
    path = str(sandbox.box.runtime_dir / "exec.sock")
    clients = []
    try:
        for _ in range(MAX_CLIENTS + 40):
            client = socket.socket(socket.AF_UNIX)
            clients.append(client)
            client.connect(path)
        os.kill(pids(sandbox)["gate"], signal.SIGKILL)
        eventually(lambda: sandbox.status()["gate"].get("restarts") == 1)
        assert sandbox.status()["running"]
    finally:
        for client in clients:
            client.close()
    assert sandbox.sh("echo fine") == "fine\n"
