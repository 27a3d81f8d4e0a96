"""Compile family: from a profile to a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from km_core.plan import PlanAdditions, SandboxPlan
    from km_core.profile.kinds import PluginSection
    from km_core.types import Problem

hookspec = HookspecMarker("km")


@hookspec
def km_profile_sections() -> Iterable[PluginSection]:
    """
    Offer sections `spec.KEY` of the profile that this plugin owns.

    Shape: offer.  Called once before profiles are loaded.
    Order: irrelevant; a key may be offered once, and never one that km-core has.
    Failure: an exception disables this plugin; a profile that writes its section is refused, since the
        key is unknown then.

    Returns:
        Sections whose fields are declared like those of the built-in model.
    """


@hookspec
def km_validate_profile(profile: Mapping[str, Any], substrate: str) -> Iterable[Problem]:
    """
    Report problems of a merged profile for a substrate.

    Shape: collect.  Called by `km validate --substrate`, `km compile` and `km create`, once per
    profile, after the schema and the built-in semantic rules.
    Failure: an exception is an error that names the plugin; the operation ends.

    Args:
        profile: the merged document as plain data, after `extends` and defaults; read only.
        substrate: name of the substrate it is meant for.

    Returns:
        Problems with dotted paths; core adds file, line and column.
    """


@hookspec
def km_compile(draft: SandboxPlan, profile: Mapping[str, Any]) -> PlanAdditions | None:
    """
    Add to a plan: files, variables, sidecars, requirements.

    Shape: collect.  Called once per compilation, after core has drafted the plan; must be pure.
    Order: plugins are asked by name; the order of the additions never matters, because two that touch
        one variable or one file are a conflict.
    Failure: an exception or a conflict is an error that names the plugin; nothing is made.

    Args:
        draft: the plan as core drafted it; what policy decides is in it and cannot be changed here.
        profile: the merged document as plain data; read only.

    Returns:
        The additions, or None.
    """
