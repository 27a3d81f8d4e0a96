"""
From a file to a plan: load, override, check claims, resolve groups, draft.

The one sequence behind ``km validate``, ``km compile``, ``km explain`` and ``km create``.
"""

from __future__ import annotations

import copy
import hashlib
from typing import TYPE_CHECKING, Any

from attrs import Factory, evolve, frozen

from km_core.compile import claims
from km_core.compile.builtins import BUILTINS, find_profile
from km_core.compile.claims import check_claims, claim_matrix, claim_sources
from km_core.compile.draft import draft_plan, git_plan, network_plan, resolve_limits
from km_core.compile.dump import dump_document
from km_core.compile.duration import file_duration, parse_command_duration, parse_command_ttl
from km_core.compile.groups import core_groups, resolve_with_plugins, unknown_group
from km_core.compile.profile import LoadedProfile, load_profile
from km_core.compile.requirements import added_requirement, plan_requirements
from km_core.errors import KmError, PluginError, ProfileError, UsageError
from km_core.policy import NetworkPolicy
from km_core.types import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from km_core.compile.claims import FieldAnswer
    from km_core.compile.explain import EgressRules
    from km_core.config import Config
    from km_core.plan import SandboxPlan
    from km_core.plugins import PluginRegistry
    from km_core.types import GroupResolution

_NOT_INSTALLED = "not-installed"
_UNCLAIMED = frozenset({"claim-missing", "claim-refused", "claim-none"})
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
    """
    A plan, the effective profile it was made from, and remarks that do not stop it.

    Attributes:
        unmet: what would refuse the plan to run here; only ever there when it was made for reading.
        data: the effective profile, merged and with defaults.
    """

    plan: SandboxPlan
    text: str
    notes: tuple[Problem, ...]
    unmet: tuple[Problem, ...] = ()
    data: Mapping[str, Any] = Factory(dict)


def check_file(
    path: Path | str, config: Config, plugins: PluginRegistry, *, substrate: str | None = None
) -> tuple[list[Problem], LoadedProfile | None]:
    """
    Return every problem of a profile, with claims when a substrate is named.

    An unreadable file is a problem too, so that the files after it are still checked.
    """
    try:
        loaded = _load(path, config, plugins, substrate)
    except KmError as error:
        message = f"{error.what}: {error.why}" if error.why else error.what
        return [Problem("$", message, hint=error.hint, file=str(path), code=error.code)], None
    problems = list(loaded.problems)
    if substrate is not None and loaded.ok:
        problems += _claim_problems(loaded, loaded.data, substrate, plugins)
    return problems, loaded


def plan_from_file(
    path: Path | str,
    config: Config,
    plugins: PluginRegistry,
    overrides: Overrides,
    *,
    for_reading: bool = False,
    for_review: bool = False,
) -> Compiled:
    """
    Compile a profile.

    Args:
        path: the file, or a name (`find_profile`).
        config: the operator's configuration.
        plugins: the installed plugins.
        overrides: what the command line changes.
        for_reading: make the plan also when a field is neither enforced nor inert on the substrate, and
            say so in `Compiled.unmet`.  Such a plan is compared and shown, never run.
        for_review: the same, but only where nothing more is wrong than that a distribution which enforces
            it is not installed here: it can be reviewed on a machine that runs nothing.

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
    # Not from *data*: a substrate that was dropped is found missing below.
    substrate = overrides.substrate or str(loaded.data["spec"]["runtime"]["substrate"])
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
    problems = _claim_problems(loaded, data, substrate, plugins, overrides)
    unmet = [
        problem
        for problem in problems
        if problem.severity is Severity.ERROR
        and (for_reading or (for_review and problem.code == _NOT_INSTALLED))
    ]
    _refuse([problem for problem in problems if problem not in unmet], str(path))
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
        credentials=config.credentials,
    )
    alone = claims.enforces_itself(substrate, claim_sources(plugins), mode=plan.network.enforcement)
    if alone:
        plan = evolve(plan, runners=())
    plan = _with_additions(plan, data, plugins)
    if unmet:
        absent = _absent(plan.substrate, plan.network.enforcement, plugins)
        plan = evolve(plan, requirements=(*plan.requirements, *absent))
    answers = _answers(loaded, plan, plugins, overrides)
    plan = evolve(plan, requirements=plan_requirements(plan, plugins, answers, enforced_apart=not alone))
    notes = [p for p in (*loaded.problems, *problems) if p.severity is Severity.WARNING]
    return Compiled(plan, text, tuple(notes), tuple(unmet), data)


def data_from_file(path: Path | str, config: Config, plugins: PluginRegistry) -> dict[str, Any]:
    """Return a valid profile's merged data; `ProfileError` when it is invalid."""
    loaded = _load(path, config, plugins, None)
    _refuse(loaded.problems, str(path))
    return loaded.data


