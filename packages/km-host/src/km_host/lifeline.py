"""A pod's connection to the control plane: lease, reports, and bringing the control plane back."""

from __future__ import annotations

import asyncio
import collections
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.control.aio import AsyncControlClient
from km_core.errors import ControlUnavailableError, KmError
from km_host.child import ChildProcess

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

ENSURE_COMMAND = (sys.executable, "-P", "-m", "km_core.cli.main", "_internal", "ensure-control")
"""What brings the control plane back."""
MAX_REASON = 512
"""Longest reason of a state in characters, as the control plane takes it."""
MAX_REPORTS = 256
"""Events kept while nobody takes them; the oldest go first, the latest state never."""


@frozen
class LifelineTiming:
    """
    Seconds: between leases, between attempts while nobody answers, what counts as silence, and how long
    a control plane that answers may leave a sandbox past its end.
    """

    lease_s: float = 5.0
    retry_s: float = 2.0
    silent_s: float = 10.0
    overdue_s: float = 60.0


LIFELINE_TIMING = LifelineTiming()


class Lifeline:
    """
    Talks to the sandbox's own socket; never raises because the other side is away.

    Args:
        path: the sandbox's control socket.
        token: its credential.
        log: called with an event's name and fields.
        ensure: command that brings the control plane back.
    """

    def __init__(
        self,
        path: Path,
        token: str,
        log: Callable[..., None],
        *,
        ensure: tuple[str, ...] = ENSURE_COMMAND,
        timing: LifelineTiming = LIFELINE_TIMING,
    ) -> None:
        self._client = AsyncControlClient(path, token=token)
        self._log = log
        self._ensure = ensure
        self._timing = timing
        self._reports: collections.deque[tuple[str, dict[str, Any]]] = collections.deque(maxlen=MAX_REPORTS)
        self._state: dict[str, Any] | None = None
        self._wake = asyncio.Event()
        self._heard = time.monotonic()
        self._ensured = float("-inf")
        self.deadline = 0.0
        """Hard end of the sandbox in Unix seconds as the control plane last said it; 0 is none."""

    @property
    def is_silent(self) -> bool:
        """Whether the control plane has not answered for some time."""
        return time.monotonic() - self._heard > self._timing.silent_s

    def is_due(self, now: float) -> bool:
        """
        Say whether the sandbox must be ended by its own supervisor.

        Ending it is the control plane's business as long as it answers and does it; one whose expiries
        fail is given some time and then not waited for.

        Args:
            now: Unix seconds.
        """
        if not self.deadline or now < self.deadline:
            return False
        return self.is_silent or now >= self.deadline + self._timing.overdue_s

    def report_state(self, state: str, reason: str, resources: dict[str, Any] | None = None) -> None:
        """Say what the sandbox's state is; the latest one is delivered, however long it takes."""
        self._state = {"state": state, "reason": reason[:MAX_REASON], "resources": resources or {}}
        self._wake.set()

    def report(self, op: str, **args: Any) -> None:
        """Queue ``event`` or ``activity``."""
        self._reports.append((op, args))
        self._wake.set()

    async def run(self) -> None:
        """Renew the lease and deliver reports until cancelled."""
        while True:
            try:
                await self._exchange()
                pause = self._timing.lease_s
            except ControlUnavailableError as error:
                self._log("control_unavailable", why=error.why)
                await self._bring_back()
                pause = self._timing.retry_s
            except KmError as error:
                # It answers, but not to us: the sandbox is deleted, or another supervisor has its token.
                self._log("control_refuses", code=error.code, what=error.what)
                pause = self._timing.lease_s
            self._wake.clear()
            if self._state is None and not self._reports:
                try:
                    async with asyncio.timeout(pause):
                        await self._wake.wait()
                except TimeoutError:
                    continue
            else:
                await asyncio.sleep(self._timing.retry_s)

    async def flush(self, timeout_s: float) -> bool:
        """Deliver what is queued now; says whether all of it went."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._deliver()
        except (KmError, TimeoutError):
            return False
        return True

    async def close(self) -> None:
        """Give the connection back."""
        await self._client.close()

    async def _exchange(self) -> None:
        lease = await self._client.call("lease", holder="pod")
        self._heard = time.monotonic()
        self.deadline = float(lease.get("deadline") or 0.0)
        await self._deliver()

    async def _deliver(self) -> None:
        while self._reports or self._state is not None:
            if self._reports:
                op, args = self._reports[0]
            else:
                op, args = "state", self._state or {}
            try:
                await self._client.call(op, **args)
            except ControlUnavailableError:
                raise
            except KmError as error:
                self._log("report_refused", op=op, code=error.code, what=error.what)
            if op == "state":
                if self._state is args:
                    self._state = None
            elif self._reports and self._reports[0][1] is args:
                self._reports.popleft()

    async def _bring_back(self) -> None:
        now = time.monotonic()
        if now - self._ensured < self._timing.retry_s:
            return
        self._ensured = now
        try:
            started = subprocess.Popen(  # noqa: ASYNC220 - starting does not wait, and asyncio's own way uses threads
                self._ensure,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=dict(os.environ),
                start_new_session=True,
            )
            # Waited for here and nowhere else: Popen must not try it too.
            child = ChildProcess(started.pid)
            started.returncode = 0
        except OSError as error:
            self._log("control_restart_failed", why=str(error))
            return
        try:
            async with asyncio.timeout(15):
                code = await child.wait()
            self._log("control_restarted", code=code)
        except TimeoutError:
            child.kill()
            await child.wait()
            self._log("control_restart_failed", why="timed out")
