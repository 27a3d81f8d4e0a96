"""
Egress groups: resolving ``@name`` entries from the operator's own package-client configuration.

Resolution happens before compilation and its outcome is an explicit input of the plan, so compiling
stays pure.  No registry's host stands in this repository: the clients themselves (pip, npm, apt) are
asked what they would reach.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.compile.groups.answers import checked
from km_core.compile.groups.debian import resolve_debian_packages
from km_core.compile.groups.npm import resolve_npm_packages
from km_core.compile.groups.python import resolve_python_packages
from km_core.errors import KmError, PlanError
from km_core.plugins.calls import brief, call
from km_core.types import EgressGroup, GroupResolution

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from km_core.plugins import PluginRegistry

__all__ = [
    "core_groups",
    "resolve_debian_packages",
    "resolve_groups",
    "resolve_npm_packages",
    "resolve_python_packages",
    "resolve_with_plugins",
    "unknown_group",
]


def core_groups() -> dict[str, EgressGroup]:
    """Return the groups that km-core itself offers."""
    offers = (
        EgressGroup("@debian-packages", "the operator's apt sources", resolve_debian_packages),
        EgressGroup("@npm-packages", "the operator's npm registries", resolve_npm_packages),
        EgressGroup("@python-packages", "the operator's Python package index", resolve_python_packages),
    )
    return {group.name: group for group in offers}


def resolve_groups(names: Iterable[str], groups: Mapping[str, EgressGroup]) -> tuple[GroupResolution, ...]:
    """
    Resolve the groups a profile names, sorted by name.

    Raises:
        PlanError: a group is not offered by anything installed, or cannot be resolved.
    """
    result = []
    for name in sorted(set(names)):
        if name not in groups:
            message, hint = unknown_group(name, groups)
            raise PlanError(message, where="spec.network.egress.allowedHosts", hint=hint)
        result.append(checked(name, groups[name].resolve()))
    return tuple(result)


def unknown_group(name: str, known: Iterable[str]) -> tuple[str, str]:
    """Return message and hint for a group that is not among the *known* ones."""
    from km_core.profile.kinds import nearest

    offered = tuple(sorted(known))
    meant = nearest(name, offered)
    hint = f"did you mean {meant}?" if meant else "offered: " + (", ".join(offered) or "none")
    return f"nothing installed offers the egress group {name}", hint


def resolve_with_plugins(names: Iterable[str], plugins: PluginRegistry) -> tuple[GroupResolution, ...]:
    """
    Resolve the groups a profile names from km's own offers and those of installed plugins.

    Raises:
        PluginError: a plugin offers a group that km itself has, or its group cannot be resolved, answers
            with something else than hosts, or hangs; names the plugin.
        PlanError: nothing offers a group, or one of km's own cannot be resolved.
    """
    own, offered = core_groups(), plugins.egress_groups()
    owners = plugins.owners("km_egress_groups")
    for name in sorted(own.keys() & offered.keys()):
        # Otherwise any installed distribution could decide which hosts a package index has.
        raise plugins.error(
            owners[name],
            f"offers the group {name}, which km itself has",
            hint="uninstall it, or rename its group",
        )
    attributed = {
        name: evolve(group, resolve=partial(_ask_plugin, plugins, owners[name], group))
        for name, group in offered.items()
    }
    return resolve_groups(names, own | attributed)


def _ask_plugin(plugins: PluginRegistry, plugin: str, group: EgressGroup) -> GroupResolution:
    outcome = call(group.resolve, what=group.name, plugin=plugin)
    if outcome.error is None:
        try:
            return checked(group.name, outcome.value)
        except PlanError as error:
            raise plugins.error(plugin, f"the group {group.name} cannot be used: {error.why}") from error
    if isinstance(outcome.error, KmError):
        raise outcome.error
    raise plugins.error(
        plugin, f"the group {group.name} cannot be resolved: {brief(outcome.error)}"
    ) from outcome.error