def egress_rules(path: Path | str, config: Config, plugins: PluginRegistry) -> EgressRules:
    """Return what decides about egress in a sandbox of a profile; `ProfileError` when it is invalid."""
    from km_core.compile.explain import EgressRules
    from km_core.ledger.money import nusd_from_usd
    from km_core.policy.aws import AwsGuard
    from km_core.secrets import AwsAccess

    data = data_from_file(path, config, plugins)
    ceiling = ((data["spec"].get("budget") or {}).get("ai") or {}).get("maxSpendUSD")
    network = network_plan(
        data["spec"]["network"], _groups(data, plugins), data["spec"].get("identity") or {}
    )
    meters = tuple(plugins.meters().values())
    policy = NetworkPolicy.from_plan(
        network,
        ai_ceiling=ceiling is not None,
        private_hosts=config.private_hosts,
        metered_hosts=[host for meter in meters for host in meter.hosts],
        git=git_plan(data["spec"].get("sourceAccess") or {}),
    )
    limit = None if ceiling is None else nusd_from_usd(ceiling, where="spec.budget.ai.maxSpendUSD")
    access = AwsAccess() if config.aws is None else config.aws
    guard = AwsGuard(network.hosts, access, git=policy.git is not None, regions=network.aws_regions)
    secrets = {rule.host: rule.secret for rule in config.credentials}
    return EgressRules(policy, network.groups, meters, limit, guard, secrets)


def effective_text(data: dict[str, Any]) -> str:
    """Return a merged profile as YAML; the same data gives the same bytes."""
    return dump_document(data)


