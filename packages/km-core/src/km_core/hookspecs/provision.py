"""Provision family: places where sandboxes run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.steps import LifecycleStep
    from km_core.control.substrate import Substrate
    from km_core.plan import SandboxPlan

hookspec = HookspecMarker("km")


@hookspec
def km_substrates() -> Iterable[Substrate]:
    """
    Offer places where a sandbox can run.

    Shape: offer.  Called once per process, when a command needs a substrate.
    Order: irrelevant; names must be unique across all plugins.
    Failure: an exception disables this plugin; `km create` then refuses a profile whose
        `runtime.substrate` asks for one of its substrates.

    Returns:
        Substrates; *name* is the word used in the profile and on the command line.
    """


@hookspec
def km_lifecycle_steps(plan: SandboxPlan) -> Iterable[LifecycleStep]:
    """
    Add side effects to the creation of a sandbox, each with its undo.

    Shape: collect.  Called by `km create` before anything is made, and by everything that destroys a
    sandbox, with the same plan; must be pure.
    Order: by phase, then as the steps' *after* says, then by plugin and name.
    Failure: an exception is an error that names the plugin; a creation ends before it begins, and a
        destruction goes on without the plugin's steps and says so.

    Args:
        plan: what the sandbox is made from.

    Returns:
        Steps; names must be unique within the plugin.
    """
