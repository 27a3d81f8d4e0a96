"""Health checks for ``km doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable


@frozen
class CheckResult:
    """Outcome of a check: ``OK``, ``WARN``, ``ERROR`` or ``SKIPPED``."""

    status: str
    message: str
    remediation: str = ""


@frozen
class DoctorCheck:
    """A named check; *run* takes nothing and must not change anything."""

    name: str
    run: Callable[[], CheckResult]
