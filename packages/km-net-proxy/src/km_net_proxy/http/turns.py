"""
Taking turns: however many connections move much at once, the others wait for a few of them only.

Everything runs on one loop, which serves whatever is ready before it looks for more.  Two hundred streams
with 64 KiB each to be decrypted, metered and encrypted would make one round last for a fifth of a second.
"""

from __future__ import annotations

import asyncio
from collections import deque

AT_ONCE = 4
"""Pieces of heavy work in one round of the loop, each of about a millisecond at the most."""


class Turns:
    """
    Lets heavy work go on in order, so much in each round of the loop.

    Args:
        at_once: pieces of work in a round.

    Attributes:
        crowded: whether there are more connections than turns in a round; else nobody has to wait.
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = self._left = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False
        self.crowded = True

    def count(self, connections: int) -> None:
        """Say how many connections there are."""
        self.crowded = connections > self._at_once

    async def take(self) -> None:
        """Take a turn: at once while this round has one left, else in the order of asking."""
        if not self.crowded:
            return
        if self._left and not self._waiting:
            self._left -= 1
            self._arm()
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._arm()
        await turn

    def _arm(self) -> None:
        if not self._armed:
            self._armed = True
            asyncio.get_running_loop().call_soon(self._next_round)

    def _next_round(self) -> None:
        self._left = self._at_once
        while self._waiting and self._left:
            turn = self._waiting.popleft()
            if not turn.done():  # else its connection was cut while it waited
                turn.set_result(None)
                self._left -= 1
        self._armed = False
        if self._left < self._at_once:
            self._arm()
