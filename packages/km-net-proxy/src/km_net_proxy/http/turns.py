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
    """

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._armed = False

    async def take(self) -> None:
        """Wait for the next turn: one round of the loop when nobody else waits."""
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.append(turn)
        if not self._armed:
            self._armed = True
            loop.call_soon(self._release)
        await turn

    def _release(self) -> None:
        left = self._at_once
        while self._waiting and left:
            turn = self._waiting.popleft()
            if not turn.done():  # else its connection was cut while it waited
                turn.set_result(None)
                left -= 1
        self._armed = bool(self._waiting)
        if self._armed:
            asyncio.get_running_loop().call_soon(self._release)
