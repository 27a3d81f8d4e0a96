"""Delivery of events to notifiers: from the outbox, tried again until it works, never in anybody's way."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from km_core.audit.chain import timestamp

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_embedded.store import Database, Outbox, OutboxRow

COMMAND = (sys.executable, "-P", "-m", "km_embedded.deliver")
TIMEOUT_S = 60.0
GIVE_UP_S = 86400.0
"""Age at which an event that could not be delivered is given up (it stays in the audit chain)."""
_LOOK_AGAIN_S = 600.0


class Notifier:
    """
    Delivers what is due, one batch at a time, in a process of its own.

    Args:
        db: the database.
        outbox: the events.
        clock: returns Unix seconds.
        log: called with an event's name and fields.
        command: the process; see `km_embedded.deliver`.
    """

    def __init__(
        self,
        db: Database,
        outbox: Outbox,
        *,
        clock: Callable[[], float],
        log: Callable[..., None],
        command: Sequence[str] = COMMAND,
    ) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._log = log
        self._command = tuple(command)
        self._task: asyncio.Task[None] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._closing = False
        self._none_until = 0.0

    def start(self) -> None:
        """Begin a batch when events are due and none is under way."""
        if self._task is not None and not self._task.done():
            return
        rows = self._outbox.untold(self._clock())
        if not rows:
            return
        if self._clock() < self._none_until:
            # No notifier is installed: starting a process for each event would tell nobody.
            with self._db.transaction():
                for row in rows:
                    self._outbox.told(row.number)
            return
        self._task = asyncio.get_running_loop().create_task(self._batch(rows))

    async def close(self) -> None:
        """Stop; what was not delivered stays in the outbox."""
        self._closing = True
        process = self._process
        if process is not None:
            _kill(process)
        await self.drain()
        self._task = None

    async def drain(self) -> None:
        """Wait for the batch under way."""
        if self._task is not None:
            await asyncio.gather(self._task, return_exceptions=True)

    async def _batch(self, rows: Sequence[OutboxRow]) -> None:
        try:
            answer = await self._ask(rows)
        except (OSError, ValueError, TimeoutError) as error:
            self._log("delivery_failed", why=type(error).__name__)
            answer = None
        now = self._clock()
        if answer is not None and not answer["notifiers"]:
            self._none_until = now + _LOOK_AGAIN_S
        with self._db.transaction():
            for row in rows:
                self._note(row, None if answer is None else answer["results"].get(str(row.number), {}), now)

    def _note(self, row: OutboxRow, results: dict[str, Any] | None, now: float) -> None:
        failed = [] if results is None else [name for name, result in results.items() if not result["ok"]]
        if results is not None and not failed:
            self._outbox.told(row.number)
            return
        for name in failed:
            self._log("notifier_failed", plugin=name, event_kind=row.kind, sandbox=row.sandbox_id)
        if now - row.at > GIVE_UP_S:
            self._log("event_given_up", event_kind=row.kind, sandbox=row.sandbox_id, plugins=failed)
            self._outbox.told(row.number)
            return
        done = set(row.done) | ({name for name, result in (results or {}).items() if result["ok"]})
        self._outbox.retry(row.number, sorted(done), now + min(300.0, 2.0 ** min(row.attempts + 1, 10)))

    async def _ask(self, rows: Sequence[OutboxRow]) -> dict[str, Any]:
        events = [
            {
                "number": row.number,
                "done": list(row.done),
                "event": {
                    "kind": row.kind,
                    "sandbox_id": row.sandbox_id,
                    "at": timestamp(row.at),
                    "detail": row.detail,
                },
            }
            for row in rows
        ]
        return await asyncio.to_thread(self._run, json.dumps({"events": events}).encode())

    def _run(self, request: bytes) -> dict[str, Any]:
        """Run the process in a thread of its own; `close` ends both."""
        process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd="/",
            start_new_session=True,
        )
        self._process = process
        if self._closing:
            _kill(process)
        with process:
            try:
                output, _ = process.communicate(request, timeout=TIMEOUT_S)
            except subprocess.TimeoutExpired as error:
                _kill(process)
                raise TimeoutError("the delivery process took too long") from error
            finally:
                self._process = None
        if process.returncode != 0:
            raise ValueError(f"the delivery process ended with code {process.returncode}")
        answer: dict[str, Any] = json.loads(output)
        return answer


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
