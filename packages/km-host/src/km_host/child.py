"""Waiting for a process in an event loop without threads, so that forking stays safe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


class ChildProcess:
    """
    A child of this process that an event loop waits for.

    Args:
        pid: the child; nobody else may wait for it.
    """

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._code: int | None = None
        self._pidfd = os.pidfd_open(pid)
        self._ended: asyncio.Event = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @property
    def code(self) -> int | None:
        """Exit code, -N for signal N, None while it runs."""
        return self._code

    async def wait(self) -> int:
        """Wait until it has ended; returns the code."""
        await self._ended.wait()
        return self._code if self._code is not None else 0

    def signal(self, number: int) -> None:
        """Send a signal; a child that has ended is fine."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)

    def _reap(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            asyncio.get_running_loop().remove_reader(self._pidfd)
            os.close(self._pidfd)
            self._code = os.waitstatus_to_exitcode(status)
            self._ended.set()
