"""
Which secrets a sandbox may be given: those of hosts that its plan lets it reach.

A gate asks by name; a name that nothing puts on an allowed host is not handed out, whatever the gate
asks for, so that a gate that was taken over holds no more than its own sandbox needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.lifecycle.plan_file import read_plan
from km_core.plan import SandboxPlan
from km_core.policy import NetworkPolicy
from km_core.policy.github import GITHUB_SECRET

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from km_core.config import Config
    from km_core.secrets import CredentialRule
    from km_core.types import Meter, SandboxRecord

HTTPS = 443


def installed_meters() -> tuple[Meter, ...]:
    """Return the meters of the installed plugins."""
    from km_core.plugins import load_plugins

    return tuple(load_plugins().meters().values())


class PlanSecrets:
    """
    Answers which secret names a plan calls for; called with the plan's data.

    Args:
        meters: returns the meters; asked once.
        rules: returns the operator's rules for credentials; asked each time.
    """

    def __init__(
        self,
        meters: Callable[[], Iterable[Meter]] = installed_meters,
        rules: Callable[[], Iterable[CredentialRule]] = tuple,
    ) -> None:
        self._meters = meters
        self._rules = rules
        self._wanted: tuple[tuple[str, str], ...] | None = None

    def __call__(self, plan_data: dict[str, Any]) -> set[str]:
        """Return the names; raises `PlanError` for data that is no plan."""
        if self._wanted is None:
            self._wanted = tuple(
                (host, meter.injection.secret)
                for meter in self._meters()
                if meter.injection is not None
                for host in meter.hosts
            )
        rules = {rule.host: rule.secret for rule in self._rules()}
        plan = SandboxPlan.from_data(plan_data)
        policy = NetworkPolicy.from_plan(
            plan.network,
            ai_ceiling=plan.budget.ai_limit_nusd is not None,
            metered_hosts=tuple(host for host, _ in self._wanted),
            git=plan.git,
        )
        github = set() if policy.git is None else {GITHUB_SECRET}
        # A rule outweighs what the meter of its host says.
        wanted = {**dict(self._wanted), **rules}
        return github | {secret for host, secret in wanted.items() if policy.connect(host, HTTPS).allow}


def stored_plan(config: Config, record: SandboxRecord) -> dict[str, Any]:
    """
    Return the data of a sandbox's stored plan.

    Raises:
        PlanError: there is none, or it cannot be read.
        GuardError: it is not the plan that the record was made with.
    """
    return read_plan(config.sandbox_dir(record.id), record.plan_digest).to_data()
