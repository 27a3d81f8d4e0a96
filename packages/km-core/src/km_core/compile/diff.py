"""
What one plan newly allows or forbids compared with another.

Reach is compared by asking the one policy matcher about witnesses: names, repositories and refs that
stand for everything a rule covers.  A witness is made of words that no rule of either plan contains, so
what holds for it holds for all that only a wildcard matches.  Addresses are compared as sets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.compile.diff_reach import new_addresses, new_hosts, new_refs, new_repos
from km_core.compile.duration import file_duration
from km_core.ledger.money import format_usd, usd_number

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from km_core.plan import SandboxPlan

_STRENGTH = {"ebpf": 0, "proxy": 1, "both": 2}
"""``ebpf`` promises addresses and ports only; ``both`` is each layer checked by the other (DESIGN section 1)."""
_TEARDOWN = {"destroy": 0, "stop": 1, "retain": 2}
LOOSENED, TIGHTENED, OTHER = "loosened", "tightened", "other"


@frozen
class Change:
    """
    One difference.

    Attributes:
        kind: ``enforcement``, ``privileged``, ``https-only``, ``host``, ``address``, ``repo``, ``ref``,
            ``budget``, ``lifetime``, ``limits``, ``group``, ``workload``, ``plan``.
        path: dotted path of the profile entry (with the entry, for lists) that is behind it.
        text: one sentence for people.
        before: the value in the first plan, where it is one value; never that of a variable or a file.
        after: the same in the second.
    """

    kind: str
    path: str
    text: str
    before: Any = None
    after: Any = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            "kind": self.kind,
            "path": self.path,
            "text": self.text,
            "before": self.before,
            "after": self.after,
        }


@frozen
class PlanDiff:
    """What the second plan loosens, what it tightens, and the rest; each in order of weight."""

    loosened: tuple[Change, ...] = ()
    tightened: tuple[Change, ...] = ()
    other: tuple[Change, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON data."""
        return {
            LOOSENED: [change.to_dict() for change in self.loosened],
            TIGHTENED: [change.to_dict() for change in self.tightened],
            OTHER: [change.to_dict() for change in self.other],
        }

    def __bool__(self) -> bool:
        """Return whether there is any difference."""
        return bool(self.loosened or self.tightened or self.other)


def diff_plans(before: SandboxPlan, after: SandboxPlan, *, metered_hosts: Sequence[str] = ()) -> PlanDiff:
    """
    Compare two plans.

    Args:
        before: the plan that is known.
        after: the plan that is looked at.
        metered_hosts: canonical names that a meter owns; under a ceiling other model hosts are denied.
    """
    found: dict[str, list[Change]] = {LOOSENED: [], TIGHTENED: [], OTHER: []}
    for direction, change in (
        *_promises(before, after),
        *_reach(before, after, metered_hosts),
        *_budgets(before, after),
        *_lifetimes(before, after),
        *_rest(before, after),
    ):
        found[direction].append(change)
    return PlanDiff(*(tuple(found[key]) for key in (LOOSENED, TIGHTENED, OTHER)))


def _promises(before: SandboxPlan, after: SandboxPlan) -> Iterator[tuple[str, Change]]:
    """Yield how enforcement, privileges and the refusal of plain HTTP change."""
    old, new = before.network.enforcement, after.network.enforcement
    if old != new:
        weaker = _STRENGTH.get(new, -1) < _STRENGTH.get(old, -1)
        text = f"enforcement is {'weaker' if weaker else 'stronger'}: {old} -> {new}"
        yield (
            LOOSENED if weaker else TIGHTENED,
            Change("enforcement", "spec.network.enforcement", text, old, new),
        )
    privileged = before.workload.privileged, after.workload.privileged
    if privileged[0] != privileged[1]:
        text = "the sandbox's user may become root" if privileged[1] else "the sandbox's user stays a user"
        yield (
            LOOSENED if privileged[1] else TIGHTENED,
            Change("privileged", "spec.execution.privileged", text, *privileged),
        )
    https = before.network.https_only, after.network.https_only
    if https[0] != https[1]:
        text = (
            "plain HTTP is refused"
            if https[1]
            else "plain HTTP is no longer refused: port 80 opens wherever a rule names no ports, or names it"
        )
        yield (
            TIGHTENED if https[1] else LOOSENED,
            Change("https-only", "spec.network.httpsOnly", text, *https),
        )


