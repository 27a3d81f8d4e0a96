"""The substrate as `km` uses it: a real supervisor in a process of its own, a stand-in for kmd."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import threading
import time

import pytest
from attrs import evolve

from km_core.control import ops
from km_core.control.server import ControlServer
from km_core.control.substrate import Box
from km_core.errors import KmError, ProvisionError
from km_core.types import new_sandbox_id
from km_host.pod_client import pod_is_alive, pods_of
from km_substrate_docker import image
from km_substrate_docker.engine import connect, default_host, find
from km_substrate_docker.hostfiles import Owners
from km_substrate_docker.substrate import DockerSubstrate

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]


class Kmd:
    """Answers what a supervisor asks on a sandbox's socket; records the states it is told."""

    def __init__(self, path):
        self.states, self.events, self.activity = [], [], []
        self._loop = asyncio.new_event_loop()
        self._server = ControlServer(
            path,
            {
                "lease": ops.Op(self._lease, {"holder": ops.text()}),
                "state": ops.Op(
                    self._state,
                    {"state": ops.text(), "reason": lambda _n, v: v, "resources": lambda _n, v: v},
                ),
                "event": ops.Op(self._event, {"kind": ops.text(), "detail": lambda _n, v: v}),
                "activity": ops.Op(self._activity, {"at": lambda _n, v: v}),
            },
            check_token=lambda token: token == "t" * 43,
        )
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._server.start(), self._loop).result(5)

    def close(self):
        async def end():
            await self._server.close(wait_s=0)
            # Transports close their sockets one turn later.
            await asyncio.sleep(0.05)

        asyncio.run_coroutine_threadsafe(end(), self._loop).result(5)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _lease(self, _peer, holder):
        return {"valid_s": 60, "deadline": 0, "state": "running", "policy_version": 1}

    def _state(self, _peer, state, reason, resources):
        self.states.append((state, reason))
        return {}

    def _event(self, _peer, kind, detail):
        self.events.append(kind)
        return {}

    def _activity(self, _peer, at):
        self.activity.append(at)
        return {}


REAL_BASE_TAG = image.base_tag


@pytest.fixture
def substrate():
    return DockerSubstrate()


@pytest.fixture
def make_box(engine, config, plan, fake_gate, substrate):
    made = []

    def make(**changes):
        sandbox_id = new_sandbox_id("sb")
        box = Box(
            id=sandbox_id,
            plan=evolve(plan, **changes),
            config=config,
            state_dir=config.sandbox_dir(sandbox_id),
            runtime_dir=config.sandbox_runtime_dir(sandbox_id),
            audit_dir=config.audit_dir(sandbox_id),
            control_socket=config.sandbox_runtime_dir(sandbox_id) / "kmd.sock",
            token="t" * 43,
        )
        for path in (box.state_dir / "logs", box.runtime_dir, box.audit_dir):
            path.mkdir(mode=0o700, parents=True)
        (box.state_dir / "plan.json").write_text(box.plan.to_json())
        made.append((box, Kmd(box.control_socket)))
        return made[-1]

    yield make
    for box, kmd in made:
        substrate.destroy(box)
        kmd.close()
    assert find(engine, config.home) == []


@pytest.fixture
def box(make_box, substrate):
    box, _ = make_box()
    substrate.prepare(box)
    substrate.start(box)
    return box


def states(engine, box):
    return {c.name.rpartition("-")[2]: c.status for c in find(engine, box.config.home, box.id)}


