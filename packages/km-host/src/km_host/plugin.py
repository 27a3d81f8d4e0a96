"""What km-host offers: the pod supervisor and the checks of a Linux host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl
from km_core.types import DoctorCheck, Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.types import CheckResult

KM_PLUGIN_API = 1


@hookimpl
def km_sidecars() -> Iterable[Sidecar]:
    """Offer the pod supervisor."""
    return [Sidecar("pod", "km_host.pod:main", "supervises one sandbox on a Linux host")]


@hookimpl
def km_doctor_checks() -> Iterable[DoctorCheck]:
    """Offer checks of namespaces, programs and control groups."""

    def programs() -> CheckResult:
        from km_host.checks import check_programs

        return check_programs()

    def namespaces() -> CheckResult:
        from km_host.checks import check_namespaces

        return check_namespaces()

    def limits() -> CheckResult:
        from km_host.checks import check_limits

        return check_limits()

    return [
        DoctorCheck("host programs", programs),
        DoctorCheck("host namespaces", namespaces),
        DoctorCheck("host limits", limits),
    ]
