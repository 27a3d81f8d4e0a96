"""What km-substrate-docker offers: the substrate ``docker`` and a check of the engine."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl
from km_core.types import DoctorCheck

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from km_core.control.substrate import Substrate
    from km_core.types import CheckResult, Problem

KM_PLUGIN_API = 1


@hookimpl
def km_substrates() -> Iterable[Substrate]:
    """Offer the Docker substrate."""
    from km_substrate_docker.substrate import DockerSubstrate

    return [DockerSubstrate()]


@hookimpl
def km_validate_profile(profile: Mapping[str, Any], substrate: str) -> Iterable[Problem]:
    """Refuse a working directory that is the system's."""
    if substrate != "docker":
        return []
    from km_substrate_docker.places import directory_problems

    return list(directory_problems(profile))


@hookimpl
def km_doctor_checks() -> Iterable[DoctorCheck]:
    """Offer a check of the engine and the base image."""

    def engine() -> CheckResult:
        from km_substrate_docker.preflight import check_engine

        return check_engine()

    return [DoctorCheck("docker engine", engine)]
