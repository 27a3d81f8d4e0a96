"""
The policy in force, and its change while connections are open.

The control plane says with each lease which plan and which grants count; what is new is taken over before
the lease does.  A change is made between two events of the loop: no connection sees half of it.  What it
no longer allows is cut, what it allows goes on untouched.
"""

from __future__ import annotations

import ipaddress
import time
from typing import TYPE_CHECKING, Any

import structlog
from attrs import frozen

from km_core.errors import AuditError, ControlUnavailableError, GuardError, KmError, PlanError
from km_core.plan import Grant, policy_version, with_policy
from km_core.policy import NetworkPolicy, parse_address, with_grants
from km_core.policy.aws import AwsGuard
from km_core.policy.github import GIT_HOSTS
from km_core.secrets import AwsAccess
from km_net_proxy.lease import boot_time

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from km_core.plan import SandboxPlan
    from km_core.secrets import CredentialRule
    from km_core.types import InjectionRule, Meter
    from km_net_proxy.http.ca import Authority
    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.credentials import Control


@frozen
class Rules:
    """
    A plan and its grants, compiled.

    Attributes:
        policy: what may be reached.
        meters: by host, for hosts that are reached at all.
        opened: hosts whose TLS is opened, for a meter, a credential or repository rules.
        own_allowed: addresses that are named one by one: only these may be the gate's own host.
        injections: the operator's rules for credentials, by host.
        aws: judges requests to AWS by their signature.
    """

    policy: NetworkPolicy
    meters: Mapping[str, Meter]
    opened: frozenset[str]
    own_allowed: frozenset[str]
    injections: Mapping[str, InjectionRule]
    aws: AwsGuard

    def opens(self, name: str) -> bool:
        """Whether TLS to a canonical name is opened."""
        return name in self.opened or name in self.injections or self.aws.covers(name)


def compile_rules(
    plan: SandboxPlan,
    *,
    private_hosts: Sequence[tuple[str, str]],
    owned: Mapping[str, Meter],
    credentials: Sequence[CredentialRule] = (),
    aws: AwsAccess | None = None,
    grants: Sequence[Grant] = (),
    now: float = 0.0,
) -> Rules:
    """
    Compile a plan.

    Args:
        plan: the plan.
        private_hosts: ``(host, CIDR)`` exceptions of the operator.
        owned: every host that a meter owns, with its meter.
        credentials: the operator's rules for credentials.
        aws: whose requests to AWS pass; None for nobody's.
        grants: what is open beside the plan.
        now: Unix seconds; grants that ended by then open nothing.

    Raises:
        PlanError: a rule or a grant is not valid.
    """
    try:
        network = with_grants(plan.network, grants, now=now)
    except ValueError as error:
        raise PlanError("a grant is not valid", why=str(error)) from error
    policy = NetworkPolicy.from_plan(
        network,
        ai_ceiling=plan.budget.ai_limit_nusd is not None,
        private_hosts=private_hosts,
        metered_hosts=tuple(owned),
        git=plan.git,
    )
    # On whatever port the profile opens a model host: one that is passed on unopened is not metered.
    meters = {host: meter for host, meter in owned.items() if policy.name(host).allow}
    injections = {rule.host: rule.injection for rule in credentials}
    injected = (host for host in injections if policy.name(host).allow)
    guard = AwsGuard(
        network.hosts,
        AwsAccess() if aws is None else aws,
        git=policy.git is not None,
        regions=network.aws_regions,
    )
    opened = frozenset({*meters, *(GIT_HOSTS if policy.git is not None else ()), *injected, *guard.subtrees})
    cidrs = [rule.cidr for rule in network.addresses] + [cidr for _, cidr in private_hosts]
    networks = [ipaddress.ip_network(cidr) for cidr in cidrs]
    own = frozenset(str(n.network_address) for n in networks if n.prefixlen == n.max_prefixlen)
    return Rules(policy, meters, opened, own, injections, guard)


def require_signing(rules: Rules, authority: Authority) -> None:
    """
    Raise unless the sandbox's CA may sign for every host that has to be opened.

    The sandbox trusts the CA that it was started with, whose name constraints cannot change under it.

    Raises:
        GuardError: it may not.
    """
    missing = sorted(host for host in rules.opened if not authority.signs_for(host))
    if missing:
        raise GuardError(
            "the policy needs hosts opened that the sandbox's CA was not made for",
            where=", ".join(missing[:3]) + (" ..." if len(missing) > 3 else ""),
            hint="change it between km stop and km resume, which makes the CA anew",
        )


