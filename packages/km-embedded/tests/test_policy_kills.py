"""kmd is killed at every single step of a change of policy: what stands is the old policy or the new one."""

from __future__ import annotations

import base64
import hashlib
import itertools
import os
import signal
import sys
import warnings

import pytest

from km_core.audit import verify_dir
from km_core.plan import HostRule, NetworkPlan, SandboxPlan, policy_data
from km_core.types import SandboxState
from km_embedded.liveness import boot_id

A = "sb-0000000a"
TEXTS = ("old: 1\n", "new: 1\n", "third: 1\n")
LASTING = frozenset(
    {"write", "pwrite", "fsync", "fdatasync", "rename", "replace", "open", "execute", "unlink", "ftruncate"}
)
"""C functions after whose n-th call the process is killed: whatever lasts is done by one of them."""


def plan(number):
    return SandboxPlan(
        profile="p",
        profile_digest=hashlib.sha256(TEXTS[number].encode()).hexdigest(),
        prefix="sb",
        substrate="local",
        network=NetworkPlan(hosts=(HostRule(f"n{number}.example", "exact"),)),
    )


def apply(bench, number):
    return bench.operator(
        "policy.apply",
        id=A,
        policy=policy_data(plan(number)),
        profile=TEXTS[number],
        expect=bench.get(A).plan_digest,
    )


CHANGES = {
    "apply": lambda bench: apply(bench, 1),
    "allow": lambda bench: bench.operator("policy.allow", id=A, entry="g.example", seconds=60),
    "deny": lambda bench: bench.operator("policy.deny", id=A, entry="kept.example"),
}


@pytest.fixture
def box(bench):
    bench.running(A, plan_digest=plan(0).digest(), boot_id=boot_id())
    state_dir = bench.config.sandbox_dir(A)
    state_dir.mkdir(parents=True)
    (state_dir / "plan.json").write_text(plan(0).to_json())
    (state_dir / "profile.yaml").write_text(TEXTS[0])
    return bench


def killed_after(bench, change, count):
    """Carry out a change in a process that dies after so many lasting calls; True when it came to its end."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside threads that do nothing
        child = os.fork()
    if child == 0:
        left = count

        def watch(_frame, event, function):
            nonlocal left
            if event == "c_return" and getattr(function, "__name__", "") in LASTING:
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        try:
            bench.start()
            sys.setprofile(watch)
            change(bench)
            sys.setprofile(None)
            os._exit(0)
        except BaseException:
            os._exit(9)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0
    return True


def standing(bench):
    """Return what counts, as a gate and as the operator see it."""
    current = bench.sandbox(A, "policy.current")
    lease = bench.sandbox(A, "lease", holder="gate")
    assert current["version"] == lease["policy_version"] == bench.get(A).plan_digest
    shown = bench.operator("policy.get", id=A)
    assert shown["grants"] == lease["grants"]
    host = current["policy"]["network"]["hosts"][0]["pattern"]
    return host, tuple(grant["entry"] for grant in lease["grants"])


OUTCOMES = {
    "apply": {("n0.example", ("kept.example",)), ("n1.example", ("kept.example",))},
    "allow": {("n0.example", ("kept.example",)), ("n0.example", ("g.example", "kept.example"))},
    "deny": {("n0.example", ("kept.example",)), ("n0.example", ())},
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_kill_at_any_step_leaves_the_old_policy_or_the_new_one_and_whole_evidence(box, what):
    seen, count, done = set(), 0, False
    while not done:
        count += 1
        # From the same beginning each time.
        digest = box.get(A).plan_digest
        if digest != plan(0).digest():
            apply(box, 0)
        for grant in box.operator("policy.get", id=A)["grants"]:
            box.operator("policy.deny", id=A, entry=grant["entry"])
        box.operator("policy.allow", id=A, entry="kept.example", seconds=600)
        box.stop()
        done = killed_after(box, CHANGES[what], count)
        box.start()
        box.tick()
        seen.add(standing(box))
        assert seen <= OUTCOMES[what]
        # What was left behind does not stand in the way.
        assert box.get(A).state is SandboxState.RUNNING
        apply(box, 2)
        assert standing(box)[0] == "n2.example"
        assert count < 200
    assert seen == OUTCOMES[what]
    assert count > 5, "too few steps were seen for a change that lasts"
    box.operator("audit.checkpoint", id=A)
    key = (box.config.home / "checkpoint.pub").read_text()
    report = verify_dir(box.config.audit_dir(A), base64.b64decode(key))
    assert report.ok, report.findings
    changes = [event for event in box.events(A) if event["kind"] == "policy_changed"]
    # Each change begins where the one before ended: none was lost, none told twice.
    for before, after in itertools.pairwise(changes):
        assert after["policy_before"] == before["policy_after"]
