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
    Offer sections ``spec.KEY`` of the profile that this plugin owns.

    A section is declared like the built-in ones: its fields are checked as strictly, appear in the JSON
    Schema, and each needs a claim (`km_field_claims`) before a profile that writes it can be created.

    Shape: offer.
    Called: once per process, before the first profile is loaded: by ``km validate``, ``compile``,
        ``diff``, ``explain``, ``create`` and ``schema``.
    Runs in: the operator's ``km``.
    Order: irrelevant; a key may be offered once, and never one that km-core has.
    Failure: this plugin is disabled with a warning; a profile that writes its section is refused, since
        the key is unknown then.

    Returns:
        Sections; *key* is the key below ``spec``.

    Example:
        from attrs import frozen

        from km_core import hookimpl
        from km_core.profile.kinds import PluginSection, Text, optional

        KM_PLUGIN_API = 1

        @frozen
        class Ticket:
            queue: str | None = optional("queue", Text(), "Queue that failures are reported to.")

        @hookimpl
        def km_profile_sections() -> list[PluginSection]:
            return [PluginSection("ticket", Ticket, "km-ticket")]
    """


@hookspec
def km_validate_profile(profile: Mapping[str, Any], substrate: str) -> Iterable[Problem]:
    """
    Report problems of a merged profile for a substrate.

    For rules that a field's type cannot say.  A plugin can add refusals only: it cannot take one of
    km-core's or another plugin's away.

    Shape: collect.
    Called: once per profile by ``km validate --substrate``, ``compile`` and ``create``, after schema,
        built-in rules and claims.
    Runs in: the operator's ``km``.
    Order: plugins are asked by name; problems are shown by position.
    Failure: an error that names the plugin; the operation ends and nothing is made.

    Args:
        profile: the merged document as plain data, after ``extends`` and defaults; read only.
        substrate: name of the substrate it is meant for.

    Returns:
        Problems with dotted paths; core adds file, line and column.  One of severity ``error`` refuses
        the profile.

    Example:
        from collections.abc import Mapping
        from typing import Any

        from km_core import hookimpl
        from km_core.types import Problem

        KM_PLUGIN_API = 1

        @hookimpl
        def km_validate_profile(profile: Mapping[str, Any]) -> list[Problem]:
            labels = profile["metadata"].get("labels") or {}
            if "team" in labels:
                return []
            return [Problem("metadata.labels", "has no team", hint="add labels: {team: …}")]
    """


@hookspec
def km_compile(draft: SandboxPlan, profile: Mapping[str, Any]) -> PlanAdditions | None:
    """
    Add to a plan: files, variables, sidecars, requirements.

    Shape: collect.
    Called: once per compilation by ``km compile``, ``diff`` and ``create``, after core has drafted the
        plan.
    Runs in: the operator's ``km``.
    Order: plugins are asked by name; the order of the additions never matters, because two that touch
        one variable or one file are a conflict.
    Failure: a failure or a conflict is an error that names the plugin; nothing is made.

    Must be pure: the same draft and profile give the same additions, on every machine.

    Args:
        draft: the plan as core drafted it; what policy decides is in it and cannot be changed here.
        profile: the merged document as plain data; read only.

    Returns:
        The additions, or None.

    Example:
        from km_core import hookimpl
        from km_core.plan import PlanAdditions, PlanFile, SandboxPlan

        KM_PLUGIN_API = 1

        @hookimpl
        def km_compile(draft: SandboxPlan) -> PlanAdditions | None:
            if draft.git.mode == "none":
                return None
            notice = PlanFile("/home/sandbox/.config/notice", f"made from {draft.profile}\\n")
            return PlanAdditions(env=(("NOTICE", notice.path),), files=(notice,))
    """
