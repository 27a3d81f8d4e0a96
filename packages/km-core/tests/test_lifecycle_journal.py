from __future__ import annotations

import pytest

from km_core.errors import ProvisionError
from km_core.lifecycle.journal import Journal, Step


class Book:
    """A control plane that only keeps a journal."""

    def __init__(self):
        self.lines = []

    def call(self, op, /, **args):
        self.lines.append((op, args.get("step")))

    def close(self):
        pass


def step(name, log, *, fail=False, undo_fails=False):
    def do():
        log.append(f"do {name}")
        if fail:
            raise ProvisionError(f"{name} failed")

    def undo():
        log.append(f"undo {name}")
        if undo_fails:
            raise ProvisionError("cannot undo")

    return Step(name, do, undo)


def test_each_step_is_written_down_before_it_acts_and_after():
    book, log = Book(), []

    Journal(book, "sb-00000000").run([step("a", log), step("b", log)])

    assert [
        ("journal.begin", "a"),
        ("journal.done", "a"),
        ("journal.begin", "b"),
        ("journal.done", "b"),
    ] == book.lines


def test_a_failure_undoes_what_was_begun_in_reverse_also_the_failed_step():
    book, log = Book(), []

    with pytest.raises(ProvisionError, match="c failed"):
        Journal(book, "sb-00000000").run(
            [step("a", log), step("b", log), step("c", log, fail=True), step("d", log)]
        )

    assert ["do a", "do b", "do c", "undo c", "undo b", "undo a"] == log


def test_an_undo_that_fails_keeps_what_the_steps_before_it_made_and_points_to_reconcile():
    book, log = Book(), []
    steps = [step("a", log), step("b", log, undo_fails=True), step("c", log, fail=True)]

    journal = Journal(book, "sb-00000000")
    with pytest.raises(ProvisionError, match="could not be rolled back") as caught:
        journal.run(steps)

    assert "undo a" not in log
    assert ("journal.undone", "b") not in book.lines
    assert not journal.rolled_back
    assert "km reconcile" in caught.value.hint


def test_an_interrupt_rolls_back_too():
    book, log = Book(), []

    def do():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Journal(book, "sb-00000000").run([step("a", log), Step("b", do, lambda: log.append("undo b"))])

    assert ["do a", "undo b", "undo a"] == log
