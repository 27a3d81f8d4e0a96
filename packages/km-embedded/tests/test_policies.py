"""Policies of living sandboxes: replaced as a whole, granted for a time, never lost by a crash."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
from attrs import evolve

from km_core.compile.pipeline import Compiled
from km_core.control.ops import Op, listing, mapping, nullable
from km_core.control.server import ControlServer
from km_core.errors import (
    ControlUnavailableError,
    GuardError,
    NotFoundError,
    PlanError,
    PolicyDenied,
    UsageError,
)
from km_core.lifecycle import plan_file, policy
from km_core.lifecycle.session import Session
from km_core.plan import (
    BudgetPlan,
    GitPlan,
    HostRule,
    NetworkPlan,
    SandboxPlan,
    WorkloadPlan,
    policy_data,
    policy_version,
)
from km_embedded.liveness import boot_id

A, B = "sb-0000000a", "sb-0000000b"
OLD, NEW = "old: 1\n", "new: 1\n"


def plan(*hosts, text=OLD, **changes):
    base = SandboxPlan(
        profile="p",
        profile_digest=hashlib.sha256(text.encode()).hexdigest(),
        prefix="sb",
        substrate="local",
        network=NetworkPlan(hosts=tuple(HostRule(host, "exact") for host in hosts)),
    )
    return evolve(base, **changes)


@pytest.fixture
def box(bench):
    made = plan("a.example")
    bench.running(A, plan_digest=made.digest(), boot_id=boot_id())
    state_dir = bench.config.sandbox_dir(A)
    state_dir.mkdir(parents=True)
    (state_dir / "plan.json").write_text(made.to_json())
    (state_dir / "profile.yaml").write_text(OLD)
    return bench


def apply(box, new, *, expect=None, text=NEW):
    return box.operator(
        "policy.apply",
        id=A,
        policy=policy_data(new),
        profile=text,
        expect=box.get().plan_digest if expect is None else expect,
    )


def test_an_applied_policy_is_on_the_disk_in_the_record_in_the_lease_and_in_the_evidence(box):
    before, new = box.get().plan_digest, plan("b.example", text=NEW)
    answer = apply(box, new)

    assert answer == {"before": before, "after": new.digest(), "plan_digest": new.digest()}
    assert box.sandbox(A, "lease", holder="gate")["policy_version"] == new.digest()
    assert box.sandbox(A, "policy.current") == {"version": new.digest(), "policy": policy_data(new)}
    assert (box.config.sandbox_dir(A) / "profile.yaml").read_text() == NEW
    event = next(event for event in box.events(A) if event["kind"] == "policy_changed")
    assert (event["cause"], event["policy_before"], event["policy_after"]) == ("apply", before, new.digest())
    box.restart()
    assert box.sandbox(A, "policy.current")["version"] == new.digest()


def test_nothing_but_the_policy_is_taken_from_an_applied_plan(box):
    stranger = plan(
        "b.example", text=NEW, workload=WorkloadPlan(shell="/bin/evil"), budget=BudgetPlan(10**15)
    )
    apply(box, stranger)

    stored = plan_file.read_plan(box.config.sandbox_dir(A), box.get().plan_digest)
    assert stored.workload == WorkloadPlan()
    assert stored.budget == BudgetPlan()
    assert stored.network == stranger.network


def test_a_policy_is_refused_for_another_plan_another_profile_or_another_enforcement(box):
    new = plan("b.example", text=NEW)
    with pytest.raises(GuardError, match="changed meanwhile"):
        apply(box, new, expect="0" * 64)
    with pytest.raises(UsageError, match="not the one of the policy"):
        apply(box, new, text="other")
    with pytest.raises(PlanError, match="enforcement"):
        apply(box, evolve(new, network=evolve(new.network, enforcement="ebpf")))
    with pytest.raises(PlanError, match="not valid"):
        apply(box, evolve(new, network=NetworkPlan(hosts=(HostRule("B.example", "exact"),))))
    with pytest.raises(PlanError, match="damaged"):
        box.operator("policy.apply", id=A, policy={}, profile=NEW, expect=box.get().plan_digest)
    assert box.get().plan_digest == plan("a.example").digest()
    assert "policy_changed" not in box.kinds(A)


@pytest.mark.parametrize("crash", ["write_next", "update", "take_next"])
def test_a_crash_at_any_point_leaves_the_old_policy_or_the_new_one(box, monkeypatch, crash):
    old, new = box.get().plan_digest, plan("b.example", text=NEW)

    def die(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(f"km_embedded.policies.{crash}", die)
        with pytest.raises(KeyboardInterrupt):
            apply(box, new)
    box.restart()

    expected = new.digest() if crash == "take_next" else old
    assert box.get().plan_digest == expected
    current = box.sandbox(A, "policy.current")
    assert current["version"] == expected
    assert current["policy"]["network"]["hosts"][0]["pattern"] == (
        "b.example" if crash == "take_next" else "a.example"
    )
    # And whatever was left behind does not stand in the way.
    other = plan("c.example", text=NEW)
    apply(box, other)
    assert box.sandbox(A, "policy.current")["version"] == other.digest()


@pytest.mark.parametrize("at", [0, 1])
def test_a_crash_between_the_two_files_of_a_policy_leaves_both_of_the_new_one(box, session, monkeypatch, at):
    """A profile that was not the plan's would keep every later policy out."""
    box.operator("sandbox.update", id=A, changes={"state": "stopped"})
    replace, seen = Path.replace, []

    def die(self, target):
        if target.name in {"plan.json", "profile.yaml"}:
            seen.append(target.name)
            if len(seen) > at:
                raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as broken:
        broken.setattr(Path, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            policy.apply_policy(session, box.get(), "file")
    box.restart()

    box.operator("sandbox.update", id=A, changes={"state": "stopped"})
    again = policy.apply_policy(session, box.get(), "file")
    assert again.before == again.after
    assert "b.example" in (box.config.sandbox_dir(A) / "profile.yaml").read_text()


def test_a_plan_on_the_disk_that_the_record_does_not_name_is_never_taken(box):
    state_dir = box.config.sandbox_dir(A)
    plan_file.write_next(state_dir, plan("evil.example"), OLD)
    assert box.sandbox(A, "policy.current")["policy"]["network"]["hosts"][0]["pattern"] == "a.example"
    (state_dir / "plan.json").write_text(plan("evil.example").to_json())
    with pytest.raises(GuardError, match="not the one"):
        box.sandbox(A, "policy.current")


def test_a_grant_is_in_the_lease_until_its_time_is_over(box):
    digest = box.get().plan_digest
    answer = box.operator("policy.allow", id=A, entry="B.Example.:8443", seconds=60)
    assert answer["grant"]["entry"] == "b.example:8443"
    assert answer["policy_version"] != digest
    assert [grant["entry"] for grant in box.sandbox(A, "lease", holder="gate")["grants"]] == [
        "b.example:8443"
    ]

    box.restart()
    assert box.operator("policy.get", id=A)["policy_version"] == answer["policy_version"]
    box.tick(61)
    assert box.sandbox(A, "lease", holder="gate")["grants"] == []
    assert box.operator("policy.get", id=A)["policy_version"] == digest
    causes = [event["cause"] for event in box.events(A) if event["kind"] == "policy_changed"]
    assert causes == ["allow", "expired"]
    chain = [(e["policy_before"], e["policy_after"]) for e in box.events(A) if e["kind"] == "policy_changed"]
    assert chain == [(digest, answer["policy_version"]), (answer["policy_version"], digest)]


def test_a_grant_is_taken_back_in_any_spelling(box):
    box.operator("policy.allow", id=A, entry="[2001:db8::1]:443", seconds=60)
    box.operator("policy.allow", id=A, entry=".b.example", seconds=60)
    box.operator("policy.deny", id=A, entry="[2001:0db8:0::1]:443")
    assert box.operator("policy.deny", id=A, entry=".B.example")["grants"] == []
    with pytest.raises(NotFoundError, match="was not granted"):
        box.operator("policy.deny", id=A, entry="a.example")


@pytest.mark.parametrize(
    "entry", ["*", "*:443", "@python-packages", "http://x", "127.0.0.1", "169.254.169.254:80", "a..b", "x:0"]
)
def test_what_no_profile_could_hold_is_not_granted(box, entry):
    with pytest.raises(UsageError):
        box.operator("policy.allow", id=A, entry=entry, seconds=60)
    assert box.operator("policy.get", id=A)["grants"] == []


def test_a_grant_is_one_sandboxs_and_its_number_and_time_are_bounded(box, monkeypatch):
    box.running(B, plan_digest=box.get().plan_digest)
    box.operator("policy.allow", id=A, entry="b.example", seconds=60)
    assert box.operator("policy.get", id=B)["grants"] == []
    for seconds in (0, -1, 8 * 24 * 3600, True):
        with pytest.raises(UsageError):
            box.operator("policy.allow", id=A, entry="c.example", seconds=seconds)
    monkeypatch.setattr("km_embedded.policies.MAX_GRANTS", 1)
    with pytest.raises(GuardError, match="at most"):
        box.operator("policy.allow", id=A, entry="c.example", seconds=60)
    box.operator("policy.allow", id=A, entry="b.example", seconds=90)


def test_https_only_leaves_nothing_to_grant_at_port_80(bench):
    made = plan("a.example", network=NetworkPlan(https_only=True), git=GitPlan())
    bench.running(A, plan_digest=made.digest())
    bench.config.sandbox_dir(A).mkdir(parents=True)
    (bench.config.sandbox_dir(A) / "plan.json").write_text(made.to_json())
    with pytest.raises(GuardError, match="HTTPS only"):
        bench.operator("policy.allow", id=A, entry="b.example:80", seconds=60)


def test_no_credential_of_a_sandbox_can_record_a_change_of_policy(box):
    with pytest.raises(PolicyDenied):
        box.sandbox(A, "event", kind="policy_changed", detail={})


def test_the_version_tells_plans_and_grants_apart():
    from km_core.plan import Grant

    one, two = Grant("a", 1.0), Grant("b", 2.0)
    versions = {
        policy_version("d", ()),
        policy_version("d", (one,)),
        policy_version("d", (one, two)),
        policy_version("e", (one, two)),
        policy_version("d", (Grant("a", 2.0),)),
    }
    assert len(versions) == 5
    assert policy_version("d", (one, two)) == policy_version("d", (two, one))


class Supervisor:
    """A supervisor's socket whose gate answers what a test says."""

    def __init__(self, directory):
        self.asked = []
        self.refuses = []
        self._loop = asyncio.new_event_loop()
        ops = {
            "policy.check": Op(self._check, {"policy": nullable(mapping), "grants": listing(10)}),
            "policy.refresh": Op(self._refresh),
        }
        directory.mkdir(parents=True, mode=0o700)
        self._server = ControlServer(
            directory / "pod.sock", ops, uids={os.geteuid()}, log=lambda *_, **__: None
        )
        self._loop.run_until_complete(self._server.start())
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def _answer(self, what):
        self.asked.append(what)
        if self.refuses and self.refuses[0] == what:
            self.refuses.pop(0)
            raise GuardError(f"{what} is refused")

    def _check(self, _peer, policy, grants):
        self._answer("policy.check")
        return {"policy_version": "x"}

    def _refresh(self, _peer):
        self._answer("policy.refresh")
        return {"policy_version": "x", "grants": [], "cut": 3}

    def close(self):
        asyncio.run_coroutine_threadsafe(self._server.close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture
def supervisor(box):
    made = Supervisor(box.config.sandbox_runtime_dir(A))
    yield made
    made.close()


NEW_PROFILE = "spec:\n  network:\n    egress:\n      allowedDNSSuffixes:\n      - .b.example\n"
OLD_PROFILE = "spec:\n  network:\n    egress:\n      allowedDNSSuffixes: []\n"


@pytest.fixture
def session(box, monkeypatch):
    """A command's session on kmd, of a sandbox whose profile is `OLD_PROFILE`; files compile to b.example."""
    old, new = plan("a.example", text=OLD_PROFILE), plan("b.example", text=NEW_PROFILE)
    state_dir = box.config.sandbox_dir(A)
    (state_dir / "plan.json").write_text(old.to_json())
    (state_dir / "profile.yaml").write_text(OLD_PROFILE)
    box.operator("sandbox.update", id=A, changes={"plan_digest": old.digest()})
    monkeypatch.setattr(policy, "plan_from_file", lambda *_: Compiled(new, NEW_PROFILE, ()))
    control = SimpleNamespace(call=box.operator, close=lambda: None)
    return Session(box.config, SimpleNamespace(meters=dict), control)


def test_what_the_gate_cannot_take_over_is_rolled_back(box, session, supervisor):
    before = box.get().plan_digest
    supervisor.refuses = ["policy.refresh"]
    with pytest.raises(GuardError, match="refused"):
        policy.apply_policy(session, box.get(), "file")

    assert supervisor.asked == ["policy.check", "policy.refresh", "policy.refresh"]
    assert box.sandbox(A, "policy.current")["version"] == before
    assert (box.config.sandbox_dir(A) / "profile.yaml").read_text() == OLD_PROFILE
    chain = [(e["policy_before"], e["policy_after"]) for e in box.events(A) if e["kind"] == "policy_changed"]
    assert len(chain) == 2
    assert chain[0] == chain[1][::-1]

    found = policy.apply_policy(session, box.get(), "file")
    assert (found.in_force, found.cut) == (True, 3)
    stored = (box.config.sandbox_dir(A) / "profile.yaml").read_text()
    assert "b.example" in stored
    assert box.get().plan_digest != before


def test_a_gate_that_says_no_beforehand_leaves_no_trace(box, session, supervisor):
    supervisor.refuses = ["policy.check"]
    with pytest.raises(GuardError):
        policy.apply_policy(session, box.get(), "file")
    supervisor.refuses = ["policy.check"]
    with pytest.raises(GuardError):
        policy.allow_for(session, box.get(), "c.example", 60)
    assert "policy_changed" not in box.kinds(A)


def test_a_grant_that_the_gate_cannot_take_over_is_taken_back(box, session, supervisor):
    supervisor.refuses = ["policy.refresh"]
    with pytest.raises(GuardError):
        policy.allow_for(session, box.get(), "c.example", 60)
    assert box.operator("policy.get", id=A)["grants"] == []
    assert policy.allow_for(session, box.get(), "c.example", 60)["in_force"]
    assert policy.deny_again(session, box.get(), "C.example.")["cut"] == 3


def test_a_grant_that_could_not_be_renewed_is_open_for_what_was_left_of_its_time(box, session, supervisor):
    policy.allow_for(session, box.get(), "c.example", 600)
    before = box.operator("policy.get", id=A)["grants"][0]["expires_at"]
    supervisor.refuses = ["policy.refresh"]
    with pytest.raises(GuardError):
        policy.allow_for(session, box.get(), "C.example", 3600)
    [grant] = box.operator("policy.get", id=A)["grants"]
    assert grant["entry"] == "c.example"
    assert abs(grant["expires_at"] - before) < 30


def test_without_a_gate_the_policy_waits_for_one(box, session):
    box.operator("sandbox.update", id=A, changes={"state": "stopped"})
    found = policy.apply_policy(session, box.get(), "file")
    assert (found.in_force, found.before == found.after) == (False, False)
    assert not policy.allow_for(session, box.get(), "c.example", 60)["in_force"]


def test_nothing_changes_while_a_running_sandboxs_gate_cannot_be_asked(box, session, monkeypatch):
    """It might be a policy that no gate could follow; taking a grant back needs nobody's consent."""
    monkeypatch.setattr(policy, "GATE_RESTART_S", 0.3)
    for change in (
        lambda: policy.apply_policy(session, box.get(), "file"),
        lambda: policy.allow_for(session, box.get(), "c.example", 60),
    ):
        with pytest.raises(ControlUnavailableError, match="nobody can say"):
            change()
    assert "policy_changed" not in box.kinds(A)
    box.operator("policy.allow", id=A, entry="c.example", seconds=60)
    assert not policy.deny_again(session, box.get(), "c.example")["in_force"]


def test_a_gate_that_is_being_replaced_is_waited_for(box, session):
    record, made = box.get(), []
    starting = threading.Timer(0.6, lambda: made.append(Supervisor(box.config.sandbox_runtime_dir(A))))
    starting.start()
    try:
        assert policy.apply_policy(session, record, "file").in_force
    finally:
        starting.join()
        made[0].close()


@pytest.mark.parametrize(
    ("entry", "rule"),
    [
        ("localhost", "reserved-name"),
        ("a.km.internal", "reserved-name"),
        ("km.internal:443", "builtin:port"),
        ("api.mistral.ai", "unmetered-ai-host"),
        ("ssh.github.com:22", "git-host"),
    ],
)
def test_a_grant_that_would_open_nothing_is_refused_with_the_rule_that_holds(box, session, entry, rule):
    ruled = evolve(
        session.plan(box.get()),
        budget=BudgetPlan(ai_limit_nusd=1),
        git=GitPlan(mode="allowlist", repos=("a/b",)),
    )
    (box.config.sandbox_dir(A) / "plan.json").write_text(ruled.to_json())
    box.operator("sandbox.update", id=A, changes={"plan_digest": ruled.digest(), "state": "stopped"})
    with pytest.raises(GuardError, match="open nothing") as caught:
        policy.allow_for(session, box.get(), entry, 60)
    assert rule in caught.value.why
    assert "policy_changed" not in box.kinds(A)


def test_a_model_host_is_not_granted_to_a_sandbox_whose_gate_cannot_be_asked(box, session):
    box.operator("sandbox.update", id=A, changes={"state": "stopped"})
    session.plugins.meters = lambda: {"toy": SimpleNamespace(hosts=("api.toy.example",))}
    for entry in ("api.toy.example", ".toy.example"):
        with pytest.raises(GuardError, match="CA would have to be made"):
            policy.allow_for(session, box.get(), entry, 60)
    assert policy.allow_for(session, box.get(), "web.toy.example", 60)["grant"]["entry"] == "web.toy.example"


def test_every_field_that_cannot_change_live_is_named(box, session, monkeypatch):
    workload = WorkloadPlan(
        shell="/bin/zsh", working_dir="/w", env=(("A", "1"),), privileged=True, init_commands=("x",)
    )
    wanted = plan(
        "b.example", text=NEW_PROFILE, workload=workload, budget=BudgetPlan(1, 2, 0.5), labels=(("a", "b"),)
    )
    monkeypatch.setattr(policy, "plan_from_file", lambda *_: Compiled(wanted, NEW_PROFILE, ()))
    with pytest.raises(GuardError, match="more than the policy") as caught:
        policy.apply_policy(session, box.get(), "file")
    for path in (
        "spec.execution.shell",
        "spec.execution.workingDir",
        "spec.execution.env",
        "spec.execution.privileged",
        "spec.execution.initCommands",
        "spec.budget.ai.maxSpendUSD",
        "spec.budget.compute.maxSpendUSD",
        "spec.budget.warningThreshold",
        "metadata.labels",
    ):
        assert path in caught.value.why
    assert "policy_changed" not in box.kinds(A)


def test_a_profile_that_is_not_the_plans_is_not_changed(box, session):
    (box.config.sandbox_dir(A) / "profile.yaml").write_text("spec: {}\n")
    with pytest.raises(GuardError, match="not the one of the plan"):
        policy.apply_policy(session, box.get(), "file")


@pytest.mark.parametrize("carried_out", [False, True])
@pytest.mark.parametrize("op", ["policy.apply", "policy.allow", "policy.deny"])
def test_an_answer_that_a_dying_kmd_did_not_give_is_no_failure(box, session, supervisor, op, carried_out):
    """Carried out or not, what the command says is what counts."""
    lost = []

    def call(name, /, **args):
        if name == op and not lost:
            if carried_out:
                box.operator(name, **args)
            lost.append(name)
            raise ControlUnavailableError("the control plane does not answer")
        return box.operator(name, **args)

    offer = SimpleNamespace(connect=lambda _config: SimpleNamespace(call=call, close=lambda: None))
    session.plugins.control_planes = lambda: {session.config.control_plane: offer}
    session.close()
    box.operator("policy.allow", id=A, entry="kept.example", seconds=600)

    if op == "policy.apply":
        assert policy.apply_policy(session, box.get(), "file").in_force
        assert box.sandbox(A, "policy.current")["policy"]["network"]["hosts"][0]["pattern"] == "b.example"
    elif op == "policy.allow":
        assert policy.allow_for(session, box.get(), "c.example", 60)["grant"]["entry"] == "c.example"
    else:
        assert policy.deny_again(session, box.get(), "KEPT.example")["grants"] == []
    assert lost
    with pytest.raises(NotFoundError):
        policy.deny_again(session, box.get(), "never.example")
