"""Hook implementations: the substrate, its claims, its health check."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.substrate import Substrate
    from km_core.types import Claim, DoctorCheck

KM_PLUGIN_API = 1


@hookimpl
def km_substrates() -> Iterable[Substrate]:
    """Offer the substrate."""
    from km_substrate_offline.substrate import OfflineSubstrate

    return (OfflineSubstrate(),)


@hookimpl
def km_field_claims() -> Iterable[Claim]:
    """Say what becomes of each profile field there."""
    from km_substrate_offline.claims import claims

    return tuple(claims())


@hookimpl
def km_doctor_checks() -> Iterable[DoctorCheck]:
    """Check whether this host can make such sandboxes."""
    from km_core.types import DoctorCheck

    from km_substrate_offline.checks import check_namespaces

    return (DoctorCheck("offline: namespaces", check_namespaces),)
