"""
Requirements: which distributions a sandbox's host has to have for one plan, and no others.

A host runs the supervisor, the sidecars and the substrate's part on that machine.  Control planes and
notifiers work where the operator is and are no part of it, unless the profile itself uses one (a section
or a field that only that plugin acts on).  Versions are those that are installed here: the plan was
checked with them.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from km_core.errors import PlanError, PluginError
from km_core.policy import NetworkPolicy
from km_core.types import Answer, canonical_distribution

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from km_core.compile.claims import FieldAnswer
    from km_core.plan import SandboxPlan
    from km_core.plugins import PluginRegistry

# A name (PEP 508) and at most one exact version (PEP 440): no extras, markers or URLs, and nothing an
# installer could read as an option.
_REQUIREMENT = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)(?:==(?P<version>[0-9][A-Za-z0-9.+!]*))?"
)


def plan_requirements(
    plan: SandboxPlan,
    plugins: PluginRegistry,
    answers: Iterable[FieldAnswer] = (),
    *,
    enforced_apart: bool = True,
) -> tuple[str, ...]:
    """
    Return what the host of *plan* needs, as ``name==version``, sorted.

    Counted are the distributions of the plugins that offer the substrate, the enforcement mode, a runner
    of the plan, a meter of a host that the plan allows, or a section that the profile writes; those whose
    own claim is the answer for a written field; and what plugins added to the plan.  What these import in
    turn is for the installer to add.

    Args:
        plan: with the additions of plugins.
        plugins: those it was compiled with; one that belongs to no distribution (registered by a test)
            has nothing to install.
        answers: the claims' answers for the fields that are written in the profile.
        enforced_apart: whether an enforcer stands beside the substrate, which else enforces by itself.

    Raises:
        PlanError: a requirement that a plugin added contradicts what is installed here.
    """
    from km_core import __version__

    names: dict[str, str] = {"km-core": __version__}
    for plugin in _used(plan, plugins, list(answers), enforced_apart=enforced_apart):
        info = plugins.info(plugin)
        if info is not None and info.version:
            names[canonical_distribution(info.distribution)] = info.version
    installed = {canonical_distribution(info.distribution): info.version for info in plugins.infos} | names
    others: set[str] = set()
    for text in plan.requirements:
        name, version = split_requirement(text)
        pinned = installed.get(name, "")
        if not pinned:
            others.add(text)
        elif version in {"", pinned}:
            names[name] = pinned
        else:
            raise PlanError(
                f"the plan needs {text}, but {pinned} is installed here",
                where="requirements",
                why="a host must run what the profile was checked with",
                hint=f"install a {name} that fits",
            )
    return tuple(sorted({f"{name}=={version}" for name, version in names.items()} | others))


def added_requirement(text: str, *, plugin: str) -> str:
    """
    Return a requirement that a plugin adds to a plan, in its one form.

    Raises:
        PluginError: it is more than a name and a version; it will be an installer's input.
    """
    try:
        name, version = split_requirement(text)
        return f"{name}=={version}" if version else name
    except PlanError as error:
        raise PluginError(f"{error.what}: {text!r}", plugin=plugin, hint=error.hint) from error


def split_requirement(text: str) -> tuple[str, str]:
    """
    Return the canonical name and the version of a requirement; ``km-x`` alone has an empty one.

    Raises:
        PlanError: it is anything else than ``NAME`` or ``NAME==VERSION``.
    """
    match = _REQUIREMENT.fullmatch(text)
    if match is None:
        raise PlanError(
            "a requirement must be a distribution's name, with an exact version or without",
            where="requirements",
            hint="write km-x or km-x==1.2",
        )
    return canonical_distribution(match["name"]), match["version"] or ""


def _used(
    plan: SandboxPlan, plugins: PluginRegistry, answers: Sequence[FieldAnswer], *, enforced_apart: bool
) -> Iterator[str]:
    """Yield the names of the plugins that this plan uses, some of them repeatedly."""
    substrates, sidecars = plugins.owners("km_substrates"), plugins.owners("km_sidecars")
    if plan.substrate in substrates:
        yield substrates[plan.substrate]
    enforcers = plugins.owners("km_enforcers")
    if enforced_apart and plan.network.enforcement in enforcers:
        yield enforcers[plan.network.enforcement]
    for runner in plan.runners:
        if runner in sidecars:
            yield sidecars[runner]
    yield from _meters(plan, plugins)
    sections = plugins.owners("km_profile_sections")
    for answer in answers:
        section = answer.path.removeprefix("spec.").partition(".")[0]
        if answer.path.startswith("spec.") and section in sections:
            yield sections[section]
    yield from _claimants(plan, plugins, answers)


def _meters(plan: SandboxPlan, plugins: PluginRegistry) -> Iterator[str]:
    """Yield the plugins whose meters bound, read or give credentials to a call that the plan allows."""
    if "gate" not in plan.runners:
        return
    meters, owners = plugins.meters(), plugins.owners("km_meters")
    policy = NetworkPolicy.from_plan(
        plan.network,
        ai_ceiling=plan.budget.ai_limit_nusd is not None,
        metered_hosts=[host for meter in meters.values() for host in meter.hosts],
    )
    for name, meter in meters.items():
        if any(policy.name(host).allow for host in meter.hosts):
            yield owners[name]


def _claimants(plan: SandboxPlan, plugins: PluginRegistry, answers: Iterable[FieldAnswer]) -> Iterator[str]:
    """Yield the plugins that keep the promise of a written field where the sandbox runs."""
    # What a control plane promises, it keeps where the operator is.
    apart = set(plugins.owners("km_control_planes").values())
    claims = [
        (plugin, _distribution(plugins, plugin), claim)
        for plugin, claim in plugins.attributed_claims()
        if plugin not in apart
        and claim.answer is Answer.ENFORCED
        and (plan.substrate in claim.substrates or "*" in claim.substrates)
    ]
    for answer in answers:
        for plugin, distribution, claim in claims:
            if (
                answer.answer is Answer.ENFORCED
                and answer.by == distribution
                and (answer.path == claim.path or answer.path.startswith(f"{claim.path}."))
            ):
                yield plugin


def _distribution(plugins: PluginRegistry, plugin: str) -> str:
    info = plugins.info(plugin)
    return info.distribution if info is not None else plugin
