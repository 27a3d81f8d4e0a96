"""Changing the policy of a living sandbox: all of it or nothing, and only the policy."""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import math
import time
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from km_core.compile.diff import PlanDiff, diff_plans
from km_core.compile.grant import grant_entry
from km_core.compile.load import load_document
from km_core.compile.pipeline import Overrides, effective_text, plan_from_file
from km_core.control.rpc import ControlClient
from km_core.errors import ControlUnavailableError, GuardError, KmError, NotFoundError, PlanError
from km_core.lifecycle.interrupts import CLEANING, undisturbed
from km_core.lifecycle.locks import exclusive
from km_core.lifecycle.plan_file import DAMAGED, PROFILE
from km_core.plan import Grant, HostRule, policy_data
from km_core.policy import NetworkPolicy, with_grants
from km_core.policy.grants import grant_rule
from km_core.policy.network import WEB_PORTS
from km_core.types import SandboxState

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.compile.diff import Change
    from km_core.lifecycle.session import Session
    from km_core.plan import SandboxPlan
    from km_core.types import SandboxRecord

GATE_TIMEOUT_S = 30.0
GATE_RESTART_S = 5.0
"""How long a running sandbox's gate may be gone, in seconds, before nothing is changed."""
_AGAIN_S = 0.2
_SECTIONS = ("network", "sourceAccess")


@frozen
class Applied:
    """
    What `apply_policy` did, or would do.

    Attributes:
        before: version of the policy that counted.
        after: version of the new one; the same when there is nothing to change.
        diff: what the new one loosens and tightens.
        in_force: whether the gate has taken it over; False when none answers, which takes it over with its
            next lease or at its start.
        cut: connections that it ended.
    """

    before: str
    after: str
    diff: PlanDiff
    in_force: bool = False
    cut: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "policy_before": self.before,
            "policy_after": self.after,
            "in_force": self.in_force,
            "cut": self.cut,
            **self.diff.to_dict(),
        }


def apply_policy(
    session: Session, record: SandboxRecord, path: str, *, policy_only: bool = False, dry_run: bool = False
) -> Applied:
    """
    Let the network and source rules of a profile replace those of a sandbox.

    Args:
        session: the connection.
        record: the sandbox.
        path: the profile, or the name of one.
        policy_only: leave everything else of the profile aside; else a difference there is refused.
        dry_run: only say what would happen; the gate is asked whether it could.

    Raises:
        ProfileError: the profile is invalid.
        GuardError: more than the policy differs, or the gate cannot follow; nothing was changed.
        KmError: it could not be put into force; the policy is the one before.
    """
    compiled = plan_from_file(path, session.config, session.plugins, Overrides(substrate=record.substrate))
    with exclusive(session.config, record.id):
        record = session.record(record.id)
        old = session.plan(record)
        old_text = _profile_of(session, record, old)
        text = _merged(old_text, compiled.text)
        digest = hashlib.sha256(text.encode()).hexdigest()
        wanted = compiled.plan
        new = evolve(old, network=wanted.network, git=wanted.git, profile_digest=digest)
        _require_followed(old, new)
        rest = diff_plans(new, wanted)
        if rest and not policy_only:
            raise GuardError(
                "the profile changes more than the policy",
                where=path,
                why="; ".join(_named(c) for c in (*rest.loosened, *rest.tightened, *rest.other)),
                hint="create another sandbox, or take its policy alone with --policy-only",
            )
        metered = [host for meter in session.plugins.meters().values() for host in meter.hosts]
        diff = diff_plans(old, new, metered_hosts=metered)
        shown = session.control.call("policy.get", id=record.id)
        before = str(shown["policy_version"])
        if new == evolve(old, profile_digest=digest):
            return Applied(before, before, diff)
        checked = _check(session, record, policy_data(new), shown["grants"])
        if dry_run:
            after = before if checked is None else str(checked["policy_version"])
            return Applied(before, after, diff)
        _apply(session, record, new, text, expect=old.digest())
        try:
            told = ask_gate(session, record, "policy.refresh")
        except KmError:
            with undisturbed(CLEANING):
                _apply(session, record, old, old_text, expect=new.digest())
                with contextlib.suppress(KmError):
                    ask_gate(session, record, "policy.refresh")
            raise
        after = str(session.control.call("policy.get", id=record.id)["policy_version"])
        return Applied(before, after, diff, told is not None, 0 if told is None else int(told["cut"]))