def _load(path: Path | str, config: Config, plugins: PluginRegistry, substrate: str | None) -> LoadedProfile:
    source = find_profile(path, config.profile_search_paths)
    return load_profile(
        source.content,
        file=source.file,
        search_paths=config.profile_search_paths,
        builtins=BUILTINS,
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
        requirements.update(added_requirement(text, plugin=plugin) for text in added.requirements)
    workload = evolve(plan.workload, env=tuple(sorted(env.items())), files=tuple(files.values()))
    extra = tuple(sorted(runners - set(plan.runners)))
    return evolve(
        plan, workload=workload, runners=plan.runners + extra, requirements=tuple(sorted(requirements))
    )


def _groups(data: dict[str, Any], plugins: PluginRegistry) -> tuple[GroupResolution, ...]:
    names = list(_named_groups(data).values())
    return resolve_with_plugins(names, plugins) if names else ()


def _named_groups(data: dict[str, Any]) -> dict[str, str]:
    """Return the groups that a profile names, by the dotted path of each place."""
    egress = data["spec"]["network"].get("egress", {})
    return {
        f"spec.network.egress.{key}[{index}]": entry
        for key in ("allowedHosts", "allowedDNSSuffixes")
        for index, entry in enumerate(egress.get(key) or ())
        if entry.startswith("@")
    }


def _claim_problems(
    loaded: LoadedProfile,
    data: dict[str, Any],
    substrate: str,
    plugins: PluginRegistry,
    overrides: Overrides | None = None,
) -> list[Problem]:
    # A plugin that fails is out as a whole: its meters are asked before it is counted as an enforcer.
    plugins.meters()
    sources = claim_sources(plugins)
    problems = [
        problem
        for problem in check_claims(loaded, substrate, sources, typed=_typed(data, overrides))
        if overrides is None or not _dropped(problem.path, overrides)
    ]
    if any(problem.code == "claim-substrate" for problem in problems):
        # Of a place that does not exist nothing else can be said.
        return [_with_cause(problem, f"km-substrate-{substrate}", plugins) for problem in problems]
    mode = data["spec"]["network"].get("enforcement") or "proxy"
    enforced = mode in plugins.enforcers() or claims.enforces_itself(substrate, sources, mode=mode)
    if not enforced and not any(p.path == "spec.network.enforcement" for p in problems):
        provider = _enforcer_of(mode)
        message, hint = f"nothing installed enforces the mode {mode}", f"install {provider}"
        missing = _with_cause(
            Problem("spec.network.enforcement", message, hint=hint, code=_NOT_INSTALLED), provider, plugins
        )
        if substrate not in plugins.substrates():
            # One line that says all there is to install, not one after the other.
            message = f"nothing installed can run a profile on {substrate}"
            hint = f"install km-substrate-{substrate} and {provider}"
            if not plugins.control_planes():
                hint = f"install km-substrate-{substrate}, {provider} and km-embedded"
            absent = Problem("spec.runtime.substrate", message, hint=hint, code=_NOT_INSTALLED)
            missing = _with_cause(absent, f"km-substrate-{substrate}", plugins)
        problems.append(loaded.placed(missing))
    problems += _unknown_groups(loaded, data, plugins)
    return problems + [
        problem if problem.file else loaded.placed(problem) for problem in plugins.validate(data, substrate)
    ]


def _unknown_groups(loaded: LoadedProfile, data: dict[str, Any], plugins: PluginRegistry) -> list[Problem]:
    """
    Return a problem for each place that names a group which nothing offers.

    Resolving would notice too, but checking resolves nothing, and resolving does not know the place.
    """
    named = _named_groups(data)
    if not named:
        return []
    known = {*core_groups(), *plugins.egress_groups()}
    found = []
    for place, entry in named.items():
        if entry not in known:
            message, hint = unknown_group(entry, known)
            found.append(loaded.placed(Problem(place, message, hint=hint, code="group-unknown")))
    return found


def _enforcer_of(mode: str) -> str:
    return "km-net-proxy" if mode == "proxy" else "km-net-ebpf"


def _absent(substrate: str, mode: str, plugins: PluginRegistry) -> list[str]:
    """Return the distributions that a plan needs and that are not here to say their versions."""
    absent = [] if substrate in plugins.substrates() else [f"km-substrate-{substrate}"]
    return absent if mode in plugins.enforcers() else [*absent, _enforcer_of(mode)]


def _answers(
    loaded: LoadedProfile, plan: SandboxPlan, plugins: PluginRegistry, overrides: Overrides
) -> list[FieldAnswer]:
    """Return the claims' answers for the written fields that were not dropped."""
    matrix = claim_matrix(loaded, plan.substrate, claim_sources(plugins))
    return [answer for answer in matrix if not _dropped(answer.path, overrides)]


def _typed(data: dict[str, Any], overrides: Overrides | None) -> dict[str, Any]:
    """Return the fields that the command line sets: they are claimed like those of the file."""
    if overrides is None:
        return {}
    spec = data["spec"]
    return {
        path: value
        for option, path, value in (
            (overrides.ttl, "spec.lifecycle.ttl", spec["lifecycle"]["ttl"]),
            (overrides.idle, "spec.lifecycle.idleTimeout", spec["lifecycle"]["idleTimeout"]),
            (overrides.ai, "spec.budget.ai.maxSpendUSD", overrides.ai),
            (overrides.compute, "spec.budget.compute.maxSpendUSD", overrides.compute),
        )
        if option is not None
    }


def _dropped(path: str, overrides: Overrides) -> bool:
    return any(path == field or path.startswith(f"{field}.") for field in overrides.drop)


def _with_cause(problem: Problem, distribution: str, plugins: PluginRegistry) -> Problem:
    """Say of a provider that is installed why it is not used, where the problem says to install it."""
    why, hint = plugins.remedy(distribution)
    if " is installed but " not in why:
        return problem
    return evolve(problem, message=f"{problem.message}: {why}", hint=hint)


def _refuse(problems: Sequence[Problem], file: str) -> None:
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    if errors:
        count = f"{len(errors)} problem" + ("s" if len(errors) > 1 else "")
        # A built-in, or somebody else's profile, is not edited; a field that is no policy need not be.
        fields = {_droppable(problem) for problem in errors}
        hint = "" if "" in fields else "or add " + " ".join(f"--drop {field}" for field in sorted(fields))
        raise ProfileError(f"{file} has {count}; nothing was made", problems=errors, hint=hint)


def _droppable(problem: Problem) -> str:
    """Return what to leave out so that nobody has to enforce the field; empty when that cannot be."""
    from km_core.profile.kinds import Section, fields_of
    from km_core.profile.model import SandboxProfile

    found, path = "", ""
    model: type = SandboxProfile
    for key in problem.path.split(".") if problem.code in _UNCLAIMED else ():
        info = fields_of(model).get(key)
        if info is None:
            return ""
        path = f"{path}.{key}" if path else key
        # What its section cannot be without takes the section along.
        found = found if info.required else path
        if not isinstance(info.kind, Section):
            break
        model = info.kind.model
    return found if path == problem.path and found and not _kept(found) else ""


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


def _kept(field: str) -> bool:
    return any(f"{field}.".startswith(f"{kept}.") or kept.startswith(f"{field}.") for kept in _NEVER_DROPPED)


def _drop(data: dict[str, Any], field: str) -> None:
    if _kept(field):
        raise UsageError(f"--drop {field}: this section is never dropped", hint="change the profile instead")
    *parents, last = field.split(".")
    node: Any = data
    for key in parents:
        node = node.get(key) if isinstance(node, dict) else None
    if not isinstance(node, dict) or last not in node:
        raise UsageError(f"--drop {field}: the profile has no such field")
    del node[last]