def _reach(
    before: SandboxPlan, after: SandboxPlan, metered_hosts: Sequence[str]
) -> Iterator[tuple[str, Change]]:
    """Yield names, addresses, repositories and refs that only one of the plans allows."""
    for direction, word, known, looked_at in (
        (LOOSENED, "newly allows", before, after),
        (TIGHTENED, "no longer allows", after, before),
    ):
        for kind, found in (
            ("host", new_hosts(known, looked_at, metered_hosts)),
            ("address", new_addresses(known.network, looked_at.network)),
            ("repo", new_repos(known.git, looked_at.git)),
            ("ref", new_refs(known.git, looked_at.git)),
        ):
            for path, what in found:
                yield direction, Change(kind, path, f"{word} {what}")


def _budgets(before: SandboxPlan, after: SandboxPlan) -> Iterator[tuple[str, Change]]:
    for pool, old, new in (
        ("ai", before.budget.ai_limit_nusd, after.budget.ai_limit_nusd),
        ("compute", before.budget.compute_limit_nusd, after.budget.compute_limit_nusd),
    ):
        if old == new:
            continue
        more = new is None or (old is not None and new > old)
        word = "model" if pool == "ai" else "compute"
        text = f"{word} spend: {_dollars(old)} -> {_dollars(new)}"
        if more and new is not None and old is not None:
            text += f" ({_dollars(new - old)} more)"
        if pool == "ai" and new is None:
            text += "; model hosts that nothing meters are no longer denied"
        yield (
            LOOSENED if more else TIGHTENED,
            Change("budget", f"spec.budget.{pool}.maxSpendUSD", text, _number(old), _number(new)),
        )
    if before.budget.warning_threshold != after.budget.warning_threshold:
        old_share, new_share = before.budget.warning_threshold, after.budget.warning_threshold
        text = f"the warning comes at {new_share:.0%} of a budget, not at {old_share:.0%}"
        yield OTHER, Change("budget", "spec.budget.warningThreshold", text, old_share, new_share)


def _lifetimes(before: SandboxPlan, after: SandboxPlan) -> Iterator[tuple[str, Change]]:
    old, new = before.lifecycle, after.lifecycle
    for key, first, second in (
        ("ttl", old.ttl_s, new.ttl_s),
        ("idleTimeout", old.idle_timeout_s or None, new.idle_timeout_s or None),
        ("maxLifetime", old.max_lifetime_s, new.max_lifetime_s),
    ):
        if first == second:
            continue
        longer = second is None or (first is not None and second > first)
        text = f"{key} is {'longer' if longer else 'shorter'}: {_duration(first)} -> {_duration(second)}"
        yield (
            LOOSENED if longer else TIGHTENED,
            Change("lifetime", f"spec.lifecycle.{key}", text, first, second),
        )
    if old.teardown != new.teardown:
        more = _TEARDOWN.get(new.teardown, 9) > _TEARDOWN.get(old.teardown, 9)
        done = {"destroy": "destroyed", "stop": "stopped", "retain": "kept as it is"}
        words = [done.get(policy, policy) for policy in (new.teardown, old.teardown)]
        text = f"when its time is over the sandbox is {words[0]}, not {words[1]}"
        yield (
            LOOSENED if more else TIGHTENED,
            Change("lifetime", "spec.lifecycle.teardownPolicy", text, old.teardown, new.teardown),
        )


def _rest(before: SandboxPlan, after: SandboxPlan) -> Iterator[tuple[str, Change]]:
    """Yield what is neither looser nor tighter."""
    for change in (
        *_groups(before, after),
        *_written_anew(before, after),
        *_limits(before, after),
        *_workload(before, after),
    ):
        yield OTHER, change
    for name, path in (
        ("profile", "metadata.name"),
        ("prefix", "metadata.prefix"),
        ("substrate", "spec.runtime.substrate"),
    ):
        old, new = getattr(before, name), getattr(after, name)
        if old != new:
            yield OTHER, Change("plan", path, f"{name}: {old} -> {new}", old, new)
    if before.labels != after.labels:
        text = f"labels: {_labels(before.labels)} -> {_labels(after.labels)}"
        yield OTHER, Change("plan", "metadata.labels", text, dict(before.labels), dict(after.labels))
    for name in ("runners", "requirements", "inert"):
        first, second = set(getattr(before, name)), set(getattr(after, name))
        if first != second:
            text = f"{name}: {_listed(second - first, first - second)}"
            yield OTHER, Change("plan", name, text, sorted(first), sorted(second))