def allow_for(session: Session, record: SandboxRecord, entry: str, seconds: float) -> dict[str, Any]:
    """
    Open an entry for *seconds*; returns ``{grant, grants, policy_version, in_force}``.

    Raises:
        UsageError: it is no entry that may be granted.
        KmError: the gate cannot follow; nothing was changed.
    """
    with exclusive(session.config, record.id):
        record = session.record(record.id)
        plan = session.plan(record)
        _require_followed(plan, plan)
        known = session.control.call("policy.get", id=record.id)["grants"]
        canonical = grant_entry(entry)
        grant = Grant(canonical, math.inf)
        _require_opened(session, plan, grant)
        # A time that passes neither while the gate is asked nor by a clock that is wrong.
        trial = [*known, {"entry": canonical, "expires_at": record.created_at + 1e10}]
        if _check(session, record, None, trial) is None:
            _require_unopened(session, plan, grant)
        answer = _surely(
            session,
            lambda: session.control.call("policy.allow", id=record.id, entry=canonical, seconds=seconds),
        )
        try:
            told = ask_gate(session, record, "policy.refresh")
        except KmError:
            with undisturbed(CLEANING):
                _take_back(session, record, canonical, known)
                with contextlib.suppress(KmError):
                    ask_gate(session, record, "policy.refresh")
            raise
        return {**answer, "in_force": told is not None}


def deny_again(session: Session, record: SandboxRecord, entry: str) -> dict[str, Any]:
    """Take a grant back and cut what used it; returns ``{grants, policy_version, in_force, cut}``."""
    with exclusive(session.config, record.id):
        shown = session.control.call("policy.get", id=record.id)
        canonical = grant_entry(entry)
        granted = canonical in {grant["entry"] for grant in shown["grants"]}

        def revoke() -> dict[str, Any]:
            try:
                found: dict[str, Any] = session.control.call("policy.deny", id=record.id, entry=canonical)
            except NotFoundError:
                if not granted:
                    raise
                # The first question was carried out, and only its answer lost.
                found = session.control.call("policy.get", id=record.id)
            return found

        answer = _surely(session, revoke)
        told = ask_gate(session, record, "policy.refresh")
        return {**answer, "in_force": told is not None, "cut": 0 if told is None else int(told["cut"])}


def ask_gate(session: Session, record: SandboxRecord, op: str, **args: Any) -> dict[str, Any] | None:
    """
    Have the sandbox's supervisor ask its gate; None when none runs.

    Raises:
        KmError: what it answered.
    """
    path = session.config.sandbox_runtime_dir(record.id) / "pod.sock"
    try:
        with ControlClient(path, timeout_s=GATE_TIMEOUT_S) as client:
            answer: dict[str, Any] = client.call(op, **args)
            return answer
    except ControlUnavailableError:
        return None


