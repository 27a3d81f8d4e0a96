"""Lifecycle operations of km-core against a real kmd, on a substrate that only notes what it is told."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import types

import pytest
from attrs import evolve

from km_core import hookimpl
from km_core.control.substrate import Leftover
from km_core.errors import GuardError, NotFoundError, PlanError, ProvisionError
from km_core.lifecycle.create import create_sandbox
from km_core.lifecycle.power import (
    destroy_sandbox,
    expire_sandbox,
    pause_sandbox,
    reconcile,
    recover_sandbox,
    resume_sandbox,
    stop_sandbox,
)
from km_core.lifecycle.session import Session
from km_core.plan import LifecyclePlan, SandboxPlan, WorkloadPlan
from km_core.plugins import PluginRegistry, new_manager
from km_core.types import SandboxState


class Paper:
    """A substrate on paper: which sandboxes it has, and what is to go wrong."""

    name = "paper"
    capabilities = frozenset({"exec", "stop", "pause"})

    def __init__(self):
        self.up = {}
        self.calls = []
        self.on = {}
        self.states = []
        self.session = None

    def _do(self, what, box, state=None):
        self.calls.append(what)
        action = self.on.get(what)
        if action is not None:
            action()
        if state is not None:
            self.up[box.id] = state

    def problems(self, plan, config):
        return ()

    def prepare(self, box):
        self.states.append(self.session.record(box.id).state if self.session else None)
        self._do("prepare", box, "prepared")

    def start(self, box):
        self._do("start", box, "running")

    def stop(self, box):
        self._do("stop", box)
        self.up.pop(box.id, None)

    def pause(self, box):
        self._do("pause", box, "frozen")

    def resume(self, box):
        self.states.append(self.session.record(box.id).state if self.session else None)
        self._do("resume", box, "running")

    def destroy(self, box):
        self._do("destroy", box)
        self.up.pop(box.id, None)

    def exec(self, box, argv, *, env, cwd, root, tty):
        self._do("exec", box)
        os.write(1, b"from inside\n")
        return len(os.read(0, 10))

    def status(self, box):
        return {"running": box.id in self.up, "enforcement": "tproxy", "limits": "none"}

    def leftovers(self, config):
        return [Leftover(sandbox_id, "process") for sandbox_id in self.up]

    def remove_leftover(self, config, leftover):
        self.up.pop(leftover.sandbox_id, None)


def plugins(*substrates):
    """A registry with one plugin that offers *substrates*."""
    made = types.ModuleType("papers")

    @hookimpl
    def km_substrates():
        return substrates

    made.km_substrates = km_substrates
    manager = new_manager()
    manager.register(made, name="papers")
    return PluginRegistry(manager)


PLAN = SandboxPlan(
    profile="p", profile_digest="0" * 64, prefix="sb", substrate="paper", lifecycle=LifecyclePlan(ttl_s=3600)
)


@pytest.fixture
def paper():
    return Paper()


@pytest.fixture
def session(daemon, config, paper):
    made = Session(config, plugins(paper), daemon.connect())
    paper.session = Session(config, plugins(paper), daemon.connect())
    return made


def failing(error):
    def action():
        raise error

    return action


def make(session, plan=PLAN, **options):
    return create_sandbox(session, plan, "profile text\n", **options)


def test_a_create_that_fails_before_anything_ran_leaves_nothing_not_even_evidence(session, paper, config):
    paper.on["prepare"] = failing(ProvisionError("no namespaces"))

    with pytest.raises(ProvisionError, match="no namespaces"):
        make(session)

    assert ([], {}) == (session.records(), paper.up)
    assert [] == list((config.home / "sandboxes").iterdir())
    assert ["host"] == [path.name for path in (config.home / "audit").iterdir()]
    assert [] == [path.name for path in (config.home / "anchors").iterdir() if path.name != "host.json"]


def test_a_create_that_fails_after_its_first_process_ran_keeps_the_evidence(session, paper, config):
    plan = evolve(PLAN, workload=WorkloadPlan(init_commands=("true",)))
    paper.on["exec"] = failing(ProvisionError("it broke"))

    with pytest.raises(ProvisionError, match="it broke"):
        make(session, plan)

    assert ([], {}) == (session.records(), paper.up)
    (chain,) = [path for path in (config.home / "audit").iterdir() if path.name != "host"]
    assert (chain / "kmd.jsonl").exists()


def test_interrupts_during_the_rollback_of_an_interrupted_create_leave_nothing(session, paper, capsys):
    paper.on["start"] = failing(KeyboardInterrupt())
    paper.on["destroy"] = lambda: os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make(session)

    assert ([], {}) == (session.records(), paper.up)
    assert "cleaning up" in capsys.readouterr().err


def test_a_rollback_that_fails_keeps_the_record_and_the_files_for_reconcile(session, paper, config):
    paper.on["start"] = failing(ProvisionError("no start"))
    paper.on["destroy"] = failing(OSError("device busy"))

    with pytest.raises(ProvisionError, match="could not be rolled back"):
        make(session)

    (record,) = session.records()
    assert record.state is SandboxState.CREATING
    assert (config.sandbox_dir(record.id) / "plan.json").exists()
    paper.on.clear()
    (finding,) = reconcile(session)
    assert finding == {"id": record.id, "found": "unfinished create", "action": "destroyed"}
    assert ([], {}) == (session.records(), paper.up)


def test_a_refused_create_does_not_touch_the_sandbox_that_has_the_alias(session, paper):
    first = make(session, alias="dev")

    with pytest.raises(GuardError, match="alias"):
        make(session, alias="dev")

    assert [first.id] == [record.id for record in session.records()]
    assert {first.id: "running"} == paper.up


def test_init_commands_write_to_stderr_and_read_nothing(session, capfd):
    make(session, evolve(PLAN, workload=WorkloadPlan(init_commands=("echo from inside",))))

    out, err = capfd.readouterr()
    assert "" == out
    assert "from inside\n" == err


def test_two_destroys_at_once_both_end_well(session, paper, daemon, config):
    record = make(session)
    paper.on["destroy"] = lambda: time.sleep(0.2)
    errors = []

    def destroy():
        mine = Session(config, plugins(paper), daemon.connect())
        try:
            destroy_sandbox(mine, record)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=destroy) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert ([], []) == (errors, session.records())
    assert 1 == paper.calls.count("destroy")


def test_a_sandbox_whose_plan_is_damaged_can_be_destroyed_and_nothing_else(session, config, paper):
    for content in ("[]", "{", '{"api": 1}', "\xff", json.dumps(evolve(PLAN, profile="other").to_data())):
        record = make(session)
        (config.sandbox_dir(record.id) / "plan.json").write_text(content, encoding="latin-1")
        stopping = pytest.raises((PlanError, GuardError))
        with stopping:
            stop_sandbox(session, record)
        destroy_sandbox(session, record)
        assert ([], {}) == (session.records(), paper.up)


def test_without_its_substrate_a_destroy_is_refused_and_changes_nothing(session, config, daemon):
    record = make(session)

    with pytest.raises(NotFoundError, match="paper"):
        destroy_sandbox(Session(config, plugins(), daemon.connect()), record)

    assert session.record(record.id).state is SandboxState.RUNNING


def test_a_destroy_that_fails_says_so_and_can_be_repeated(session, paper):
    record = make(session)
    paper.on["destroy"] = failing(OSError("device busy"))
    with pytest.raises(ProvisionError, match="busy"):
        destroy_sandbox(session, record)
    assert session.record(record.id).state is SandboxState.FAILED
    paper.on.clear()
    destroy_sandbox(session, record)
    assert [] == session.records()


def test_a_resume_counts_its_time_before_anything_runs(session, paper):
    record = stop_sandbox(session, make(session))
    assert (0.0, True) == (record.expires_at, record.ttl_remaining_s > 3500)
    paper.states.clear()

    resumed = resume_sandbox(session, record)

    # Killed in between, the sandbox would have run without an end.
    assert [SandboxState.RUNNING] == paper.states
    assert resumed.expires_at > time.time()
    paused = pause_sandbox(session, resumed)
    paper.states.clear()
    resume_sandbox(session, paused)
    assert [SandboxState.RUNNING] == paper.states


@pytest.mark.parametrize("step", ["prepare", "start"])
def test_a_resume_that_fails_leaves_it_stopped_and_nothing_running(session, paper, step):
    record = stop_sandbox(session, make(session))
    paper.on[step] = failing(KeyboardInterrupt())

    with pytest.raises(KeyboardInterrupt):
        resume_sandbox(session, record)

    record = session.record(record.id)
    assert (SandboxState.STOPPED, {}) == (record.state, paper.up)
    assert (0.0, True) == (record.expires_at, record.ttl_remaining_s > 3500)


def test_a_thaw_that_fails_leaves_it_paused(session, paper):
    record = pause_sandbox(session, make(session))
    paper.on["resume"] = failing(ProvisionError("no freezer"))

    with pytest.raises(ProvisionError):
        resume_sandbox(session, record)

    assert session.record(record.id).state is SandboxState.PAUSED


def test_a_sandbox_past_its_longest_life_is_not_resumed(session):
    plan = evolve(PLAN, lifecycle=LifecyclePlan(ttl_s=None, max_lifetime_s=1))
    record = stop_sandbox(session, make(session, plan))
    time.sleep(1.1)

    with pytest.raises(GuardError, match="passed"):
        resume_sandbox(session, record)


def test_nothing_but_destroy_acts_on_a_sandbox_that_is_created_or_destroyed(session, paper):
    record = make(session)
    session.update(record.id, state="destroying")

    for act in (stop_sandbox, resume_sandbox, pause_sandbox):
        with pytest.raises(GuardError):
            act(session, record)
    assert "stop" not in paper.calls


def test_a_recovery_leaves_one_alone_that_runs_and_rests_one_that_was_paused(session, paper):
    record = make(session)
    assert "nothing to do: it runs" == recover_sandbox(session, record)
    pause_sandbox(session, record)
    paper.up.clear()

    assert "stopped: it was paused" == recover_sandbox(session, record)
    assert (SandboxState.STOPPED, {}) == (session.record(record.id).state, paper.up)


def test_a_recovery_brings_back_one_whose_supervisor_died(session, paper):
    record = make(session)
    paper.up.clear()

    assert "recovered" == recover_sandbox(session, record)
    assert {record.id: "running"} == paper.up


def test_an_expiry_looks_again_whether_the_sandbox_is_idle(session):
    record = make(session, evolve(PLAN, lifecycle=LifecyclePlan(ttl_s=None, idle_timeout_s=600)))

    assert expire_sandbox(session, record, "idle").startswith("nothing to do")
    session.update(record.id, last_activity_at=1.0)
    session.update(record.id, idle_timeout_s=1)
    assert session.record(record.id).state is SandboxState.RUNNING


@pytest.mark.parametrize(("ttl", "left"), [(None, "stopped"), (3600, "")])
def test_one_without_a_ttl_is_stopped_with_its_files_when_it_is_idle(session, ttl, left):
    record = make(session, evolve(PLAN, lifecycle=LifecyclePlan(ttl_s=ttl, idle_timeout_s=1)))
    time.sleep(1.1)

    done = expire_sandbox(session, record, "idle")

    assert done == (left or "destroyed")
    if left:
        assert session.record(record.id).state is SandboxState.STOPPED
        resume_sandbox(session, record)
        assert session.record(record.id).state is SandboxState.RUNNING


def test_one_that_was_paused_in_time_is_not_idle(session):
    record = make(session, evolve(PLAN, lifecycle=LifecyclePlan(ttl_s=3600, idle_timeout_s=1)))
    pause_sandbox(session, record)
    time.sleep(1.1)

    assert expire_sandbox(session, record, "idle").startswith("nothing to do")
    assert session.record(record.id).state is SandboxState.PAUSED


def test_an_unfinished_create_is_not_taken_from_a_live_creator(session):
    record = make(session)

    assert expire_sandbox(session, record, "unfinished-create").startswith("nothing to do")
    assert session.record(record.id).state is SandboxState.RUNNING


def test_reconcile_goes_on_after_what_it_cannot_mend(session, paper, config, daemon):
    first, second = make(session), make(session)
    for record in (first, second):
        session.update(record.id, state="destroying")
    broken = iter([OSError("device busy")])

    def once():
        for error in broken:
            raise ProvisionError(str(error))

    paper.on["destroy"] = once
    findings = reconcile(session)

    assert ["failed: device busy", "destroyed"] == [finding["action"] for finding in findings]
    assert [first.id] == [record.id for record in session.records()]
    session.update(first.id, state="destroying")
    orphans = reconcile(Session(config, plugins(), daemon.connect()))
    assert [True] == [finding["action"].startswith("failed") for finding in orphans]
