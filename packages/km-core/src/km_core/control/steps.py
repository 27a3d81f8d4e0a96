"""Steps that plugins add to the creation of a sandbox, each with its undo."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from km_core.control.protocols import Control
    from km_core.plan import SandboxPlan

PHASES = ("prepared", "running")
"""``prepared``: enforcement is up, nothing of the workload runs; ``running``: after the first process and
the profile's own commands and files."""


@frozen
class StepContext:
    """
    What a step may use.

    Attributes:
        state_dir: ``KM_HOME/sandboxes/ID``; what a step keeps there goes away with the sandbox.
        control: the operator's connection to the control plane.
    """

    sandbox_id: str
    plan: SandboxPlan
    state_dir: Path
    control: Control


@frozen
class LifecycleStep:
    """
    A side effect of a sandbox's creation, such as an identity, a channel, a token.

    The step is journalled as ``PLUGIN.NAME``.  Creation that fails undoes it; destroying the sandbox
    undoes it too, in reverse order, whether or not *do* was ever called.

    Attributes:
        name: stable word, ``[a-z][a-z0-9-]*``.
        phase: one of `PHASES`.
        do: acts; idempotent, since an interrupted creation may be tried again.
        undo: removes what *do* made, also when it was cut off half way, and does nothing when there
            is nothing; idempotent.
        title: what the operator sees while it runs.
        after: names of steps (``PLUGIN.NAME``) of the same phase that come first; an unknown one is
            ignored, a cycle is an error.
        fatal: whether a failure of *do* fails the creation; otherwise it is a warning and the sandbox
            goes on without.  Steps that access or money depend on are fatal.
    """

    name: str
    phase: str
    do: Callable[[StepContext], None]
    undo: Callable[[StepContext], None]
    title: str = ""
    after: tuple[str, ...] = ()
    fatal: bool = True