def _check(
    session: Session, record: SandboxRecord, policy: dict[str, Any] | None, grants: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """
    Ask the gate whether it could follow; None when the sandbox rests and there is none to ask.

    Raises:
        ControlUnavailableError: the sandbox runs and its gate does not answer: nobody can say.
        KmError: why it could not.
    """
    until = time.monotonic() + GATE_RESTART_S
    while True:
        answer = ask_gate(session, record, "policy.check", policy=policy, grants=grants)
        if answer is not None or record.state is not SandboxState.RUNNING:
            return answer
        if time.monotonic() >= until:
            raise ControlUnavailableError(
                "the sandbox's gate does not answer, so nobody can say whether it could follow",
                where=record.id,
                hint="nothing was changed; see km status and try again",
            )
        # A gate that ended is replaced within a second.
        time.sleep(_AGAIN_S)


def _require_opened(session: Session, plan: SandboxPlan, grant: Grant) -> None:
    """Raise unless a grant opens something: what no profile opens stays closed, and is told so at once."""
    metered = [host for meter in session.plugins.meters().values() for host in meter.hosts]
    policy = NetworkPolicy.from_plan(
        with_grants(plan.network, [grant], now=0.0),
        ai_ceiling=plan.budget.ai_limit_nusd is not None,
        metered_hosts=metered,
        git=plan.git,
    )
    rule = grant_rule(grant)
    if isinstance(rule, HostRule):
        name = f"below.{rule.pattern}" if rule.kind == "subdomains" else rule.pattern
        verdicts = [policy.connect(name, port) for port in rule.ports or WEB_PORTS]
    else:
        address = ipaddress.ip_network(rule.cidr).network_address
        verdicts = [policy.address(address, port) for port in rule.ports or WEB_PORTS]
    if not any(verdict.allow for verdict in verdicts):
        raise GuardError(
            "the grant would open nothing",
            where=grant.entry,
            why=f"{verdicts[0].rule}: {verdicts[0].reason}",
            hint="km explain egress PROFILE HOST shows which rule holds",
        )


def _require_unopened(session: Session, plan: SandboxPlan, grant: Grant) -> None:
    """Raise for a grant of a host whose TLS a gate opens: one that rests makes its CA without it."""
    policies = [
        NetworkPolicy.from_plan(network)
        for network in (plan.network, with_grants(plan.network, [grant], now=0.0))
    ]
    newly = [
        host
        for meter in session.plugins.meters().values()
        for host in meter.hosts
        if not policies[0].name(host).allow and policies[1].name(host).allow
    ]
    if newly:
        raise GuardError(
            "a model host is not opened by a grant: the sandbox's CA would have to be made for it",
            where=", ".join(newly[:3]),
            hint="km policy apply REF FILE while the sandbox is stopped, then km resume REF",
        )


def _take_back(session: Session, record: SandboxRecord, entry: str, known: list[dict[str, Any]]) -> None:
    """Let a grant be what it was before: gone, or open for what was left of its time."""
    former = next((grant["expires_at"] for grant in known if grant["entry"] == entry), 0.0)
    left = former - time.time()
    if left >= 1:
        session.control.call("policy.allow", id=record.id, entry=entry, seconds=left)
    else:
        session.control.call("policy.deny", id=record.id, entry=entry)


def _named(change: Change) -> str:
    return change.text if change.path in change.text else f"{change.path}: {change.text}"


def _require_followed(old: SandboxPlan, new: SandboxPlan) -> None:
    if "gate" not in old.runners:
        raise GuardError(
            f"a sandbox on {old.substrate} has no gate that could follow another policy",
            hint="create another sandbox",
        )
    if new.network.enforcement != old.network.enforcement:
        raise GuardError(
            "enforcement cannot change while a sandbox lives",
            where="spec.network.enforcement",
            why=f"{old.network.enforcement} -> {new.network.enforcement}",
            hint="create another sandbox",
        )


def _apply(session: Session, record: SandboxRecord, plan: SandboxPlan, text: str, *, expect: str) -> None:
    def change() -> dict[str, Any]:
        if session.control.call("policy.get", id=record.id)["plan_digest"] == plan.digest():
            return {}  # it was carried out before, and only the answer lost
        data = policy_data(plan)
        answer: dict[str, Any] = session.control.call(
            "policy.apply", id=record.id, policy=data, profile=text, expect=expect
        )
        return answer

    _surely(session, change)


def _surely(session: Session, ask: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """
    Ask the control plane something that may be asked twice, once more when it goes away over it.

    It is started anew for the next connection; whether the first question was carried out, *ask* sees.
    """
    try:
        return ask()
    except ControlUnavailableError:
        session.close()
        return ask()


def _profile_of(session: Session, record: SandboxRecord, plan: SandboxPlan) -> str:
    path = session.config.sandbox_dir(record.id) / PROFILE
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise PlanError("the stored profile cannot be read", where=str(path), why=str(error)) from error
    if hashlib.sha256(text.encode()).hexdigest() != plan.profile_digest:
        raise GuardError("the stored profile is not the one of the plan", where=str(path), hint=DAMAGED)
    return text


def _merged(old_text: str, new_text: str) -> str:
    """Return the old effective profile with the policy's sections of the new one."""
    old, new = (load_document(text).data for text in (old_text, new_text))
    for section in _SECTIONS:
        old["spec"].pop(section, None)
        if section in new["spec"]:
            old["spec"][section] = new["spec"][section]
    return effective_text(old)
