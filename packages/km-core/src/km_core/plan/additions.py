"""What a plugin may add to a plan while it is compiled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from km_core.plan.plan import PlanFile


@frozen
class PlanAdditions:
    """
    Additions to a plan; they can widen nothing that policy decides.

    Attributes:
        env: variables for the workload; a name that the profile or another plugin sets is a conflict.
        files: files for the workload; a path that is already taken is a conflict.
        runners: sidecars the sandbox's host has to run.
        requirements: distributions those need: ``km-x`` (the installed version) or ``km-x==1.2``.
    """

    env: tuple[tuple[str, str], ...] = ()
    files: tuple[PlanFile, ...] = ()
    runners: tuple[str, ...] = ()
    requirements: tuple[str, ...] = ()
