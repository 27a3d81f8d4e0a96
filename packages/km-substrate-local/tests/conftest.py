from __future__ import annotations

import asyncio
import os
import shutil
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from attrs import evolve

from km_core.config import Config
from km_core.control.ops import Op, mapping, number, text
from km_core.control.server import ControlServer
from km_core.control.substrate import Box
from km_core.plan import SandboxPlan
from km_core.types import new_sandbox_id
from km_host import caps
from km_substrate_local.substrate import LocalSubstrate

HERE = Path(__file__).parent
POD = (sys.executable, str(HERE / "pod_main.py"), "pod")


def pytest_collection_modifyitems(config, items):
    """Leave tests of an ordinary user's host to that user's run of this suite (test_ordinary_user.py)."""
    if os.getuid() != 0:
        return
    theirs = [item for item in items if item.get_closest_marker("ordinary_user")]
    config.hook.pytest_deselected(items=theirs)
    items[:] = [item for item in items if item not in theirs]


class FakeControl:
    """A control plane's sandbox socket, in a thread: counts leases, keeps reports."""

    def __init__(self, path: Path, token: str) -> None:
        self.path, self.token = path, token
        self.deadline = 0.0
        self.reports: list[tuple[str, dict[str, object]]] = []
        self.leases = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self.start()

    def start(self) -> None:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        assert started.wait(10)

    def stop(self) -> None:
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)
            self._thread.join()
            self._loop = None

    def states(self) -> list[str]:
        return [args["state"] for op, args in self.reports if op == "state"]

    def events(self) -> list[str]:
        return [args["kind"] for op, args in self.reports if op == "event"]

    def _record(self, op):
        def run(_peer, **args):
            self.reports.append((op, args))
            return {}

        return run

    def _lease(self, _peer, holder):
        assert holder == "pod"
        self.leases += 1
        return {"valid_s": 60, "deadline": self.deadline, "state": "running", "policy_version": ""}

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        word = text(longest=512, empty=True)
        ops = {
            "lease": Op(self._lease, {"holder": word}),
            "event": Op(self._record("event"), {"kind": word, "detail": mapping}),
            "activity": Op(self._record("activity"), {"at": number(0, 1e12)}),
            "state": Op(self._record("state"), {"state": word, "reason": word, "resources": mapping}),
        }
        server = ControlServer(self.path, ops, check_token=lambda token: token == self.token)
        await server.start()
        started.set()
        await self._stopping.wait()
        await server.close()


class Sandbox:
    """One local sandbox with the fake gate, and what its commands print."""

    pod = POD

    def __init__(self, root: Path, *, plan: SandboxPlan | None = None, config: Config | None = None) -> None:
        self.root = root
        config = config or Config(home=root / "h", runtime_dir=root / "r")
        plan = plan or SandboxPlan(profile="test", profile_digest="", prefix="sb", substrate="local")
        sandbox_id = new_sandbox_id()
        runtime = config.sandbox_runtime_dir(sandbox_id)
        self.box = Box(
            id=sandbox_id,
            plan=plan,
            config=config,
            state_dir=config.sandbox_dir(sandbox_id),
            runtime_dir=runtime,
            audit_dir=config.audit_dir(sandbox_id),
            control_socket=runtime / "kmd.sock",
            token="s3cret-token-of-the-sandbox",
        )
        for name in ("workspace", "home", "gate", "logs"):
            (self.box.state_dir / name).mkdir(mode=0o700, parents=True)
        config.home.chmod(0o700)
        runtime.mkdir(mode=0o700, parents=True)
        (self.box.state_dir / "plan.json").write_text(plan.to_json())
        self.substrate = LocalSubstrate(pod_command=POD)
        self.control = FakeControl(self.box.control_socket, self.box.token)

    def up(self) -> Sandbox:
        self.substrate.prepare(self.box)
        self.substrate.start(self.box)
        return self

    def run(
        self, *argv: str, stdin: bytes = b"", env=None, cwd: str = "/", tty: bool = False, timeout: float = 30
    ):
        """Run a command; returns (code, stdout, stderr)."""
        request = [str(self.box.runtime_dir / "exec.sock"), list(argv), env or {}, cwd, tty]
        return run_through(request, stdin, timeout)

    def sh(self, script: str, **options) -> str:
        code, out, err = self.run("/bin/bash", "-c", script, **options)
        assert code == 0, (code, out, err)
        return out

    def python(self, code: str) -> str:
        return self.sh(f"exec /usr/bin/python3 - <<'PYTHON'\n{code}\nPYTHON").strip()

    def status(self) -> dict[str, object]:
        return self.substrate.status(self.box)

    def log(self) -> str:
        return (self.box.state_dir / "logs" / "pod.log").read_text()

    def fault(self, kind: str) -> None:
        (self.box.state_dir / "gate" / "fault").write_text(kind)

    def destroy(self) -> None:
        self.substrate.destroy(self.box)
        self.control.stop()


def run_through(request, stdin, timeout):
    """Run a command with its own pipes in a process of its own, as the command line does."""
    import subprocess

    code = (
        "import json, sys; from pathlib import Path; from km_host.exec_client import run_command\n"
        "from km_core.errors import KmError\n"
        "a = json.loads(sys.argv[1])\n"
        "try: sys.exit(run_command(Path(a[0]), a[1], env=a[2], cwd=a[3], terminal=a[4]))\n"
        "except KmError as e: sys.stderr.write(f'{e.code}: {e}'); sys.exit(250)\n"
    )
    import json

    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(request)],
        input=stdin,
        capture_output=True,
        timeout=timeout,
        check=False,
    )
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.fixture(scope="session")
def need_sandboxes():
    for error in (*caps.missing_programs(), caps.user_namespace_obstacle()):
        if error is not None:
            pytest.skip(f"no local sandboxes here: {error.what}")
    try:
        caps.probe_namespaces()
    except Exception as error:
        pytest.skip(f"no local sandboxes here: {error}")


@pytest.fixture
def make_sandbox(need_sandboxes):
    made = []

    def make(**plan_changes) -> Sandbox:
        config = plan_changes.pop("config", None)
        root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
        plan = SandboxPlan(profile="test", profile_digest="", prefix="sb", substrate="local")
        config = config(root) if config is not None else None
        sandbox = Sandbox(root, plan=evolve(plan, **plan_changes), config=config)
        made.append(sandbox)
        return sandbox

    yield make
    for sandbox in made:
        sandbox.destroy()
        shutil.rmtree(sandbox.root)


@pytest.fixture(scope="module")
def sandbox(need_sandboxes):
    """A running sandbox that tests share and leave as it is."""
    root = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    shared = Sandbox(root)
    try:
        yield shared.up()
    finally:
        shared.destroy()
        shutil.rmtree(root)
