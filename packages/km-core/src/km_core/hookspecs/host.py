"""Host family: control planes, checks, claims, egress groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.protocols import ControlPlaneOffer
    from km_core.types import Agent, Claim, DoctorCheck, EgressGroup, InsideService

hookspec = HookspecMarker("km")


@hookspec
def km_control_planes() -> Iterable[ControlPlaneOffer]:
    """
    Offer control planes (`control_plane` in the configuration).

    Shape: offer.  Called once per process, when a command needs state.
    Failure: an exception disables this plugin; commands that need its control plane fail.
    """


@hookspec
def km_field_claims() -> Iterable[Claim]:
    """
    Claim profile fields: who acts on them, on which substrates.

    Shape: collect.  Called when claims are checked (`--substrate`, `compile`, `create`).
    Failure: an exception is an error that names the plugin.
    """


@hookspec
def km_egress_groups() -> Iterable[EgressGroup]:
    """
    Offer named host groups for `allowedHosts: ["@name"]`.

    Shape: offer.  Called before compilation, only when a profile names a group.
    Failure: an exception disables this plugin; a profile that names its group is refused.
    """


@hookspec
def km_doctor_checks() -> Iterable[DoctorCheck]:
    """
    Offer health checks.

    Shape: offer.  Called by `km doctor` and by set-up.
    Failure: an exception becomes a failed check that names the plugin.
    """


@hookspec
def km_agents() -> Iterable[Agent]:
    """
    Offer agent programs for `km agent run`.

    Shape: offer.  Called once per process, when a command needs an agent.
    Order: irrelevant; names must be unique across all plugins.
    Failure: an exception disables this plugin; commands that name one of its agents fail.

    Returns:
        Agents; *name* is the word on the command line.
    """


@hookspec
def km_inside_services() -> Iterable[InsideService]:
    """
    Offer services of the inside API at `http://km.internal/NAME`.

    Shape: offer.  Called once by the gate at start.
    Order: irrelevant; a name may be offered once, and never one that the gate has itself.
    Failure: an exception disables this plugin; its services answer that they do not exist.

    Returns:
        Services; what they may do is what the sandbox's own control socket allows.
    """
