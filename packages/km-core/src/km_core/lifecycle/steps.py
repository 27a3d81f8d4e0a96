"""
The steps that plugins add to a sandbox's creation: how they act and how they are undone.

They are journalled as ``PLUGIN.NAME`` (`km_core.control.steps`).  What undoes them later is computed from
the sandbox's plan again, so that it needs nothing that a killed process may have lost.
"""

from __future__ import annotations

import contextlib
import sys
from typing import TYPE_CHECKING

from km_core.control.steps import StepContext
from km_core.errors import KmError, PluginError
from km_core.lifecycle.journal import Step
from km_core.plugins.calls import brief, output_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.control.steps import LifecycleStep
    from km_core.lifecycle.session import Session
    from km_core.plan import SandboxPlan


def creation_steps(
    session: Session,
    context: StepContext,
    added: Sequence[tuple[str, LifecycleStep]],
    phase: str,
    before_undo: Callable[[], None],
) -> list[Step]:
    """
    Return the journal's steps for the plugins' steps of one phase.

    Args:
        session: the connection.
        context: what the steps may use.
        added: from `PluginRegistry.lifecycle_steps`.
        phase: ``prepared`` or ``running``.
        before_undo: called before a step is undone; ends the workload, so that an undo that fails or
            hangs does not keep it alive.
    """
    return [
        _journalled(session, context, name, step, before_undo) for name, step in added if step.phase == phase
    ]


def undo_steps(session: Session, sandbox_id: str, plan: SandboxPlan) -> None:
    """
    Undo what plugins' steps made for a sandbox, in reverse order, whether or not they ever acted.

    A step whose plugin is gone or broken cannot be undone: that is told on standard error and in the
    sandbox's audit chain, and the removal goes on.

    Raises:
        PluginError: at least one undo failed; all others were tried.
    """
    broken: list[PluginError] = []
    added = dict(session.plugins.lifecycle_steps(plan, broken))
    begun = [step["step"] for step in session.control.call("journal.list", id=sandbox_id)]
    lost = [name for name in begun if "." in name and name not in added]
    for failure in broken:
        tell(session, sandbox_id, "steps_not_known", failure)
    for name in lost:
        plugin = name.rpartition(".")[0]
        failure = session.plugins.error(
            plugin, f"the step {name} was not undone: its plugin is not here", hint="undo it by hand"
        )
        tell(session, sandbox_id, "step_not_undone", failure)
    context = StepContext(sandbox_id, plan, session.config.sandbox_dir(sandbox_id), session.control)
    failures: list[PluginError] = []
    for name, step in reversed(added.items()):
        try:
            _undo(session, context, name, step)
        except PluginError as error:
            failures.append(error)
        else:
            if name in begun:
                session.control.call("journal.undone", id=sandbox_id, step=name)
    if failures:
        first = failures[0]
        raise PluginError(
            first.what,
            plugin=first.plugin,
            distribution=first.distribution,
            version=first.version,
            why="; ".join(error.what for error in failures[1:]),
            hint="km destroy again; with KM_BLOCK_PLUGINS its steps are left out",
        ) from first


def tell(session: Session, sandbox_id: str, kind: str, failure: PluginError) -> None:
    """Tell of a failure that does not stop the operation: on standard error and in the audit chain."""
    hint = f"; {failure.hint}" if failure.hint else ""
    sys.stderr.write(f"warning: {failure}{hint}\n")
    event = {"kind": kind, "plugin": failure.plugin, "reason": failure.what[:400]}
    # The sandbox is on its way out, or goes on without the step: the chain's own trouble is told elsewhere.
    with contextlib.suppress(KmError):
        session.control.call("audit.append", id=sandbox_id, event=event)


def _journalled(
    session: Session, context: StepContext, name: str, step: LifecycleStep, before_undo: Callable[[], None]
) -> Step:
    def do() -> None:
        try:
            with output_aside():
                step.do(context)
        except (Exception, SystemExit) as error:
            failure = _failure(session, name, "failed", error)
            if step.fatal:
                raise failure from error
            tell(session, context.sandbox_id, "step_failed", failure)

    def undo() -> None:
        before_undo()
        _undo(session, context, name, step)

    return Step(name, do, undo, step.title or name)


def _undo(session: Session, context: StepContext, name: str, step: LifecycleStep) -> None:
    try:
        with output_aside():
            step.undo(context)
    except (Exception, SystemExit) as error:
        raise _failure(session, name, "could not be undone", error) from error


def _failure(session: Session, name: str, what: str, error: BaseException) -> PluginError:
    hint = error.hint if isinstance(error, KmError) else ""
    return session.plugins.error(
        name.rpartition(".")[0], f"the step {name} {what}: {brief(error)}", hint=hint
    )
