"""The kit's own parts: the runner, the registry of named plugins, the seal, the guide's list of promises."""

from __future__ import annotations

import contextlib
import inspect
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pluggy
import pytest

from km_core import hookimpl
from km_core.testing.agent import AgentContract
from km_core.testing.cli import KmRunner, Outcome
from km_core.testing.control import ControlPlaneContract
from km_core.testing.enforcer import EnforcerContract
from km_core.testing.meter import MeterContract
from km_core.testing.notifier import NotifierContract
from km_core.testing.pm import manager_with
from km_core.testing.probes import impure, sealed, short_directory, unreachable
from km_core.testing.sidecar import SidecarContract
from km_core.testing.substrate import SubstrateContract
from km_core.types import Event

CONTRACTS = (
    SubstrateContract,
    EnforcerContract,
    NotifierContract,
    MeterContract,
    AgentContract,
    ControlPlaneContract,
    SidecarContract,
)
GUIDE = Path(__file__).parents[3] / "docs" / "guide" / "testing-plugins.md"


@pytest.fixture
def runner():
    root = short_directory()
    yield KmRunner(root / "h", root / "r")
    subprocess.run(["rm", "-rf", str(root)], check=True)


def promises(contract):
    return {
        match[1].upper(): member.__doc__
        for name, member in inspect.getmembers(contract, inspect.isfunction)
        if (match := re.match(r"test_([a-z]\d+)_", name))
    }


def test_a_notifiers_test_that_gives_back_no_events_is_told_what_to_give():
    event = Event("created", "sb-0000000a", "2026-01-02T03:04:05Z")

    assert NotifierContract().matches(event, event)
    with pytest.raises(pytest.fail.Exception, match="gave a dict where an Event is expected"):
        NotifierContract().matches(event, json.loads(event.to_json()))


EXTRAS = """
from km_core import hookimpl
from km_core.control.steps import LifecycleStep
from km_core.types import EgressGroup, GroupResolution, InsideResponse
KM_PLUGIN_API = 1

@hookimpl
def km_egress_groups():
    return [EgressGroup("@our-mirror", "ours", lambda: GroupResolution("@our-mirror", ("mirror.example:443",)))]

@hookimpl
def km_lifecycle_steps(plan):
    def leave(context):
        (context.state_dir / "card").write_text(context.control.call("ping")["version"])
    def take(context):
        (context.state_dir / "card").unlink(missing_ok=True)
    return [LifecycleStep("card", "prepared", leave, take)]

def answer(request, relay):
    return InsideResponse({"spent_usd": relay("budget.get")["ai"]["spent_nusd"] / 1e9})
"""


def test_the_guides_tests_of_what_has_no_contract_pass_on_a_plugin_of_that_kind(tmp_path):
    section = GUIDE.read_text(encoding="utf-8").partition("## What has no contract")[2]
    package = tmp_path / "km_extras"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "plugin.py").write_text(EXTRAS)
    (package / "service.py").write_text("from km_extras.plugin import answer as answer\n")
    (tmp_path / "test_extras.py").write_text(section.partition("```python\n")[2].partition("```")[0])

    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_extras.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "3 passed" in done.stdout, done.stdout


def test_the_runner_tells_what_a_command_came_to(runner):
    assert runner("--version").assert_ok().stdout.startswith("km ")
    assert "profile" not in runner("no-such-command").assert_failed(2, "no-such-command").stdout
    listed = runner("plugins", "list", "--json").assert_ok()
    assert isinstance(listed.json, (list, dict))


def test_a_failed_assertion_shows_the_command_and_what_it_printed():
    outcome = Outcome(("validate", "a b.yaml"), 1, "", "error: spec.budget: no\n")
    outcome.assert_failed(1, "spec.budget")
    for check in (
        outcome.assert_ok,
        lambda: outcome.assert_failed(2),
        lambda: outcome.assert_failed(1, "spec.x"),
    ):
        with pytest.raises(AssertionError, match=r"\$ km validate 'a b.yaml'[\s\S]*spec.budget"):
            check()
    with pytest.raises(AssertionError, match="not one JSON document"):
        assert outcome.json


def test_a_registry_holds_just_the_plugins_named():
    class Toy:
        @hookimpl
        def km_enforcers(self):
            return ("proxy",)

    registry = manager_with(Toy())
    assert list(registry.enforcers()) == ["proxy"]
    assert registry.substrates() == {}
    assert [info.hooks for info in registry.infos] == [("km_enforcers",)]


def test_a_misspelt_hook_is_an_error_in_the_registry():
    class Toy:
        @hookimpl
        def km_enforcerz(self):
            return ()

    with pytest.raises(pluggy.PluginValidationError):
        manager_with(Toy())


def test_the_seal_stops_files_sockets_and_processes_and_lets_go_again(tmp_path):
    attempts = (
        lambda: (tmp_path / "x").write_text("x"),
        lambda: os.open(tmp_path / "x", os.O_CREAT),
        lambda: socket.create_connection(("127.0.0.1", 9)),
        lambda: subprocess.run(["true"], check=True),
    )
    for attempt in attempts:
        with pytest.raises(ConnectionRefusedError, match="planted"), sealed(unreachable):
            attempt()
    with sealed(impure) as seen:
        with contextlib.suppress(AssertionError):
            attempts[0]()
        import wave  # noqa: F401 - a module of the standard library that nothing here has imported

        assert len(seen) == 1
    assert attempts[0]() == 1


def test_the_plugin_imports_nothing_but_pytest():
    code = "import sys, pytest; before = set(sys.modules); import km_core.testing.plugin; print(*set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"km_core", "km_core.testing", "km_core.testing.plugin", "pluggy"}


@pytest.mark.parametrize("contract", CONTRACTS)
def test_promises_are_numbered_without_gaps_and_say_what_they_are(contract):
    found = promises(contract)
    letter = min(found)[0]
    assert sorted(found, key=lambda number: int(number[1:])) == [
        f"{letter}{n + 1}" for n in range(len(found))
    ]
    for number, text in found.items():
        assert text is not None
        assert text.startswith(f"{number}: "), number


@pytest.mark.parametrize("contract", CONTRACTS)
def test_the_guide_lists_every_promise_in_the_words_of_its_test(contract):
    guide = GUIDE.read_text(encoding="utf-8")
    assert contract.__name__ in guide
    for number, text in promises(contract).items():
        words = " ".join(text.split()).removeprefix(f"{number}: ").replace("``", "`")
        assert f"| {number} | {words} |" in guide, number
