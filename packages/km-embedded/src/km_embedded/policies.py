"""
Policies of living sandboxes: a plan's replacement, and grants for a limited time.

kmd keeps what is in force and tells it to gates with their lease; a gate whose policy is another one gets
no lease to work with until it has taken this one over (docs/internals.md).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from km_core.compile.grant import grant_entry
from km_core.errors import GuardError, KmError, NotFoundError, UsageError
from km_core.lifecycle.plan_file import read_plan, take_next, write_next
from km_core.plan import Grant, policy_data, policy_version, with_policy
from km_core.policy import NetworkPolicy, with_grants
from km_core.types import SandboxState
from km_embedded.changes import update

if TYPE_CHECKING:
    from km_core.types import SandboxRecord
    from km_embedded.service import Service

MAX_GRANTS = 256
MAX_GRANT_S = 7 * 24 * 3600
"""Longest grant in seconds; what is needed for longer belongs into a profile."""
CHANGED = "policy_changed"
_UNSETTLED = frozenset({SandboxState.CREATING, SandboxState.DESTROYING})


class Policies:
    """
    The policies of every sandbox.

    Args:
        service: the parts of kmd.
    """

    def __init__(self, service: Service) -> None:
        self._service = service

    def grants(self, sandbox_id: str) -> tuple[Grant, ...]:
        """Return the grants that have not expired, by entry."""
        rows = self._service.db.all(
            "SELECT entry, expires_at FROM grants WHERE sandbox_id = ? AND expires_at > ? ORDER BY entry",
            (sandbox_id, self._service.clock()),
        )
        return tuple(Grant(row["entry"], float(row["expires_at"])) for row in rows)

    def show(self, sandbox_id: str) -> dict[str, Any]:
        """Return what is in force: the plan's digest, the grants, and the version of both together."""
        record = self._service.records.get(sandbox_id)
        grants = self.grants(sandbox_id)
        return {
            "plan_digest": record.plan_digest,
            "policy_version": policy_version(record.plan_digest, grants),
            "grants": [grant.to_data() for grant in grants],
        }

    def current(self, sandbox_id: str) -> dict[str, Any]:
        """Return the plan's policy for a gate: ``{version, policy}``."""
        record = self._service.records.get(sandbox_id)
        plan = read_plan(self._service.config.sandbox_dir(sandbox_id), record.plan_digest)
        return {"version": record.plan_digest, "policy": policy_data(plan)}

    def apply(self, sandbox_id: str, policy: dict[str, Any], profile: str, expect: str) -> dict[str, Any]:
        """
        Replace the policy of a sandbox's plan.

        Args:
            sandbox_id: whose.
            policy: from `policy_data`.
            profile: the effective profile it was made from; its SHA-256 is the policy's profile digest.
            expect: digest of the plan it is meant to replace.

        Raises:
            GuardError: the sandbox has another plan meanwhile, or is being created or destroyed.
            PlanError: the policy is none, or changes the enforcement.
        """
        service = self._service
        record = self._settled(sandbox_id)
        if record.plan_digest != expect:
            raise GuardError(
                "the sandbox's plan has changed meanwhile", where=sandbox_id, hint="look again with --dry-run"
            )
        state_dir = service.config.sandbox_dir(sandbox_id)
        old = read_plan(state_dir, record.plan_digest)
        new = with_policy(old, policy)
        if hashlib.sha256(profile.encode()).hexdigest() != new.profile_digest:
            raise UsageError("the profile is not the one of the policy", where=sandbox_id)
        NetworkPolicy.from_plan(new.network, ai_ceiling=new.budget.ai_limit_nusd is not None)
        before = self.show(sandbox_id)["policy_version"]
        digest = new.digest()
        if digest == record.plan_digest:
            return {"before": before, "after": before, "plan_digest": digest}
        write_next(state_dir, new, profile)
        with service.act(sandbox_id):
            update(
                service.records,
                service.evidence.emit,
                sandbox_id,
                {"plan_digest": digest},
                now=service.clock(),
                expect={"plan_digest": expect},
            )
            after = self._emit(sandbox_id, before, {"cause": "apply", "plan_digest": digest})
        take_next(state_dir, new)
        return {"before": before, "after": after, "plan_digest": digest}

    def grant(self, sandbox_id: str, entry: str, seconds: float) -> dict[str, Any]:
        """
        Open an entry for *seconds* from now; one that is open gets the new time.

        Raises:
            UsageError: no entry that may be granted.
            GuardError: too many, or under ``httpsOnly`` one that opens nothing.
        """
        service = self._service
        record = self._settled(sandbox_id)
        now = service.clock()
        grant = Grant(grant_entry(entry), round(now + seconds, 3))
        plan = read_plan(service.config.sandbox_dir(sandbox_id), record.plan_digest)
        if plan.network.https_only and grant.entry.endswith(":80"):
            raise GuardError("the profile allows HTTPS only, so port 80 stays closed", where=grant.entry)
        NetworkPolicy.from_plan(with_grants(plan.network, [grant], now=now))
        known = self.grants(sandbox_id)
        if len(known) >= MAX_GRANTS and grant.entry not in {one.entry for one in known}:
            raise GuardError(f"a sandbox has at most {MAX_GRANTS} grants", where=sandbox_id)
        before = policy_version(record.plan_digest, known)
        with service.act(sandbox_id):
            service.db.run(
                "INSERT OR REPLACE INTO grants VALUES (?, ?, ?, ?)",
                (sandbox_id, grant.entry, grant.expires_at, now),
            )
            self._emit(sandbox_id, before, {"cause": "allow", **grant.to_data()})
        return {"grant": grant.to_data(), **self.show(sandbox_id)}

    def revoke(self, sandbox_id: str, entry: str) -> dict[str, Any]:
        """Take a grant back; raises `NotFoundError` when there is none of this entry."""
        service = self._service
        record = service.records.get(sandbox_id)
        canonical = grant_entry(entry)
        known = self.grants(sandbox_id)
        if canonical not in {grant.entry for grant in known}:
            raise NotFoundError(
                f"{canonical} was not granted",
                where=sandbox_id,
                hint="km allow REF --list shows what was; rules of the profile change with km policy apply",
            )
        before = policy_version(record.plan_digest, known)
        with service.act(sandbox_id):
            service.db.run("DELETE FROM grants WHERE sandbox_id = ? AND entry = ?", (sandbox_id, canonical))
            self._emit(sandbox_id, before, {"cause": "deny", "entry": canonical})
        return self.show(sandbox_id)

    def expire(self) -> None:
        """Remove what has expired, with a record of each; gates have closed it by themselves."""
        service = self._service
        rows = service.db.all("SELECT * FROM grants WHERE expires_at <= ? ORDER BY entry", (service.clock(),))
        ended: dict[str, list[Grant]] = {}
        for row in rows:
            ended.setdefault(row["sandbox_id"], []).append(Grant(row["entry"], float(row["expires_at"])))
        failure: KmError | None = None
        for sandbox_id, gone in ended.items():
            try:
                self._end(sandbox_id, gone)
            except KmError as error:
                # One sandbox's evidence that cannot be written keeps no other's grants.
                failure = failure or error
        if failure is not None:
            raise failure

    def _end(self, sandbox_id: str, gone: list[Grant]) -> None:
        service = self._service
        digest = service.records.get(sandbox_id).plan_digest
        before = policy_version(digest, (*self.grants(sandbox_id), *gone))
        with service.act(sandbox_id):
            for grant in gone:
                service.db.run(
                    "DELETE FROM grants WHERE sandbox_id = ? AND entry = ?", (sandbox_id, grant.entry)
                )
                self._emit(sandbox_id, before, {"cause": "expired", **grant.to_data()})

    def _emit(self, sandbox_id: str, before: str, detail: dict[str, Any]) -> str:
        after = str(self.show(sandbox_id)["policy_version"])
        self._service.evidence.emit(
            sandbox_id, CHANGED, {"policy_before": before, "policy_after": after, **detail}
        )
        return after

    def _settled(self, sandbox_id: str) -> SandboxRecord:
        record = self._service.records.get(sandbox_id)
        if record.state in _UNSETTLED:
            raise GuardError(f"the policy of a {record.state} sandbox does not change", where=sandbox_id)
        return record
