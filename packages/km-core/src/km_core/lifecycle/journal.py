"""
The journal of an operation: each step is written down before it acts and has its undo.

A process that dies in the middle leaves the journal behind; `km destroy` and `km reconcile` read it and
undo what was begun.  ``KM_FAULT=kill:STEP:before|after`` ends the process at a step, for tests.
"""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from attrs import define, field, frozen

from km_core.errors import ProvisionError
from km_core.lifecycle.interrupts import CLEANING, undisturbed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.control.protocols import Control


@frozen
class Step:
    """
    One step of an operation.

    Attributes:
        name: stable word; the journal's key.
        do: acts; idempotent.
        undo: removes what *do* made, also when it was cut off half way; idempotent.
        title: what the operator sees while it runs.
    """

    name: str
    do: Callable[[], None]
    undo: Callable[[], None]
    title: str = ""


def nothing() -> None:
    """Undo of a step whose effects go away with the sandbox's record."""


@define
class Journal:
    """Runs steps for one sandbox and rolls back when one fails."""

    control: Control
    sandbox_id: str
    on_step: Callable[[str, str], None] = field(default=lambda _title, _state: None)
    _done: list[Step] = field(factory=list)
    rolled_back: bool = False
    """Whether everything that was begun has been undone; False while nothing had to be."""

    def run(self, steps: Sequence[Step]) -> None:
        """
        Run *steps* in order.

        Any failure, a signal included, undoes what was begun, in reverse, and is raised again.  A step
        that cannot be undone ends that: the steps before it hold what a second attempt needs, and their
        entries stay in the journal for `km reconcile`.
        """
        try:
            for index, step in enumerate(steps):
                self._one(index, step)
        except BaseException as error:
            self._roll_back(error)
            raise

    def _one(self, index: int, step: Step) -> None:
        self.control.call("journal.begin", id=self.sandbox_id, step=step.name, index=index)
        # Nothing has acted yet: an interrupt before this line leaves nothing to undo.
        self._done.append(step)
        self.on_step(step.title or step.name, "begin")
        _fault(step.name, "before")
        step.do()
        _fault(step.name, "after")
        self.control.call("journal.done", id=self.sandbox_id, step=step.name)
        self.on_step(step.title or step.name, "done")

    def _roll_back(self, cause: BaseException) -> None:
        with undisturbed(CLEANING):
            while self._done:
                step = self._done[-1]
                try:
                    step.undo()
                    self.control.call("journal.undone", id=self.sandbox_id, step=step.name)
                except Exception as error:  # noqa: BLE001 - whatever an undo raises, the cause must be told too
                    raise ProvisionError(
                        "the operation failed and could not be rolled back completely",
                        where=self.sandbox_id,
                        why=f"{str(cause) or type(cause).__name__}; then undoing {step.name}: {error}",
                        hint="run km reconcile",
                    ) from cause
                self._done.pop()
            self.rolled_back = True


def _fault(step: str, moment: str) -> None:
    if os.environ.get("KM_FAULT") == f"kill:{step}:{moment}":
        os.kill(os.getpid(), signal.SIGKILL)