def _moved(name: str, before: str, after: str) -> str:
    """Say what became of a group; an empty text stands for one that the profile does not name."""
    if not before:
        return f"{name} is new and resolves to {after}"
    return f"{name} resolves to {after}, before to {before}" if after else f"{name} is gone; it was {before}"


def _groups(before: SandboxPlan, after: SandboxPlan) -> Iterator[Change]:
    old = {group.name: group for group in before.network.groups}
    new = {group.name: group for group in after.network.groups}
    for name in sorted(set(old) | set(new)):
        first, second = old.get(name), new.get(name)
        if first == second:
            continue
        shown = [
            "" if group is None else f"{', '.join(group.hosts) or 'nothing'} ({group.source})"
            for group in (first, second)
        ]
        yield Change(
            "group",
            f"spec.network.egress.allowedHosts {name}",
            _moved(name, *shown),
            None if first is None else list(first.hosts),
            None if second is None else list(second.hosts),
        )


def _written_anew(before: SandboxPlan, after: SandboxPlan) -> Iterator[Change]:
    """Yield lists that differ; what that opens and closes, if anything, is said elsewhere."""
    for path, old, new in (
        ("spec.network.egress", _rules(before), _rules(after)),
        ("spec.sourceAccess.mode", before.git.mode, after.git.mode),
        ("spec.sourceAccess.github.allowedRepos", before.git.repos, after.git.repos),
        ("spec.sourceAccess.github.allowedRefs", before.git.refs, after.git.refs),
    ):
        if old != new:
            yield Change("plan", path, f"{path.rpartition('.')[2]} is written differently")


def _rules(plan: SandboxPlan) -> list[tuple[object, ...]]:
    """Return the network rules without the places they are written at."""
    network = plan.network
    return [
        *((rule.pattern, rule.kind, rule.ports) for rule in network.hosts),
        *((rule.cidr, rule.ports, rule.host) for rule in network.addresses),
    ]


def _limits(before: SandboxPlan, after: SandboxPlan) -> Iterator[Change]:
    for name in ("memory_bytes", "cpus", "pids"):
        old, new = getattr(before.limits, name), getattr(after.limits, name)
        if old != new:
            shown = ["the substrate's own" if value is None else f"{value:g}" for value in (old, new)]
            yield Change("limits", f"limits.{name}", f"{name}: {shown[0]} -> {shown[1]}", old, new)


def _workload(before: SandboxPlan, after: SandboxPlan) -> Iterator[Change]:
    old, new = before.workload, after.workload
    for key, first, second in (
        ("shell", old.shell, new.shell),
        ("workingDir", old.working_dir, new.working_dir),
    ):
        if first != second:
            yield Change("workload", f"spec.execution.{key}", f"{key}: {first} -> {second}", first, second)
    # The values of variables and the contents of files are not shown: an operator may keep anything there.
    for key, was, now in (
        ("env", dict(old.env), dict(new.env)),
        ("configFiles", {f.path: f for f in old.files}, {f.path: f for f in new.files}),
    ):
        if was != now:
            changed = {name for name in set(was) & set(now) if was[name] != now[name]}
            text = f"{key}: {_listed(set(now) - set(was), set(was) - set(now), changed)}"
            yield Change("workload", f"spec.execution.{key}", text, sorted(was), sorted(now))
    if old.init_commands != new.init_commands:
        added = len(set(new.init_commands) - set(old.init_commands))
        removed = len(set(old.init_commands) - set(new.init_commands))
        text = (
            f"initCommands: {added} added, {removed} removed" if added or removed else "initCommands: order"
        )
        counts = len(old.init_commands), len(new.init_commands)
        yield Change("workload", "spec.execution.initCommands", text, *counts)


def _listed(added: set[str], removed: set[str], changed: set[str] | None = None) -> str:
    parts = [
        f"{sign}{name}"
        for sign, names in (("+", added), ("-", removed), ("~", changed or set()))
        for name in sorted(names)
    ]
    return ", ".join(parts)


def _labels(labels: Sequence[tuple[str, str]]) -> str:
    return ", ".join(f"{key}={value}" for key, value in labels) or "none"


def _dollars(nusd: int | None) -> str:
    return "no ceiling" if nusd is None else format_usd(nusd, places=2 if nusd % 10_000_000 == 0 else 9)


def _number(nusd: int | None) -> float | None:
    return None if nusd is None else usd_number(nusd)


def _duration(seconds: int | None) -> str:
    return "never" if seconds is None else file_duration(seconds)