class LivePolicy:
    """
    What counts now.

    Args:
        plan: of the bootstrap.
        control: the sandbox's connection to the control plane.
        compile_plan: compiles a plan with grants at a time; `compile_rules` with the rest bound.
        install: puts rules into force; called with them, the version before and the version after, and
            returns how many connections it cut.
        distrust: called when nobody can say what is allowed: it cuts every connection.
        clock: Unix seconds.
        elapsed: seconds that only grow, also while the host sleeps.

    Attributes:
        cut: connections that the last change cut.
    """

    def __init__(
        self,
        plan: SandboxPlan,
        control: Control,
        *,
        compile_plan: Callable[[SandboxPlan, Sequence[Grant], float], Rules],
        install: Callable[[Rules, str, str], int],
        distrust: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.time,
        elapsed: Callable[[], float] = boot_time,
    ) -> None:
        self._plan = plan
        self._digest = plan.digest()
        self._grants: tuple[Grant, ...] = ()
        self._control = control
        self._compile = compile_plan
        self._install = install
        self._distrust = distrust
        self._clock = clock
        self._elapsed = elapsed
        # When each grant ends by a clock that nobody sets back.
        self._ends: dict[Grant, float] = {}
        self._log = structlog.get_logger("km.gate.policy")
        self.cut = 0

    @property
    def version(self) -> str:
        """The version of the plan and the grants in force (`policy_version`)."""
        return policy_version(self._digest, self._grants)

    def describe(self) -> dict[str, Any]:
        """Return ``{policy_version, grants, cut}``."""
        grants = [grant.to_data() for grant in self._grants]
        return {"policy_version": self.version, "grants": grants, "cut": self.cut}

    def check(self, policy: Any, grants: Any) -> dict[str, Any]:
        """
        Say whether a policy could be taken over now; changes nothing.

        Raises:
            KmError: why not.
        """
        plan = self._plan if policy is None else with_policy(self._plan, policy)
        listed = _grants(grants)
        self._compile(plan, listed, self._clock())
        return {"policy_version": policy_version(plan.digest(), listed)}

    async def follow(self, version: str, grants: Any) -> None:
        """
        Take over what a lease names, when it is not what counts already.

        Args:
            version: digest of the plan; empty when the control plane has none for this sandbox.
            grants: as the lease has them.

        Raises:
            KmError: it cannot be taken over, or its change cannot be recorded.
        """
        try:
            await self._follow(version, _grants(grants))
        except (AuditError, ControlUnavailableError):
            raise
        except Exception:
            # The policy has changed to one that cannot be read: what is open may not be allowed any more.
            self._distrust()
            raise

    async def _follow(self, version: str, leased: Sequence[Grant]) -> None:
        plan, digest = self._plan, self._digest
        if version not in {"", digest}:
            answer = await self._control.call("policy.current")
            try:
                digest = str(answer["version"])
                plan = with_policy(self._plan, answer["policy"])
            except (KeyError, TypeError) as error:
                raise PlanError("the control plane's policy cannot be read") from error
            if plan.digest() != digest:
                raise PlanError("the control plane's policy is of another sandbox's plan")
        self._ends = {grant: self._end_of(grant) for grant in leased}
        listed = self._alive(leased)
        if digest != self._digest or listed != self._grants:
            self._change(plan, digest, listed)

    def expire(self) -> None:
        """
        Close grants whose time is over; call it a few times a second.

        Raises:
            AuditError: it cannot be recorded.  What used them is cut; the caller lets nothing new begin
                until the next lease has been taken over.
        """
        if self._grants:
            alive = self._alive(self._grants)
            if alive != self._grants:
                self._change(self._plan, self._digest, alive)

    def _end_of(self, grant: Grant) -> float:
        known = self._ends.get(grant)
        return self._elapsed() + grant.expires_at - self._clock() if known is None else known

    def _alive(self, grants: Sequence[Grant]) -> tuple[Grant, ...]:
        now, elapsed = self._clock(), self._elapsed()
        return tuple(
            grant for grant in grants if now < grant.expires_at and elapsed < self._ends.get(grant, elapsed)
        )

    def _change(self, plan: SandboxPlan, digest: str, grants: tuple[Grant, ...]) -> None:
        rules = self._servable(plan, grants)
        before, after = self.version, policy_version(digest, grants)
        self.cut = self._install(rules, before, after)
        self._plan, self._digest, self._grants = plan, digest, grants
        self._log.info("policy_changed", policy_before=before, policy_after=after, cut=self.cut)

    def _servable(self, plan: SandboxPlan, grants: Sequence[Grant]) -> Rules:
        """
        Compile a plan with those grants that this gate can serve.

        A grant given while no gate ran could not be checked by one.  It only ever opens: left out, it
        leaves its host closed and the rest of the policy as it is.
        """
        now = self._clock()
        try:
            return self._compile(plan, grants, now)
        except KmError:
            if not grants:
                raise
        served = [grant for grant in grants if self._serves(plan, grant, now)]
        return self._compile(plan, served, now)

    def _serves(self, plan: SandboxPlan, grant: Grant, now: float) -> bool:
        try:
            self._compile(plan, (grant,), now)
        except KmError as error:
            self._log.warning("grant_not_opened", entry=grant.entry, error=str(error))
            return False
        return True


def still_allowed(connection: Connection, rules: Rules, *, same_git: bool, judge_peer: bool) -> bool:
    """
    Say whether an open connection may go on under *rules*.

    Args:
        connection: one with or without a destination; the inside API and DNS have none.
        rules: the new ones.
        same_git: whether the repository rules are what they were; else what is under way with a host
            they hold for may be of a repository that is closed now, which its connection does not say.
        judge_peer: whether the address it was dialled at was judged, and is again.
    """
    goal = connection.destination
    if goal is None:
        return True
    if goal.address is not None and not rules.policy.address(goal.address, goal.port).allow:
        return False
    if not goal.name:
        return True
    if not rules.policy.connect(goal.name, goal.port).allow:
        return False
    if connection.unopened and rules.opens(goal.name):
        return False
    if not same_git and goal.name in GIT_HOSTS:
        return False
    if not judge_peer or not connection.peer or goal.address is not None:
        return True
    peer = parse_address(connection.peer.rpartition(":")[0].strip("[]"))
    return peer is None or rules.policy.resolved(goal.name, peer, goal.port).allow


def _grants(data: Any) -> tuple[Grant, ...]:
    if not isinstance(data, list | tuple):
        raise PlanError("the control plane's grants cannot be read")
    try:
        return tuple(Grant.from_data(item) for item in data)
    except ValueError as error:
        raise PlanError("the control plane's grants cannot be read", why=str(error)) from error
