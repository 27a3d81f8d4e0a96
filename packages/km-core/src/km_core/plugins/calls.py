"""
Calling into a plugin: a time limit, no way onto standard output, and every failure under one name.

The call runs in a thread of its own, which is abandoned when it takes too long: a signal (SIGALRM)
would reach the main thread only, be caught by a plugin's own ``except``, and belong to somebody else in a
program that embeds km.  The thread is a daemon, so km exits without waiting for it.  Native code that
holds the interpreter's lock cannot be given up on by anything inside the process.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, TextIO

from attrs import define

from km_core.errors import KmError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEFAULT_TIMEOUT_S = 10.0
"""How long one hook call or one import may take; ``KM_PLUGIN_TIMEOUT_S`` changes it."""
_LONGEST_S = 3600.0


class HookTimeoutError(Exception):
    """A call into a plugin did not come back in time; the text says after how many seconds."""


@define
class Outcome:
    """
    What came of a call.

    Attributes:
        value: what it returned.
        error: what it raised; a `HookTimeoutError` when it hangs.
        elapsed_s: how long it took.
        wrote: whether it wrote to standard output (which went to standard error instead).
    """

    value: Any = None
    error: BaseException | None = None
    elapsed_s: float = 0.0
    wrote: bool = False


def time_limit() -> float:
    """Return the limit for one call in seconds; a value that is no number above 0 counts as absent."""
    try:
        limit = float(os.environ.get("KM_PLUGIN_TIMEOUT_S", ""))
    except ValueError:
        return DEFAULT_TIMEOUT_S
    return min(limit, _LONGEST_S) if limit > 0 else DEFAULT_TIMEOUT_S


def call(function: Callable[[], Any], *, what: str, plugin: str) -> Outcome:
    """
    Call into a plugin and return what came of it; only `KeyboardInterrupt` is raised.

    Args:
        function: the call; it drains a generator itself, so that the limit covers that too.
        what: hook name, or ``import``, for the trace.
        plugin: whose code it is.
    """
    outcome = Outcome()
    finished = threading.Event()

    def run() -> None:
        began = time.perf_counter()
        try:
            outcome.value = function()
        except BaseException as error:  # noqa: BLE001 - SystemExit of a plugin must not end km silently
            outcome.error = error
        outcome.elapsed_s = time.perf_counter() - began
        finished.set()

    limit = time_limit()
    worker = threading.Thread(target=run, name=f"plugin {plugin} {what}", daemon=True)
    with _STANDBY.aside() as diverted:
        before = diverted.writes
        worker.start()
        in_time = finished.wait(limit)
        wrote = diverted.writes != before
    if not in_time:
        # The thread may still write into its own outcome: it is left behind with it.
        outcome = Outcome(error=HookTimeoutError(f"no answer within {limit:g} s"), elapsed_s=limit)
    else:
        worker.join()
    outcome.wrote = wrote
    _trace(plugin, what, outcome)
    if isinstance(outcome.error, KeyboardInterrupt):
        raise outcome.error
    return outcome


def brief(error: BaseException) -> str:
    """Return an error as one line: its kind and the first line of its text, without what looks secret."""
    from km_core.audit.redact import redact_text

    if isinstance(error, KmError):
        return redact_text(str(error))[:300]
    if isinstance(error, HookTimeoutError):
        return str(error)
    try:
        lines = str(error).strip().splitlines()
    except Exception:  # noqa: BLE001 - a plugin's own __str__
        lines = []
    name = type(error).__name__
    return f"{name}: {redact_text(lines[0])[:300]}" if lines else name


class _Diverted(io.TextIOBase):
    """Stands where ``sys.stdout`` was: what is written goes to standard error and is counted."""

    def __init__(self) -> None:
        super().__init__()
        self.writes = 0

    @property
    def buffer(self) -> Any:
        """The stream of bytes below."""
        self.writes += 1
        return sys.stderr.buffer

    def fileno(self) -> int:
        return sys.stderr.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        self.writes += 1
        return sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()


class _Standby:
    """
    Standard output, set aside while plugins are called: it belongs to the command's own answer.

    Calls may come from several threads and from within each other: the first one in sets it aside, the
    last one out puts it back.  The descriptor goes too, for programs and libraries that a plugin uses.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._depth = 0
        self._kept: int | None = None
        self._stream: TextIO | None = None
        self._diverted = _Diverted()
        self.instead = 2

    @contextlib.contextmanager
    def aside(self) -> Iterator[_Diverted]:
        """Set standard output aside for the block."""
        with self._lock:
            self._depth += 1
            if self._depth == 1:
                self._take()
        try:
            yield self._diverted
        finally:
            with self._lock:
                self._depth -= 1
                if self._depth == 0:
                    self._give_back()

    def _take(self) -> None:
        self._stream = sys.stdout
        with contextlib.suppress(OSError, ValueError, AttributeError):
            self._stream.flush()
        # A process may have no standard output, or none but a stream of its own.
        with contextlib.suppress(OSError):
            self._kept = os.dup(1)
            os.dup2(self.instead, 1)
        sys.stdout = self._diverted

    def _give_back(self) -> None:
        sys.stdout = self._stream
        self._stream = None
        if self._kept is not None:
            os.dup2(self._kept, 1)
            os.close(self._kept)
            self._kept = None


_STANDBY = _Standby()


def output_aside() -> contextlib.AbstractContextManager[object]:
    """
    Keep standard output, stream and descriptor, from what runs in the block: it goes to standard error.

    For code of plugins that runs without a time limit, such as a lifecycle step.
    """
    return _STANDBY.aside()


def divert_to(descriptor: int) -> None:
    """Send what plugins write to descriptor 1 to *descriptor* instead of standard error, for the inspection."""
    _STANDBY.instead = descriptor


def _trace(plugin: str, what: str, outcome: Outcome) -> None:
    """Print one line for ``KM_TRACE_PLUGINS=1``; never a value, since arguments may hold anything."""
    if os.environ.get("KM_TRACE_PLUGINS") != "1":
        return
    if outcome.error is not None:
        result = f"failed: {type(outcome.error).__name__}"
    elif isinstance(outcome.value, list):
        result = f"ok, {len(outcome.value)} item" + ("" if len(outcome.value) == 1 else "s")
    else:
        result = "ok"
    sys.stderr.write(f"trace: plugin {plugin}: {what}: {outcome.elapsed_s * 1000:.1f} ms: {result}\n")
