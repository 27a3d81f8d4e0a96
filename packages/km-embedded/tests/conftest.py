"""Parts of kmd in one process with a clock of its own, and a real kmd."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import shutil
import signal
import tempfile
import time
from pathlib import Path

import pytest

from km_core.config import Config
from km_core.control.ops import Peer
from km_core.control.rpc import ControlClient
from km_core.errors import KmError
from km_core.types import SandboxRecord, SandboxState
from km_embedded.operator_ops import operator_ops
from km_embedded.sandbox_ops import sandbox_ops
from km_embedded.service import Service
from km_embedded.settings import Settings
from km_embedded.start import connect
from km_embedded.tick import tick

IDS = ("sb-0000000a", "sb-0000000b", "sb-0000000c", "sb-0000000d")


class Clock:
    """Unix seconds that move when a test says so."""

    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


class Bench:
    """A `Service` and short ways to use it."""

    def __init__(self, config, clock, **options):
        self.config = config
        self.clock = clock
        self.options = options
        self.lines = []
        self.service = None
        self.runner = asyncio.Runner()
        self.start()

    def start(self):
        self.service = Service(
            self.config,
            clock=self.clock,
            log=lambda event, **fields: self.lines.append((event, fields)),
            **self.options,
        )

    def restart(self):
        """Begin anew from what is on the disk, as after a crash."""
        self.stop()
        self.start()

    def stop(self):
        self.run(self.service.close())

    def close(self):
        self.stop()
        self.runner.close()

    def run(self, coroutine):
        return self.runner.run(coroutine)

    def _call(self, table, op, args):
        entry = table[op]
        result = entry.run(Peer(os.getpid(), os.geteuid(), 0), **entry.checked(op, args))
        return self.run(_wait(result)) if inspect.isawaitable(result) else result

    def operator(self, op, /, **args):
        return self._call(operator_ops(self.service), op, args)

    def sandbox(self, sandbox_id, op, /, **args):
        return self._call(sandbox_ops(self.service, sandbox_id), op, args)

    def tick(self, seconds=0.0):
        self.clock.now += seconds
        self.run(tick(self.service))

    def create(self, sandbox_id=IDS[0], **fields):
        record = self.operator("sandbox.create", record=new_record(sandbox_id, self.clock.now, **fields))
        return SandboxRecord.from_wire(record)

    def running(self, sandbox_id=IDS[0], **fields):
        self.create(sandbox_id, **fields)
        return self.operator("sandbox.update", id=sandbox_id, changes={"state": "running"})

    def get(self, sandbox_id=IDS[0]):
        return SandboxRecord.from_wire(self.operator("sandbox.get", id=sandbox_id))

    def events(self, sandbox_id=IDS[0]):
        path = self.config.audit_dir(sandbox_id) / "kmd.jsonl"
        import json

        from km_core.audit import defects

        records = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        assert [found for record in records for found in defects(record)] == []
        return records

    def kinds(self, sandbox_id=IDS[0]):
        return [event["kind"] for event in self.events(sandbox_id)]


async def _wait(awaitable):
    return await awaitable


def new_record(sandbox_id, now, **fields):
    base = {
        "id": sandbox_id,
        "profile": "goose",
        "substrate": "local",
        "state": SandboxState.CREATING,
        "created_at": now,
        "last_activity_at": now,
    }
    return SandboxRecord(**(base | fields)).to_wire()


@pytest.fixture
def config():
    """Directories short enough for sockets."""
    root = Path(tempfile.mkdtemp(prefix="kme-"))
    yield Config(home=root / "h", runtime_dir=root / "r")
    shutil.rmtree(root)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def bench(config, clock):
    """The parts of kmd; tasks and deliveries do nothing."""
    made = Bench(config, clock, task_command=("/bin/true",), deliver_command=("/bin/false",))
    yield made
    made.close()


@pytest.fixture
def make_bench(config, clock):
    made = []

    def make(**options):
        made.append(
            Bench(
                config,
                clock,
                **({"task_command": ("/bin/true",), "deliver_command": ("/bin/false",)} | options),
            )
        )
        return made[-1]

    yield make
    for item in made:
        item.close()


@pytest.fixture
def record_for():
    return new_record


@pytest.fixture
def fast():
    return Settings(pod_grace_s=3.0, checkpoint_s=60.0)


class Daemon:
    """A real kmd, started the way every command starts it."""

    def __init__(self, config):
        self.config = config
        self.clients = []

    def connect(self):
        client = connect(self.config)
        self.clients.append(client)
        return client

    def pid(self):
        with ControlClient(self.config.runtime_dir / "kmd.sock") as client:
            return client.call("ping")["pid"]

    def kill(self, number=signal.SIGKILL):
        pid = self.pid()
        os.kill(pid, number)
        wait_gone(pid)

    def close(self):
        for client in self.clients:
            client.close()
        with contextlib.suppress(KmError), ControlClient(self.config.runtime_dir / "kmd.sock") as client:
            pid = client.call("ping")["pid"]
            client.call("shutdown")
            wait_gone(pid)


def wait_gone(pid, seconds=10.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.02)
    raise AssertionError(f"process {pid} still lives")


@pytest.fixture
def daemon(config):
    made = Daemon(config)
    yield made
    made.close()
