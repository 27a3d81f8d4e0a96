"""The part of a plan that may change while its sandbox runs: where it may go, and which repositories."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from km_core.plan.plan import GitPlan, NetworkPlan, SandboxPlan

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class Grant:
    """
    A way out for a limited time, beside the profile.

    Attributes:
        entry: as in ``allowedHosts``: a name or address, with a port or without.
        expires_at: Unix seconds after which it opens nothing.
    """

    entry: str
    expires_at: float

    @property
    def source(self) -> str:
        """What verdicts call it."""
        return f"km allow {self.entry}"

    def to_data(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {"entry": self.entry, "expires_at": self.expires_at}

    @classmethod
    def from_data(cls, data: Any) -> Grant:
        """Rebuild from `to_data`; raises `ValueError` for anything else."""
        if not isinstance(data, dict) or set(data) != {"entry", "expires_at"}:
            raise ValueError("a grant has an entry and a time")
        entry, ends = data["entry"], data["expires_at"]
        if not isinstance(entry, str) or isinstance(ends, bool) or not isinstance(ends, int | float):
            raise ValueError("a grant has an entry and a time")  # noqa: TRY004 - callers catch one kind
        return cls(entry, float(ends))


def policy_data(plan: SandboxPlan) -> dict[str, Any]:
    """Return the part that may change as plain JSON data, for `with_policy`."""
    data = plan.to_data()
    return {name: data[name] for name in ("network", "git", "profile_digest")}


def with_policy(plan: SandboxPlan, data: Any) -> SandboxPlan:
    """
    Return *plan* with another policy.

    Args:
        plan: the plan.
        data: from `policy_data` of another plan.

    Raises:
        PlanError: the data is no policy, or names another enforcement than the sandbox was built with.
    """
    import cattrs

    from km_core.errors import PlanError

    try:
        if set(data) != {"network", "git", "profile_digest"}:
            raise ValueError("a policy has network, git and profile_digest")
        converter = cattrs.Converter(forbid_extra_keys=True)
        network = converter.structure(data["network"], NetworkPlan)
        git = converter.structure(data["git"], GitPlan)
        digest = str(data["profile_digest"])
    except Exception as error:
        raise PlanError("the policy is damaged", why=str(error)) from error
    if network.enforcement != plan.network.enforcement:
        raise PlanError(
            "enforcement cannot change while a sandbox lives",
            where="spec.network.enforcement",
            why=f"{plan.network.enforcement} -> {network.enforcement}",
            hint="create another sandbox",
        )
    return evolve(plan, network=network, git=git, profile_digest=digest)


def policy_version(plan_digest: str, grants: Sequence[Grant]) -> str:
    """Return what names the policy in force: the plan's digest, or one over it and the grants."""
    if not grants:
        return plan_digest
    listed = sorted((grant.entry, grant.expires_at) for grant in grants)
    return hashlib.sha256(json.dumps([plan_digest, listed]).encode()).hexdigest()
