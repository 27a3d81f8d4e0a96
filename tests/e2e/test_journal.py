"""``km create`` killed at every step of its journal: afterwards nothing remains."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from demo.traces import Traces

from km_core.control.rpc import ControlClient

if TYPE_CHECKING:
    from pathlib import Path

    from standins.world import World

STEPS = ("files", "budget", "prepare", "start", "init", "config", "ready")
pytestmark = pytest.mark.timeout(180)


@pytest.fixture(scope="module")
def profile(world: World) -> Path:
    execution = {
        "shell": "/bin/bash",
        "workingDir": "/workspace",
        "initCommands": ["true"],
        "configFiles": {"/workspace/note": "written\n"},
    }
    return world.profile("journal", execution=execution, ai=1)


def test_the_steps_named_here_are_those_of_create(world: World, profile: Path, substrate: str) -> None:
    box = world.create(profile, substrate)
    with ControlClient(world.runtime_dir / "kmd.sock") as client:
        journal = client.call("journal.list", id=box.id)
    assert [entry["step"] for entry in journal] == list(STEPS)
    assert {entry["state"] for entry in journal} == {"done"}
    box.destroy().assert_ok()


@pytest.mark.parametrize(("moment", "remedy"), [("before", "reconcile"), ("after", "destroy")])
@pytest.mark.parametrize("step", STEPS)
def test_a_create_killed_at_a_step_leaves_nothing_after_the_remedy(
    world: World, profile: Path, substrate: str, *, step: str, moment: str, remedy: str
) -> None:
    killed = world.km(
        "create",
        str(profile),
        "--substrate",
        substrate,
        "--alias",
        "cut",
        env={"KM_FAULT": f"kill:{step}:{moment}"},
    )
    assert killed.code == -9, killed
    (record,) = world.km("list", "--json").json()
    traces = Traces(world.home, world.runtime_dir / record["id"])
    traces.note(record["id"])
    if (step, moment) == ("ready", "after"):
        # Everything is there and recorded as running, only the command's last words are missing: reconcile
        # leaves it alone.
        world.km("reconcile").assert_ok()
        world.km("exec", "cut", "--", "true").assert_ok()
    if remedy == "destroy":
        world.km("destroy", "cut", "--yes").assert_ok()
    else:
        findings = world.km("reconcile", "--json").json()
        assert record["id"] in [finding["id"] for finding in findings]
    assert world.km("list", "--json").json() == []
    assert traces.left(spare=world.pid("kmd")) == []
    assert not (world.home / "sandboxes" / record["id"]).exists()
    assert not (world.runtime_dir / record["id"]).exists()


def test_a_create_that_fails_rolls_itself_back(world: World, substrate: str) -> None:
    execution = {"shell": "/bin/bash", "workingDir": "/workspace", "initCommands": ["exit 3"]}
    profile = world.profile("failing", execution=execution)
    outcome = world.km("create", str(profile), "--substrate", substrate)
    outcome.assert_failed(1, "initCommands[0]")
    assert world.km("list", "--json").json() == []
    assert list((world.home / "sandboxes").glob("[!.]*")) == []


def test_an_interrupted_create_rolls_itself_back(world: World, substrate: str) -> None:
    import signal
    import time

    execution = {"shell": "/bin/bash", "workingDir": "/workspace", "initCommands": ["sleep 30"]}
    process = world.start("create", str(world.profile("slow", execution=execution)), "--substrate", substrate)
    deadline = time.monotonic() + 30
    while True:
        records = world.km("list", "--json").json()
        with ControlClient(world.runtime_dir / "kmd.sock") as client:
            if records and "init" in [e["step"] for e in client.call("journal.list", id=records[0]["id"])]:
                break
        assert time.monotonic() < deadline
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert world.km("list", "--json").json() == []
