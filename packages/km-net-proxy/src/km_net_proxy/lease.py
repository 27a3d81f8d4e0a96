"""
The gate's lease: permission from the control plane to let traffic pass, for a minute at a time.

Without one nothing new begins; at the sandbox's deadline everything ends, whether the control plane
lives or not (DESIGN section 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from typing import TYPE_CHECKING, Any

import structlog

from km_core.errors import KmError
from km_core.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from km_net_proxy.http.credentials import Control

LAPSED = Verdict(False, "builtin:lease", "lease", "the control plane cannot be reached")
"""What is said to whatever begins without a lease."""

RENEW_S = 10.0
"""Seconds between renewals."""
_RETRY_S = 2.0
_CHECK_S = 0.5


async def _nothing(_version: str, _grants: Any) -> None:
    """Follow no policy."""


def boot_time() -> float:
    """Return a clock that neither jumps nor stops while the host sleeps."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Lease:
    """
    Holds and renews the lease.

    Args:
        control: the sandbox's connection to the control plane.
        on_deadline: called once when the deadline has passed.
        follow: takes over the plan and the grants that a lease names, before it counts; when it raises
            there is no lease at once, since what was allowed before may not be any more.
        clock: seconds that only grow, for the validity.
        wall: Unix time, for the deadline.

    Attributes:
        error: why the last renewal failed.
    """

    def __init__(
        self,
        control: Control,
        *,
        on_deadline: Callable[[], object],
        follow: Callable[[str, Any], Awaitable[None]] = _nothing,
        clock: Callable[[], float] = boot_time,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._control = control
        self._on_deadline = on_deadline
        self._follow = follow
        self._renewal = asyncio.Lock()
        self.error: KmError | None = None
        self._clock = clock
        self._wall = wall
        self._until = 0.0
        self._deadline = 0.0
        # The same deadline by the clock that nobody sets back.
        self._ends = math.inf
        self._over = False
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("km.gate.lease")

    @property
    def valid(self) -> bool:
        """Whether traffic may pass now."""
        return not self._over and self._clock() < self._until and not self._passed()

    @property
    def over(self) -> bool:
        """Whether the deadline has passed."""
        return self._over

    async def renew(self) -> bool:
        """Ask for the lease once; returns whether it was given."""
        # One after the other: the answer that came last is the one that counts.
        async with self._renewal:
            return await self._renew()

    async def _renew(self) -> bool:
        asked = self._clock()
        self.error = None
        try:
            answer = await self._control.call("lease", holder="gate")
            valid_s, deadline = float(answer["valid_s"]), float(answer["deadline"])
            version, grants = str(answer["policy_version"]), answer.get("grants", ())
        except (KmError, KeyError, TypeError, ValueError, AttributeError) as error:
            self.error = error if isinstance(error, KmError) else KmError("the lease cannot be read")
            self._log.warning("lease_not_renewed", error=str(error))
            return False
        try:
            await self._follow(version, grants)
        except Exception as error:  # noqa: BLE001 - whatever it is: closed, and asked again
            known = error if isinstance(error, KmError) else None
            self.error = known or KmError("the policy cannot be taken over", why=repr(error))
            self._until = 0.0
            self._log.error("policy_not_taken_over", error=str(self.error))
            return False
        # Counted from the question: an answer that took long must not last longer than was meant.
        self._until = asked + valid_s
        if deadline != self._deadline:
            self._deadline = deadline
            self._ends = self._clock() + deadline - self._wall() if deadline else math.inf
        self._check_deadline()
        return True

    def start(self) -> None:
        """Begin to renew and to watch the deadline."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._renewing()), loop.create_task(self._watching())]

    async def _renewing(self) -> None:
        while True:
            renewed = await self.renew()
            await asyncio.sleep(RENEW_S if renewed else _RETRY_S)

    async def _watching(self) -> None:
        # For as long as the gate lives: a deadline that was extended passes again.
        while True:
            await asyncio.sleep(_CHECK_S)
            self._check_deadline()

    def suspend(self, error: KmError) -> None:
        """Let nothing begin until the next renewal, because of *error*."""
        if self._until:
            self._log.error("lease_suspended", error=str(error))
        self.error = error
        self._until = 0.0

    def _passed(self) -> bool:
        return bool(self._deadline) and (self._wall() >= self._deadline or self._clock() >= self._ends)

    def _check_deadline(self) -> None:
        passed = self._passed()
        if passed and not self._over:
            self._over = True
            self._log.warning("deadline_passed")
            self._on_deadline()
        elif not passed and self._over:
            # The operator extended the sandbox's life.
            self._over = False
            self._log.info("deadline_extended")

    async def close(self) -> None:
        """Stop renewing."""
        for task in self._tasks:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        self._tasks = []
