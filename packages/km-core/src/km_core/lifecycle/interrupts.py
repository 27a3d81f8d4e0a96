"""Signals that end a command, and a time in which they have to wait."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
CLEANING = "km: cleaning up, please wait"
PATIENCE = 3
"""The signal that is obeyed during a clean-up all the same, counted from 1."""


@contextlib.contextmanager
def undisturbed(what: str) -> Iterator[None]:
    """
    Run the block to its end although signals ask to stop; the third one is obeyed.

    Handlers, not a mask: a process that is started meanwhile must not inherit it.

    Args:
        what: told on stderr when a signal comes.

    Raises:
        KeyboardInterrupt: the third signal came; what is left is for ``km reconcile``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    seen = 0

    def wait(_number: int, _frame: FrameType | None) -> None:
        nonlocal seen
        seen += 1
        if seen >= PATIENCE:
            raise KeyboardInterrupt
        # Not a print: the handler may run in the middle of one.
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"{what}\n")

    before = {}
    try:
        for number in ENDING:
            if signal.getsignal(number) not in {signal.SIG_IGN, None}:
                before[number] = signal.signal(number, wait)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_on_signals() -> None:
    """Let SIGTERM and SIGHUP unwind the command as Ctrl-C does, so that it cleans up; once per process."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, leave)
