"""
From a file to a plan: load, override, check claims, resolve groups, draft.

The one sequence behind ``km validate``, ``km compile``, ``km explain`` and ``km create``.
"""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

from attrs import evolve, frozen

from km_core.compile.claims import check_claims, core_claims
from km_core.compile.draft import draft_plan, network_plan, resolve_limits
from km_core.compile.dump import dump_document
from km_core.compile.duration import file_duration, parse_command_duration, parse_command_ttl
from km_core.compile.groups import core_groups, resolve_groups
from km_core.compile.profile import LoadedProfile, load_profile
from km_core.errors import KmError, PluginError, ProfileError, UsageError
from km_core.policy import NetworkPolicy
from km_core.types import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from km_core.config import Config
    from km_core.plan import SandboxPlan
    from km_core.plugins import PluginRegistry
    from km_core.types import GroupResolution

_NEVER_DROPPED = ("spec.network", "spec.sourceAccess", "spec.budget", "spec.email")


@frozen
class Overrides:
    """What the command line changes, as it was typed; None means: as the profile says."""

    substrate: str | None = None
    ttl: str | None = None
    idle: str | None = None
    ai: str | None = None
    compute: str | None = None
    memory: str | None = None
    cpus: float | None = None
    pids: int | None = None
    drop: tuple[str, ...] = ()


@frozen
class Compiled:
    """A plan, the effective profile it was made from, and remarks that do not stop it."""

    plan: SandboxPlan
    text: str
    notes: tuple[Problem, ...]


def check_file(
    path: Path, config: Config, plugins: PluginRegistry, *, substrate: str | None = None
) -> tuple[list[Problem], LoadedProfile | None]:
    """
    Return every problem of a profile, with claims when a substrate is named.

    An unreadable file is a problem too, so that the files after it are still checked.
    """
    try:
        loaded = _load(path, config, plugins, substrate)
    except KmError as error:
        return [Problem("$", error.what, hint=error.hint, file=str(path), code=error.code)], None
    problems = list(loaded.problems)
    if substrate is not None and loaded.ok:
        problems += _claim_problems(loaded, loaded.data, substrate, plugins)
    return problems, loaded


def plan_from_file(path: Path, config: Config, plugins: PluginRegistry, overrides: Overrides) -> Compiled:
    """
    Compile a profile.

    Raises:
        ProfileError: the profile is invalid, or a written field is neither enforced nor inert on the
            substrate; carries every problem.
        UsageError: an override cannot be read.
        PlanError: a group cannot be resolved.
    """
    loaded = _load(path, config, plugins, overrides.substrate)
    _refuse(loaded.problems, str(path))
    data = _overridden(loaded.data, overrides)
    text = effective_text(data)
    substrate = overrides.substrate or str(data["spec"]["runtime"]["substrate"])
    if data != loaded.data:
        again = load_profile(
            text,
            file=str(path),
            substrate=substrate,
            domain=config.domain,
            plugin_sections=plugins.profile_sections(),
            substrates=plugins.substrates(),
        )
        _refuse([evolve(problem, line=0, column=0) for problem in again.problems], str(path))
    problems = _claim_problems(loaded, data, substrate, plugins, dropped=overrides.drop)
    _refuse(problems, str(path))
    groups = _groups(data, plugins)
    plan = draft_plan(
        data,
        digest=hashlib.sha256(text.encode()).hexdigest(),
        substrate=substrate,
        groups=groups,
        meters=plugins.meters().values(),
        limits=resolve_limits(
            config.limits, memory=overrides.memory, cpus=overrides.cpus, pids=overrides.pids
        ),
        inert=[problem.path for problem in problems if problem.severity is Severity.INFO],
    )
    plan = _with_additions(plan, data, plugins)
    notes = [p for p in (*loaded.problems, *problems) if p.severity is Severity.WARNING]
    return Compiled(plan, text, tuple(notes))


def data_from_file(path: Path, config: Config, plugins: PluginRegistry) -> dict[str, Any]:
    """Return a valid profile's merged data; `ProfileError` when it is invalid."""
    loaded = _load(path, config, plugins, None)
    _refuse(loaded.problems, str(path))
    return loaded.data


def policy_from_file(path: Path, config: Config, plugins: PluginRegistry) -> NetworkPolicy:
    """Return the network policy that the gate would use for a profile."""
    data = data_from_file(path, config, plugins)
    return NetworkPolicy.from_plan(
        network_plan(data["spec"]["network"], _groups(data, plugins)),
        ai_ceiling="ai" in (data["spec"].get("budget") or {}),
        private_hosts=config.private_hosts,
        metered_hosts=[host for meter in plugins.meters().values() for host in meter.hosts],
    )


def effective_text(data: dict[str, Any]) -> str:
    """Return a merged profile as YAML; the same data gives the same bytes."""
    return dump_document(data)


