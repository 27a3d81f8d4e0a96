"""Waiting for processes in an event loop without threads, so that forking stays safe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty when it may not be seen."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if item)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def command_of(pid: int) -> list[str]:
    """Return a process's argument list; empty when it may not be seen."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]


def own_processes() -> Iterator[int]:
    """Yield the pids of processes that this user may look at."""
    uid = os.getuid()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if uid in {0, entry.stat().st_uid}:
                    yield int(entry.name)
