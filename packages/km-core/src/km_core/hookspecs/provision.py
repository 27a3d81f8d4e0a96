"""Provision family: places where sandboxes run, and what is done around them."""

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

    A substrate gets the plan and nothing else, and enforces it or says in `problems` what it cannot do.
    It also has to claim the profile's fields for its own name (`km_field_claims`): what nobody claims is
    refused there.  Run `km_core.testing.substrate.SubstrateContract` on it.

    Shape: offer.
    Called: once per process, when a command needs a substrate, and by kmd's tasks (expiry, recovery).
    Runs in: the operator's ``km`` and the processes kmd starts.
    Order: irrelevant; names must be unique across all plugins.
    Failure: this plugin is disabled with a warning; a command on one of its substrates is refused with
        the failure as the reason.

    Returns:
        Objects with the members of `Substrate`; *name* is the word in profiles and on the command line.

    Example:
        from collections.abc import Mapping, Sequence
        from typing import Any

        from km_core import hookimpl
        from km_core.config import Config
        from km_core.control.substrate import Box, Leftover, Substrate
        from km_core.errors import ProvisionError
        from km_core.plan import SandboxPlan
        from km_core.types import Problem

        KM_PLUGIN_API = 1

        class Nowhere:
            name = "nowhere"
            capabilities: frozenset[str] = frozenset()

            def problems(self, plan: SandboxPlan, config: Config) -> Sequence[Problem]:
                return [Problem("spec.runtime.substrate", "nothing can run nowhere")]

            def prepare(self, box: Box) -> None:
                raise ProvisionError("nothing can run nowhere", where=box.id)

            def start(self, box: Box) -> None:
                raise ProvisionError("nothing can run nowhere", where=box.id)

            def stop(self, box: Box) -> None:
                return

            def pause(self, box: Box) -> None:
                raise ProvisionError("nothing can be paused", where=box.id)

            def resume(self, box: Box) -> None:
                raise ProvisionError("nothing can be resumed", where=box.id)

            def destroy(self, box: Box) -> None:
                return

            def exec(
                self,
                box: Box,
                argv: Sequence[str],
                *,
                env: Mapping[str, str],
                cwd: str,
                root: bool,
                tty: bool,
            ) -> int:
                raise ProvisionError("nothing runs", where=box.id)

            def status(self, box: Box) -> dict[str, Any]:
                return {"running": False}

            def leftovers(self, config: Config) -> Sequence[Leftover]:
                return []

            def remove_leftover(self, config: Config, leftover: Leftover) -> None:
                return

        @hookimpl
        def km_substrates() -> list[Substrate]:
            return [Nowhere()]
    """


@hookspec
def km_lifecycle_steps(plan: SandboxPlan) -> Iterable[LifecycleStep]:
    """
    Add side effects to the creation of a sandbox, each with its undo.

    For what a sandbox needs besides its host: an identity, a channel, a token.  Each step is written
    into the journal as ``PLUGIN.NAME`` before it acts.

    Shape: collect.
    Called: once by ``km create`` before anything is made, and once by everything that removes a sandbox
        (``km destroy``, expiry, ``km reconcile``, a creation that is rolled back), with the same plan.
    Runs in: the operator's ``km`` and the processes kmd starts; steps act in the main thread, without a
        time limit.
    Order: by phase (``prepared``: enforcement is up, nothing of the workload runs; ``running``: after
        the profile's own commands), then as *after* says, then by ``PLUGIN.NAME``.  They are undone in
        reverse, when the workload is gone and before the sandbox's files go.
    Failure: of this hook, an error that names the plugin: a creation ends before it begins, a
        destruction goes on without the plugin's steps and says so, in the audit chain too.  A step's
        *do* that fails rolls the creation back, unless the step is not *fatal*.  An *undo* that fails
        leaves the sandbox ``failed``, with nothing running, for another ``km destroy``.

    Must be pure; the undo may run in another process, days later and more than once.

    Args:
        plan: what the sandbox is made from.

    Returns:
        Steps; names must be unique within the plugin.

    Example:
        from km_core import hookimpl
        from km_core.control.steps import LifecycleStep, StepContext
        from km_core.plan import SandboxPlan

        KM_PLUGIN_API = 1

        def _leave_card(context: StepContext) -> None:
            (context.state_dir / "card").write_text(context.sandbox_id, encoding="ascii")

        def _take_card(context: StepContext) -> None:
            (context.state_dir / "card").unlink(missing_ok=True)

        @hookimpl
        def km_lifecycle_steps(plan: SandboxPlan) -> list[LifecycleStep]:
            if "card" not in dict(plan.labels):
                return []
            return [LifecycleStep("card", "prepared", _leave_card, _take_card, title="card", fatal=False)]
    """
