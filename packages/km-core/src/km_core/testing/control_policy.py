"""Promises of a control plane about the policy of a living sandbox: C21 and C22."""

from __future__ import annotations

import hashlib
import time
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from km_core.errors import GuardError, KmError, NotFoundError, PolicyDenied, UsageError
from km_core.plan import HostRule, NetworkPlan, SandboxPlan, policy_data, policy_version
from km_core.testing.control_spending import plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.control.protocols import Control
    from km_core.testing.control_spending import Sandbox

PROFILE = "other: 1\n"


def other_plan() -> SandboxPlan:
    """Return the plan of the sandboxes here with one host opened."""
    digest = hashlib.sha256(PROFILE.encode()).hexdigest()
    network = NetworkPlan(hosts=(HostRule("b.example", "exact"),))
    return evolve(plan(), network=network, profile_digest=digest)


class PolicyPromises:
    """A mixin of `km_core.testing.control.ControlPlaneContract`, whose fixtures it uses."""

    def test_c21_a_policy_is_replaced_as_a_whole_and_nothing_else_is(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C21: a policy replaces that of the plan it was made for; the lease names it, nothing else changes."""
        sandbox = open_sandbox()
        control.call("sandbox.update", id=sandbox.id, changes={"state": "running"})
        old, new = plan(), other_plan()
        args: dict[str, Any] = {"id": sandbox.id, "policy": policy_data(new), "profile": PROFILE}
        for wrong in (
            {"expect": "0" * 64},
            {"expect": old.digest(), "profile": "x"},
            {"expect": old.digest(), "policy": {}},
            {
                "expect": old.digest(),
                "policy": policy_data(evolve(new, network=evolve(new.network, enforcement="ebpf"))),
            },
        ):
            with pytest.raises(KmError):
                control.call("policy.apply", **(args | wrong))
        assert sandbox.client.call("policy.current")["version"] == old.digest()
        control.call("policy.apply", expect=old.digest(), **args)
        assert sandbox.client.call("lease", holder="pod")["policy_version"] == new.digest()
        assert sandbox.client.call("policy.current") == {"version": new.digest(), "policy": policy_data(new)}
        assert control.call("sandbox.get", id=sandbox.id)["plan_digest"] == new.digest()
        with pytest.raises(GuardError):
            control.call("policy.apply", expect=old.digest(), **args)
        with pytest.raises(PolicyDenied):
            sandbox.client.call("event", kind="policy_changed", detail={})

    def test_c22_a_grant_is_one_sandboxs_until_it_is_taken_back(
        self, control: Control, open_sandbox: Callable[..., Sandbox]
    ) -> None:
        """C22: what is granted stands in its own sandbox's lease, in one spelling, until it ends or is taken back."""
        sandbox, other = open_sandbox(), open_sandbox()
        control.call("sandbox.update", id=sandbox.id, changes={"state": "running"})
        answer = control.call("policy.allow", id=sandbox.id, entry="B.Example.:443", seconds=60)
        leased = sandbox.client.call("lease", holder="pod")["grants"]
        assert leased == answer["grants"] == [answer["grant"]]
        assert answer["grant"]["entry"] == "b.example:443"
        assert other.client.call("lease", holder="pod")["grants"] == []
        assert answer["policy_version"] != policy_version(plan().digest(), ())
        for entry in ("*", "@python-packages", "127.0.0.1", "http://b.example"):
            with pytest.raises(UsageError):
                control.call("policy.allow", id=sandbox.id, entry=entry, seconds=60)
        with pytest.raises(UsageError):
            control.call("policy.allow", id=sandbox.id, entry="c.example", seconds=0)
        short = control.call("policy.allow", id=sandbox.id, entry="c.example", seconds=1)["grant"]
        assert abs(short["expires_at"] - time.time()) < 60
        time.sleep(max(short["expires_at"] - time.time(), 0) + 0.05)
        assert sandbox.client.call("lease", holder="pod")["grants"] == leased
        assert control.call("policy.deny", id=sandbox.id, entry="b.EXAMPLE:443")["grants"] == []
        assert sandbox.client.call("lease", holder="pod")["grants"] == []
        with pytest.raises(NotFoundError):
            control.call("policy.deny", id=sandbox.id, entry="b.example:443")