def _load(path: Path, config: Config, plugins: PluginRegistry, substrate: str | None) -> LoadedProfile:
    return load_profile(
        path,
        search_paths=config.profile_search_paths,
        substrate=substrate,
        domain=config.domain,
        plugin_sections=plugins.profile_sections(),
        substrates=plugins.substrates(),
    )


def _with_additions(plan: SandboxPlan, data: dict[str, Any], plugins: PluginRegistry) -> SandboxPlan:
    """Merge what plugins add; two that touch the same variable or file are an error."""
    env, files = dict(plan.workload.env), {file.path: file for file in plan.workload.files}
    runners, requirements = set(plan.runners), set(plan.requirements)
    for plugin, added in plugins.additions(plan, data):
        for name, value in added.env:
            if env.setdefault(name, value) != value:
                raise PluginError(f"the variable {name} is already set to something else", plugin=plugin)
        for file in added.files:
            if files.setdefault(file.path, file) != file:
                raise PluginError(f"the file {file.path} is already written by something else", plugin=plugin)
        runners.update(added.runners)
        requirements.update(added.requirements)
    workload = evolve(plan.workload, env=tuple(sorted(env.items())), files=tuple(files.values()))
    extra = tuple(sorted(runners - set(plan.runners)))
    return evolve(
        plan, workload=workload, runners=plan.runners + extra, requirements=tuple(sorted(requirements))
    )


def _groups(data: dict[str, Any], plugins: PluginRegistry) -> tuple[GroupResolution, ...]:
    entries = data["spec"]["network"].get("egress", {}).get("allowedHosts") or ()
    names = [entry for entry in entries if entry.startswith("@")]
    return resolve_groups(names, core_groups() | plugins.egress_groups()) if names else ()


def _claim_problems(
    loaded: LoadedProfile,
    data: dict[str, Any],
    substrate: str,
    plugins: PluginRegistry,
    *,
    dropped: Sequence[str] = (),
) -> list[Problem]:
    problems = [
        problem
        for problem in check_claims(loaded, substrate, [*core_claims(), *plugins.claims()])
        if not any(problem.path == field or problem.path.startswith(f"{field}.") for field in dropped)
    ]
    mode = data["spec"]["network"].get("enforcement") or "proxy"
    if mode not in plugins.enforcers() and not any(p.path == "spec.network.enforcement" for p in problems):
        provider = "km-net-proxy" if mode == "proxy" else "km-net-ebpf"
        message = f"nothing installed enforces the mode {mode}"
        missing = Problem(
            "spec.network.enforcement", message, hint=f"install {provider}", code="claim-missing"
        )
        problems.append(loaded.placed(missing))
    return problems + [
        evolve(problem, file=problem.file or loaded.file) for problem in plugins.validate(data, substrate)
    ]


def _refuse(problems: Sequence[Problem], file: str) -> None:
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    if errors:
        count = f"{len(errors)} problem" + ("s" if len(errors) > 1 else "")
        raise ProfileError(f"{file} has {count}; nothing was made", problems=errors)


def _overridden(data: dict[str, Any], overrides: Overrides) -> dict[str, Any]:
    changed = copy.deepcopy(data)
    spec = changed["spec"]
    if overrides.substrate is not None:
        spec["runtime"]["substrate"] = overrides.substrate
    if overrides.ttl is not None:
        seconds = _read(parse_command_ttl, overrides.ttl, "--ttl")
        spec["lifecycle"]["ttl"] = "0" if seconds is None else file_duration(seconds)
    if overrides.idle is not None:
        seconds = _read(parse_command_duration, overrides.idle, "--idle")
        spec["lifecycle"]["idleTimeout"] = file_duration(seconds)
    for pool, amount in (("ai", overrides.ai), ("compute", overrides.compute)):
        if amount is not None:
            spec.setdefault("budget", {}).setdefault(pool, {})["maxSpendUSD"] = _dollars(amount, f"--{pool}")
    for field in overrides.drop:
        _drop(changed, field)
    return changed


def _read(parse: Any, text: str, option: str) -> Any:
    try:
        return parse(text)
    except ValueError as error:
        raise UsageError(f"{option} {text!r} {error}", hint="write 30m, 4h or 1h30m") from error


def _dollars(text: str, option: str) -> float | int:
    from km_core.ledger import nusd_from_usd

    nusd_from_usd(text, where=option)
    number = float(text.strip().removeprefix("$"))
    return int(number) if number.is_integer() else number


def _drop(data: dict[str, Any], field: str) -> None:
    if any(field == kept or field.startswith(f"{kept}.") for kept in _NEVER_DROPPED):
        raise UsageError(f"--drop {field}: this section is never dropped", hint="change the profile instead")
    *parents, last = field.split(".")
    node: Any = data
    for key in parents:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        raise UsageError(f"--drop {field}: the profile has no such field")
    del node[last]
