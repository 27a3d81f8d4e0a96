"""Policies of living sandboxes in `km_core.testing.fake_control`."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core.compile.grant import grant_entry
from km_core.control.ops import Op, Peer, mapping, number, text
from km_core.errors import GuardError, NotFoundError, UsageError
from km_core.lifecycle.plan_file import read_plan, take_next, write_next
from km_core.plan import Grant, policy_data, policy_version, with_policy
from km_core.policy import NetworkPolicy

if TYPE_CHECKING:
    from km_core.testing.fake_control import FakeControlPlane

_ID, _ENTRY = text(longest=64), text(longest=512)
_LONGEST_S = 7 * 24 * 3600


class FakePolicies:
    """
    One method per operation.

    Args:
        plane: keeps the grants in its state.
    """

    def __init__(self, plane: FakeControlPlane) -> None:
        self._plane = plane

    def table(self) -> dict[str, Op]:
        """Return the operator's operations."""
        apply = {"id": _ID, "policy": mapping, "profile": text(longest=1 << 20), "expect": text(longest=64)}
        allow = {"id": _ID, "entry": _ENTRY, "seconds": number(1, _LONGEST_S)}
        return {
            "policy.get": Op(lambda _peer, id: self.show(id), {"id": _ID}),  # noqa: A006 - the wire's word
            "policy.apply": Op(self._apply, apply),
            "policy.allow": Op(self._allow, allow),
            "policy.deny": Op(self._deny, {"id": _ID, "entry": _ENTRY}),
        }

    def grants(self, sandbox_id: str) -> list[Grant]:
        """Return what is granted and has not ended."""
        kept: dict[str, float] = self._plane.entry(sandbox_id).setdefault("grants", {})
        now = self._plane.clock()
        return [Grant(entry, ends) for entry, ends in sorted(kept.items()) if now < ends]

    def current(self, sandbox_id: str) -> dict[str, Any]:
        """Return the plan's policy."""
        digest = self._plane.record(sandbox_id).plan_digest
        plan = read_plan(self._plane.config.sandbox_dir(sandbox_id), digest)
        return {"version": digest, "policy": policy_data(plan)}

    def show(self, sandbox_id: str) -> dict[str, Any]:
        """Return which policy counts."""
        digest, grants = self._plane.record(sandbox_id).plan_digest, self.grants(sandbox_id)
        return {
            "plan_digest": digest,
            "policy_version": policy_version(digest, grants),
            "grants": [grant.to_data() for grant in grants],
        }

    def _apply(
        self,
        _peer: Peer,
        id: str,  # noqa: A002 - the wire's word
        policy: dict[str, Any],
        profile: str,
        expect: str,
    ) -> dict[str, Any]:
        record = self._plane.record(id)
        if record.plan_digest != expect:
            raise GuardError("the sandbox's plan has changed meanwhile", where=id)
        state_dir = self._plane.config.sandbox_dir(id)
        new = with_policy(read_plan(state_dir, expect), policy)
        if hashlib.sha256(profile.encode()).hexdigest() != new.profile_digest:
            raise UsageError("the profile is not the one of the policy", where=id)
        NetworkPolicy.from_plan(new.network, ai_ceiling=new.budget.ai_limit_nusd is not None)
        before = self.show(id)["policy_version"]
        write_next(state_dir, new, profile)
        self._plane.store(record, evolve(record, plan_digest=new.digest()))
        self._plane.emit(id, "policy_changed", {"cause": "apply"})
        take_next(state_dir, new)
        after = self.show(id)["policy_version"]
        return {"before": before, "after": after, "plan_digest": new.digest()}

    def _allow(self, _peer: Peer, id: str, entry: str, seconds: float) -> dict[str, Any]:  # noqa: A002 - the wire's word
        grant = Grant(grant_entry(entry), self._plane.clock() + seconds)
        self._plane.entry(id).setdefault("grants", {})[grant.entry] = grant.expires_at
        self._plane.emit(id, "policy_changed", {"cause": "allow", **grant.to_data()})
        return {"grant": grant.to_data(), **self.show(id)}

    def _deny(self, _peer: Peer, id: str, entry: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        canonical = grant_entry(entry)
        if canonical not in {grant.entry for grant in self.grants(id)}:
            raise NotFoundError(f"{canonical} was not granted", where=id)
        del self._plane.entry(id)["grants"][canonical]
        self._plane.emit(id, "policy_changed", {"cause": "deny", "entry": canonical})
        return self.show(id)
