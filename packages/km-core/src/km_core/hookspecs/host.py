"""Host family: control planes, checks, claims, egress groups."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.protocols import ControlPlaneOffer
    from km_core.types import Claim, DoctorCheck, EgressGroup

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
