"""An engine, the base image of the code under test, and sandboxes made without a control plane."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import shutil
import socket
import tarfile
import tempfile
import uuid
from pathlib import Path

import pytest
from attrs import define, evolve, field

from km_core.config import Config
from km_core.errors import ProvisionError
from km_core.plan import LimitsPlan, NetworkPlan, SandboxPlan, WorkloadPlan
from km_core.types import new_sandbox_id
from km_host.backend import PodContext
from km_substrate_docker import image
from km_substrate_docker.base.build import Progress, build
from km_substrate_docker.engine import connect, default_host, find, remove
from km_substrate_docker.pod_backend import make_backend

FAKE_GATE = Path(__file__).with_name("fake_gate.py")


@pytest.fixture(scope="session")
def engine():
    """An engine that answers, with the base image; without one the tests are skipped."""
    try:
        with connect(default_host()) as client:
            build(client, Progress())
            yield client
    except ProvisionError as error:
        if "no Docker engine answers" in error.what or "on this machine" in error.what:
            pytest.skip(f"needs a Docker engine: {error.why or error.what} (scripts/engine start)")
        raise


@pytest.fixture
def home():
    """A short directory that holds KM_HOME and the runtime directory: socket paths are limited to 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="kd-", dir="/tmp"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def config(home):
    return Config(home=home / "h", runtime_dir=home / "r")


@define
class ControlSocket:
    """Stands for kmd's sandbox socket: accepts and says nothing."""

    path: Path
    listener: socket.socket

    def close(self):
        self.listener.close()

    def renew(self):
        self.close()
        self.path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen(8)


@pytest.fixture
def plan():
    return SandboxPlan(
        profile="test",
        profile_digest="0" * 64,
        prefix="sb",
        substrate="docker",
        workload=WorkloadPlan(shell="/bin/bash"),
        network=NetworkPlan(),
        limits=LimitsPlan(
            memory_bytes=512 * 1024 * 1024, cpus=1.0, pids=128, explicit=("memory", "cpus", "pids")
        ),
    )


@pytest.fixture
def make_context(engine, config, plan, fake_gate):
    """Make the directories and the record of images that a create leaves, for one sandbox each."""
    made = []

    def make(**changes):
        sandbox_id = new_sandbox_id("sb")
        context = PodContext(
            id=sandbox_id,
            plan=evolve(plan, **changes),
            config=config,
            state_dir=config.sandbox_dir(sandbox_id),
            runtime_dir=config.sandbox_runtime_dir(sandbox_id),
            audit_dir=config.audit_dir(sandbox_id),
        )
        for path in (context.state_dir, context.log_dir, context.runtime_dir, context.audit_dir):
            path.mkdir(mode=0o700, parents=True)
        image.store(image.resolve(engine, default_host(), config), context.state_dir)
        made.append(context)
        return context

    yield make
    with contextlib.suppress(ProvisionError):
        for container in find(engine, config.home):
            remove(container)


@pytest.fixture
def control(make_context):
    """Give a function that makes a sandbox's control socket."""
    with contextlib.ExitStack() as stack:

        def make(context):
            control = ControlSocket(context.runtime_dir / "kmd.sock", socket.socket())
            control.renew()
            stack.callback(control.close)
            return control

        yield make


@pytest.fixture(scope="session")
def fake_gate_base(engine):
    """The base image with `fake_gate.py` in place of the gate, everything else as it is."""
    name, tag = "km-base-fake", uuid.uuid4().hex[:12]
    container = engine.containers.create(image.base_tag(), ["true"], network_mode="none")
    try:
        code = FAKE_GATE.read_bytes()
        entry = tarfile.TarInfo("opt/km/libexec/km_sidecar.py")
        entry.size, entry.mode = len(code), 0o755
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.addfile(entry, io.BytesIO(code))
        container.put_archive("/", archive.getvalue())
        container.commit(name, tag)
    finally:
        container.remove(force=True)
    yield f"{name}:{tag}"
    engine.images.remove(f"{name}:{tag}", force=True)


@pytest.fixture
def fake_gate(monkeypatch, fake_gate_base):
    """New sandboxes get the fake gate."""
    monkeypatch.setattr(image, "base_tag", lambda: fake_gate_base)


def inside(client, context, *argv, user="0", check=True, workdir="/"):
    """Run a command in a sandbox's container with the engine's own client; returns (code, output)."""
    main = find(client, context.config.home, context.id, "main")[0]
    result = main.exec_run(list(argv), user=user, workdir=workdir)
    output = result.output.decode(errors="replace")
    assert not check or result.exit_code == 0, output
    return result.exit_code, output


@pytest.fixture
def run_inside(engine):
    return lambda context, *argv, **options: inside(engine, context, *argv, **options)


@define
class LivePod:
    """One sandbox; `down` is safe at any point."""

    context: object
    control: object
    runner: asyncio.Runner = field(factory=asyncio.Runner)
    backend: object = None
    listeners: object = None
    gate: object = None
    ready: dict | None = None

    def open(self):
        self.backend = make_backend(self.context)
        self.listeners = self.runner.run(self.backend.open())
        return self

    def spawn_gate(self):
        message = {
            "sandbox_id": self.context.id,
            "kmd_socket": str(self.control.path),
            "state_dir": str(self.context.state_dir / "gate"),
            "audit_dir": str(self.context.audit_dir),
        }
        self.gate = self.runner.run(self.backend.spawn_gate(message, self.listeners))
        self.gate.channel.settimeout(20)
        self.ready = json.loads(self.gate.channel.recv(65536))
        return self

    def start(self):
        self.runner.run(self.backend.start(self.ready["ca_pem"]))
        return self

    def up(self):
        return self.open().spawn_gate().start()

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def drop_gate(self):
        if self.gate is not None:
            self.gate.kill()
            self.gate.channel.close()
            code = self.runner.run(self.gate.wait())
            self.gate = None
            return code
        return None

    def down(self):
        with contextlib.suppress(ProvisionError):
            self.drop_gate()
        if self.listeners is not None:
            self.listeners.close()
        if self.backend is not None:
            self.runner.run(self.backend.close())
        self.runner.close()


@pytest.fixture
def live_pod(make_context, control):
    """Give a function that makes a pod's backend with a fake gate; all are taken down at the end."""
    made = []

    def make(**changes):
        context = make_context(**changes)
        made.append(LivePod(context, control(context)))
        return made[-1]

    yield make
    for pod in made:
        pod.down()