def run(substrate, box, *argv, stdin=b"", root=False, tty=False, env=None, cwd="/workspace"):
    """Run `exec` in a process of its own with pipes; returns (code, stdout, stderr)."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    child = os.fork()
    if child == 0:
        code = 99
        try:
            for source, target in ((in_read, 0), (out_write, 1), (err_write, 2)):
                os.dup2(source, target)
            for fd in (in_read, in_write, out_read, out_write, err_read, err_write):
                os.close(fd)
            code = substrate.exec(box, argv, env=env or {}, cwd=cwd, root=root, tty=tty)
        except BaseException as error:
            os.write(2, repr(error).encode())
        finally:
            os._exit(code)
    for fd in (in_read, out_write, err_write):
        os.close(fd)
    feeder = threading.Thread(target=_feed, args=(in_write, stdin))
    feeder.start()
    collected = {}
    readers = [
        threading.Thread(target=_drain, args=(fd, name, collected))
        for fd, name in ((out_read, "o"), (err_read, "e"))
    ]
    for reader in readers:
        reader.start()
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    for thread in (feeder, *readers):
        thread.join(10)
    return code, collected["o"], collected["e"]


def _feed(fd, data):
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        pass
    finally:
        os.close(fd)


def _drain(fd, name, into):
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    os.close(fd)
    into[name] = b"".join(chunks)


def test_a_sandbox_runs_commands_and_passes_codes_and_streams_through(box, substrate):
    assert run(substrate, box, "/bin/sh", "-c", "echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")
    assert run(substrate, box, "cat", stdin=b"x" * 3_000_000)[1] == b"x" * 3_000_000
    assert run(substrate, box, "/bin/sh", "-c", "kill -KILL $$")[0] == 137
    assert run(substrate, box, "/bin/true", stdin=b"y" * 1_000_000)[0] == 0


def test_commands_run_as_the_sandbox_or_as_root_with_a_login_like_environment(box, substrate, monkeypatch):
    monkeypatch.setenv("KM_TEST_SECRET", "hunter2")

    _, out, _ = run(substrate, box, "/bin/sh", "-c", "id -un; pwd; echo $HOME $A; env", env={"A": "1"})
    _, as_root, _ = run(substrate, box, "/bin/sh", "-c", "id -un; echo $HOME", root=True)

    assert out.decode().splitlines()[:3] == ["sandbox", "/workspace", "/home/sandbox 1"]
    assert b"hunter2" not in out
    assert as_root.decode().split() == ["root", "/root"]


def test_the_sandbox_may_write_its_workspace_and_home(box, substrate):
    assert run(substrate, box, "/bin/sh", "-c", "echo a >/workspace/a; echo b >~/b; touch /tmp/c")[0] == 0
    assert (box.state_dir / "workspace" / "a").read_text() == "a\n"
    assert run(substrate, box, "/bin/sh", "-c", "touch /usr/x")[0] != 0


def test_a_terminal_is_given_and_its_size_passed_on(box, substrate):
    script = (
        "import os,pty,sys,fcntl,termios,struct\n"
        "pid, fd = pty.fork()\n"
        "if pid == 0:\n    os.execv(sys.argv[1], sys.argv[1:])\n"
        "fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack('4H', 41, 137, 0, 0))\n"
        "data = b''\n"
        "while True:\n"
        "    try: chunk = os.read(fd, 4096)\n"
        "    except OSError: break\n"
        "    if not chunk: break\n"
        "    data += chunk\n"
        "sys.stdout.buffer.write(data); sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n"
    )
    inner = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from km_substrate_docker.execute import execute\n"
        "from km_substrate_docker.engine import connect, find, default_host\n"
        "from pathlib import Path\nimport time; time.sleep(0.3)\n"
        "with connect(default_host()) as c:\n"
        "    main = find(c, Path(sys.argv[1]), sys.argv[2], 'main')[0]\n"
        "    sys.exit(execute(c, default_host(), main.id, ['/bin/sh','-c','sleep 0.5; stty size; tty; exit 5'],"
        " env={}, cwd='/', user='1000:1000', tty=True))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, sys.executable, "-c", inner, str(box.config.home), box.id],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 5, done.stderr
    assert "41 137" in done.stdout
    assert "/dev/pts/" in done.stdout


def test_an_interrupt_reaches_the_command(box, substrate):
    child = os.fork()
    if child == 0:
        code = 99
        try:
            script = "trap 'echo caught >/workspace/caught; exit 3' INT; echo >/workspace/up; while :; do sleep 0.1; done"
            code = substrate.exec(box, ["/bin/sh", "-c", script], env={}, cwd="/", root=False, tty=False)
        finally:
            os._exit(code)
    deadline = time.monotonic() + 20
    while not (box.state_dir / "workspace" / "up").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(child, signal.SIGINT)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3
    assert (box.state_dir / "workspace" / "caught").exists()


def test_status_says_how_it_is_enforced_and_by_whom(box, substrate):
    status = substrate.status(box)

    assert status["running"]
    assert status["enforcement"] == "tproxy"
    assert status["limits"] == "enforced"
    assert status["gate"]["pid"] > 0
    assert status["pod"]["pid"] in pods_of(box.config)


def test_the_real_gate_decides_in_its_container(make_box, substrate, monkeypatch):
    box, _ = make_box()
    monkeypatch.setattr(image, "base_tag", REAL_BASE_TAG)
    substrate.prepare(box)
    substrate.start(box)

    _, page, _ = run(substrate, box, "curl", "-sS", "-m", "10", "http://198.51.100.7/")
    code, _, said = run(substrate, box, "curl", "-sS", "-m", "10", "https://www.example.org/")

    assert b"Blocked by km sandbox policy" in page
    assert (code, b"Could not resolve host" in said) == (6, True)
    assert (box.state_dir / "gate" / "ca.key").stat().st_mode & 0o077 == 0
    assert "198.51.100.7" in (box.audit_dir / "gate.jsonl").read_text()


def test_prepare_and_start_again_change_nothing(box, substrate, engine):
    before = substrate.status(box)["pod"]["pid"], states(engine, box)

    substrate.prepare(box)
    substrate.start(box)

    assert (substrate.status(box)["pod"]["pid"], states(engine, box)) == before


def test_stop_ends_everything_and_resume_brings_the_files_back(box, substrate, engine):
    run(substrate, box, "/bin/sh", "-c", "echo kept >/workspace/kept")

    substrate.stop(box)
    substrate.stop(box)
    assert states(engine, box) == {}
    assert not pod_is_alive(box.runtime_dir)
    assert not substrate.status(box)["running"]
    with pytest.raises(ProvisionError, match="no supervisor"):
        substrate.exec(box, ["true"], env={}, cwd="/", root=False, tty=False)
    substrate.resume(box)

    assert run(substrate, box, "cat", "/workspace/kept")[1] == b"kept\n"


def test_pause_refuses_commands_and_resume_allows_them(box, substrate, engine):
    substrate.pause(box)
    substrate.pause(box)
    assert states(engine, box)["main"] == "paused"
    with pytest.raises(ProvisionError, match="paused"):
        substrate.exec(box, ["true"], env={}, cwd="/", root=False, tty=False)
    substrate.resume(box)
    substrate.resume(box)

    assert run(substrate, box, "/bin/true")[0] == 0


def test_after_destroy_the_operator_owns_every_file(box, substrate):
    script = "mkdir -m 0700 /workspace/d; echo x >/workspace/d/f; ln -s /etc/shadow /workspace/link"
    assert run(substrate, box, "/bin/sh", "-c", script, root=True)[0] == 0

    substrate.destroy(box)

    shutil.rmtree(box.state_dir)
    assert not box.state_dir.exists()


def test_a_paused_sandbox_can_be_destroyed(box, substrate, engine):
    substrate.pause(box)

    substrate.destroy(box)
    substrate.destroy(box)

    assert states(engine, box) == {}
    assert not (box.runtime_dir / "gate").exists()


def test_killing_the_gate_starts_another_on_the_same_listeners(box, substrate):
    first = substrate.status(box)["gate"]["pid"]

    os.kill(first, signal.SIGKILL)
    deadline = time.monotonic() + 20
    while (now := substrate.status(box)["gate"])["pid"] in {first, 0} or now["state"] != "running":
        assert time.monotonic() < deadline
        time.sleep(0.1)

    probe = "import socket; print(socket.create_connection(('192.0.2.1',9),5).recv(99))"
    assert b"gate saw" in run(substrate, box, "python3", "-c", probe)[1]
    assert substrate.status(box)["gate"]["restarts"] == 1


def test_killing_the_supervisor_ends_gate_and_workload(box, substrate, engine):
    pod = substrate.status(box)["pod"]["pid"]

    os.kill(pod, signal.SIGKILL)

    deadline = time.monotonic() + 15
    while "running" in states(engine, box).values():
        assert time.monotonic() < deadline, states(engine, box)
        time.sleep(0.1)
    assert not substrate.status(box)["running"]
    assert [(found.sandbox_id, found.what) for found in substrate.leftovers(box.config)] == [
        (box.id, "containers")
    ]
    for found in substrate.leftovers(box.config):
        substrate.remove_leftover(box.config, found)
    assert substrate.leftovers(box.config) == []


def test_a_leftover_with_a_living_supervisor_is_removed_for_good(box, substrate, engine):
    (found,) = substrate.leftovers(box.config)

    substrate.remove_leftover(box.config, found)

    time.sleep(1)
    assert states(engine, box) == {}
    assert not pod_is_alive(box.runtime_dir)


def test_the_workloads_end_stops_the_sandbox_and_is_reported(make_box, substrate, engine):
    box, kmd = make_box()
    substrate.prepare(box)
    substrate.start(box)

    find(engine, box.config.home, box.id, "main")[0].kill("SIGKILL")

    deadline = time.monotonic() + 20
    while pod_is_alive(box.runtime_dir) or not kmd.states:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert kmd.states[-1] == ("stopped", "the first process ended with code 137")
    assert states(engine, box) == {}


def test_a_command_ends_with_the_sandbox_that_it_ends(box, substrate):
    began = time.monotonic()

    code, _, errors = run(substrate, box, "/bin/sh", "-c", "kill -9 -1; sleep 60", root=True)

    assert time.monotonic() - began < 20
    assert code == 137 or b"the sandbox has ended" in errors


def test_a_command_counts_as_activity(make_box, substrate):
    box, kmd = make_box()
    substrate.prepare(box)
    substrate.start(box)

    run(substrate, box, "/bin/true")

    deadline = time.monotonic() + 20
    while not kmd.activity:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_another_homes_sandboxes_are_not_seen(box, substrate, config, home):
    other = evolve(config, home=home / "other")

    assert substrate.leftovers(other) == []


def test_without_its_base_image_nothing_is_made_and_the_remedy_is_named(
    make_box, substrate, engine, monkeypatch
):
    box, _ = make_box()
    monkeypatch.setattr(image, "base_tag", lambda: "km-base:never-built")

    with pytest.raises(ProvisionError, match="base image is not on this engine") as caught:
        substrate.prepare(box)

    assert "km_substrate_docker.base.build" in caught.value.hint
    assert states(engine, box) == {}
    assert [p.path for p in substrate.problems(box.plan, box.config)] == ["spec.runtime.substrate"]


def test_an_unknown_workload_image_is_a_problem_with_its_name(make_box, substrate, config):
    box, _ = make_box()

    (problem,) = substrate.problems(box.plan, evolve(config, docker_image="no-such:image"))

    assert "no-such:image" in problem.message


def test_any_image_with_a_shell_can_be_the_sandbox(make_box, substrate, engine, tiny_image):
    box, _ = make_box()
    box = evolve(box, config=evolve(box.config, docker_image=tiny_image))
    substrate.prepare(box)
    substrate.start(box)

    code, out, err = run(
        substrate, box, "/bin/sh", "-c", "cat /etc/passwd; echo $SSL_CERT_FILE; cat $SSL_CERT_FILE"
    )

    assert (code, err) == (0, b"")
    assert out.decode().splitlines()[0].startswith("sandbox:x:{}:{}:".format(*Owners.here().sandbox))
    assert "BEGIN CERTIFICATE" in out.decode()


@pytest.fixture(scope="session")
def tiny_image(engine, tmp_path_factory):
    """An image with a shell, sleep and cat and nothing else: no Python, no passwd, no CAs."""
    root = tmp_path_factory.mktemp("tiny")
    programs = ["/bin/sh", "/bin/sleep", "/bin/cat"]
    linked = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=True).stdout
    libraries = {
        word for word in linked.replace("(", " ").split() if word.startswith("/") and not word.endswith(":")
    }
    for name in (*programs, *libraries):
        target = root / name.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(os.path.realpath(name), target)
    (root / "tmp").mkdir(mode=0o1777)
    archive = shutil.make_archive(str(tmp_path_factory.mktemp("tar") / "tiny"), "tar", root)
    engine.api.import_image_from_file(archive, repository="km-test-tiny", tag="1")
    yield "km-test-tiny:1"
    engine.images.remove("km-test-tiny:1", force=True)


def test_limits_the_engine_cannot_set_are_refused_when_asked_for(make_box, substrate, monkeypatch):
    from km_substrate_docker import preflight

    box, _ = make_box()
    monkeypatch.setattr(preflight, "limit_gaps", lambda _info: ("pids",))

    explicit = substrate.problems(box.plan, box.config)
    implied = substrate.problems(evolve(box.plan, limits=evolve(box.plan.limits, explicit=())), box.config)

    assert [(p.path, str(p.severity)) for p in explicit] == [("limits.pids", "error")]
    assert [(p.path, str(p.severity)) for p in implied] == [("limits.pids", "warning")]


def test_an_engine_that_does_not_answer_is_a_problem_and_holds_no_leftovers(
    substrate, plan, config, monkeypatch, home
):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/none.sock")

    (problem,) = substrate.problems(plan, config)

    assert "no Docker engine answers" in problem.message
    assert substrate.leftovers(config) == []


def test_an_engine_elsewhere_is_refused(substrate, plan, config, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")

    (problem,) = substrate.problems(plan, config)

    assert "on this machine" in problem.message


def test_modes_with_a_device_are_refused(substrate, plan, config):
    (problem,) = substrate.problems(evolve(plan, network=evolve(plan.network, enforcement="both")), config)

    assert problem.path == "spec.network.enforcement"


def test_a_supervisor_that_fails_leaves_no_container(make_box, substrate, engine):
    box, _ = make_box()
    (box.state_dir / "plan.json").write_text("{}")

    with pytest.raises(KmError):
        substrate.prepare(box)

    assert states(engine, box) == {}


def test_sandboxes_stay_on_their_engine_whatever_the_environment_says_later(
    box, substrate, monkeypatch, home
):
    host = default_host()
    monkeypatch.setenv("DOCKER_HOST", f"unix://{home}/none.sock")

    assert run(substrate, box, "/bin/true")[0] == 0
    assert len(substrate.leftovers(box.config)) == 1
    substrate.stop(box)

    with connect(host) as client:
        assert find(client, box.config.home, box.id) == []
