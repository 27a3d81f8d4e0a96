"""Limits that hold, limits that are refused, and pausing."""

from __future__ import annotations

import time

import pytest

from km_core.config import Config
from km_core.errors import ProvisionError
from km_core.plan import LimitsPlan
from km_host.cgroup import ControlGroup, default_limits
from km_substrate_local import limits
from km_substrate_local.substrate import LocalSubstrate

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def missing():
    return limits.probe_missing(default_limits())


@pytest.fixture
def need_groups(missing):
    if missing:
        pytest.skip(f"no control groups for {', '.join(missing)}")


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_memory_is_limited(make_sandbox):
    sandbox = make_sandbox(limits=LimitsPlan(memory_bytes=96 * MIB, explicit=("memory",))).up()
    assert sandbox.status()["limits"] == "enforced"
    code, _, _ = sandbox.run("/usr/bin/python3", "-c", "x = bytearray(300 * 1024 * 1024); print(len(x))")
    assert code == 137
    assert sandbox.sh("echo alive") == "alive\n"


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_processes_are_limited(make_sandbox):
    sandbox = make_sandbox(limits=LimitsPlan(pids=20, explicit=("pids",))).up()
    code = """
import os
count = 0
try:
    for _ in range(100):
        if os.fork() == 0: os.pause() if hasattr(os, 'pause') else __import__('signal').pause()
        count += 1
except OSError: pass
print(count)
os.killpg(0, 9)
"""
    _, out, _ = sandbox.run("/usr/bin/python3", "-uc", code)
    assert 5 <= int(out) < 20


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_processor_time_is_limited(make_sandbox):
    sandbox = make_sandbox(limits=LimitsPlan(cpus=0.2, explicit=("cpus",))).up()
    code = "import time; e = time.monotonic() + 1.5\nwhile time.monotonic() < e: pass\nprint(time.process_time())"
    assert float(sandbox.run("/usr/bin/python3", "-c", code)[1]) < 0.9


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_pause_stops_time_and_resume_goes_on(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.sh("(while :; do echo x >> /workspace/beat; sleep 0.02; done) > /dev/null 2>&1 &")
    beat = sandbox.box.state_dir / "workspace" / "beat"
    sandbox.substrate.pause(sandbox.box)
    sandbox.substrate.pause(sandbox.box)
    before = beat.stat().st_size
    time.sleep(0.3)
    assert beat.stat().st_size == before
    assert sandbox.status()["state"] == "paused"
    code, _, err = sandbox.run("/bin/true")
    assert (code, "a paused sandbox runs no commands" in err) == (250, True)
    sandbox.substrate.resume(sandbox.box)
    sandbox.substrate.resume(sandbox.box)
    time.sleep(0.3)
    assert beat.stat().st_size > before
    assert sandbox.sh("echo on") == "on\n"


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_a_paused_sandbox_can_be_stopped(make_sandbox):
    sandbox = make_sandbox().up()
    sandbox.substrate.pause(sandbox.box)
    sandbox.substrate.stop(sandbox.box)
    leftovers = sandbox.substrate.leftovers(sandbox.box.config)
    assert [item.what for item in leftovers] == ["runtime directory"]


@pytest.mark.namespaces
@pytest.mark.ordinary_user
def test_without_control_groups_limits_are_partial_and_said_so(make_sandbox):
    sandbox = make_sandbox(limits=LimitsPlan(pids=40, memory_bytes=200 * MIB)).up()
    status = sandbox.status()
    assert status["limits"] == "partial (rlimit)"
    assert status["not_enforced"] == ["memory", "cpus", "pids"]
    assert sandbox.sh("ulimit -u").strip() == "40"
    assert sandbox.run("/usr/bin/python3", "-c", "bytearray(400 * 1024 * 1024)")[0] == 1


@pytest.mark.namespaces
@pytest.mark.ordinary_user
def test_without_control_groups_an_explicit_limit_is_refused(make_sandbox):
    sandbox = make_sandbox(limits=LimitsPlan(memory_bytes=200 * MIB, explicit=("memory",)))
    problems = sandbox.substrate.problems(sandbox.box.plan, sandbox.box.config)
    assert [problem.path for problem in problems] == ["limits.memory"]
    with pytest.raises(ProvisionError, match="cannot enforce the limit memory"):
        sandbox.substrate.prepare(sandbox.box)


@pytest.mark.namespaces
@pytest.mark.ordinary_user
def test_without_a_freezer_pause_is_refused(make_sandbox):
    sandbox = make_sandbox().up()
    with pytest.raises(ProvisionError, match="no freezer"):
        sandbox.substrate.pause(sandbox.box)
    assert sandbox.status()["running"]
    assert sandbox.sh("echo on") == "on\n"


def test_missing_controllers_are_named_as_the_operator_wrote_them():
    plan = LimitsPlan(cpus=1, explicit=("cpus", "pids"))
    assert limits.unenforceable(plan, ("memory", "cpu")) == ("cpus",)
    assert limits.unenforceable(LimitsPlan(), ("memory", "cpu", "pids")) == ()


def test_problems_name_explicit_limits_that_cannot_hold(monkeypatch, tmp_path):
    from km_core.plan import SandboxPlan

    monkeypatch.setattr(limits, "probe_missing", lambda wanted: ("memory", "pids"))
    plan = SandboxPlan("p", "", "sb", "local", limits=LimitsPlan(memory_bytes=MIB, explicit=("memory",)))
    config = Config(home=tmp_path / "h", runtime_dir=tmp_path / "r")
    paths = [problem.path for problem in LocalSubstrate().problems(plan, config)]
    assert "limits.memory" in paths
    assert "limits.pids" not in paths


def test_defaults_fill_what_the_plan_leaves_out():
    filled = limits.wanted_limits(LimitsPlan(cpus=1.5))
    assert (filled.cpus, filled.pids) == (1.5, 512)
    assert filled.memory_bytes == default_limits().memory_bytes


def test_resource_limits_stand_in_only_for_what_is_missing():
    wanted = limits.wanted_limits(LimitsPlan(memory_bytes=MIB, pids=7))
    assert set(limits.resource_limits(wanted, ())) == {"RLIMIT_CORE", "RLIMIT_NOFILE"}
    stand_in = limits.resource_limits(wanted, ("memory", "pids"))
    assert (stand_in["RLIMIT_DATA"], stand_in["RLIMIT_NPROC"]) == ((MIB, MIB), (7, 7))


def test_a_probe_leaves_nothing(missing):
    del missing
    group = ControlGroup("km-probe-test")
    group.create(default_limits())
    directories = group.directories
    group.remove()
    group.remove()
    assert not any(directory.exists() for directory in directories)
