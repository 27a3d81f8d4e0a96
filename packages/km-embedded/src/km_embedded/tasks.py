"""
Expiries and recoveries: processes of their own, at most one per sandbox.

They need substrates, which are plugins; kmd holds keys and the ledger and never loads one for this.  A
task holds a lock on ``tasks/ID.lock`` as long as it lives, so that a kmd that was restarted meanwhile
does not start a second one.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

from attrs import define

from km_embedded.files import private_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.config import Config

CLI = (sys.executable, "-P", "-m", "km_core.cli.main", "_internal")
"""The command line that a verb is appended to."""


@define
class _Task:
    process: subprocess.Popen[bytes]
    verb: str
    started: float
    pidfd: int
    killed: bool = False


class Tasks:
    """
    The tasks under way.

    Args:
        config: where lock and log files are.
        clock: returns Unix seconds.
        log: called with an event's name and fields.
        timeout_s: how long a task may run before it is killed.
        command: what verb and arguments are appended to.
    """

    def __init__(
        self,
        config: Config,
        *,
        clock: Callable[[], float],
        log: Callable[..., None],
        timeout_s: float,
        command: Sequence[str] = CLI,
    ) -> None:
        self._config = config
        self._clock = clock
        self._log = log
        self._timeout_s = timeout_s
        self._command = tuple(command)
        self._running: dict[str, _Task] = {}
        self._failures: dict[str, int] = {}
        self._not_before: dict[str, float] = {}

    def busy(self, sandbox_id: str) -> bool:
        """Say whether a task for a sandbox runs or one that failed is waiting for its next try."""
        return sandbox_id in self._running or self._clock() < self._not_before.get(sandbox_id, 0.0)

    def running(self, sandbox_id: str) -> bool:
        """Say whether a task for a sandbox runs."""
        return sandbox_id in self._running

    def start(self, sandbox_id: str, verb: str, *arguments: str) -> bool:
        """
        Start a task unless one is under way or has just failed.

        Returns:
            Whether it was started.
        """
        if self.busy(sandbox_id):
            return False
        lock = self._lock(sandbox_id)
        if lock is None:
            return False
        try:
            output = self._output(sandbox_id)
            try:
                process = subprocess.Popen(
                    [*self._command, verb, sandbox_id, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    cwd="/",
                    env=self._environment(),
                    pass_fds=(lock,),
                    start_new_session=True,
                )
            finally:
                os.close(output)
        except OSError as error:
            self._log("task_not_started", sandbox=sandbox_id, verb=verb, why=str(error))
            self._fail(sandbox_id)
            return False
        finally:
            os.close(lock)
        task = _Task(process, verb, self._clock(), os.pidfd_open(process.pid))
        self._running[sandbox_id] = task
        asyncio.get_running_loop().add_reader(task.pidfd, self._ended, sandbox_id)
        self._log("task_started", sandbox=sandbox_id, verb=verb, pid=process.pid)
        return True

    def watch(self) -> None:
        """Kill tasks that run for too long."""
        now = self._clock()
        for sandbox_id, task in self._running.items():
            if now - task.started > self._timeout_s and not task.killed:
                task.killed = True
                self._log("task_killed", sandbox=sandbox_id, verb=task.verb)
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(task.process.pid, signal.SIGKILL)

    def sweep(self, known: set[str]) -> None:
        """Forget sandboxes that are not *known* any more, and remove their lock files."""
        for sandbox_id in (set(self._failures) | set(self._not_before)) - known:
            self._failures.pop(sandbox_id, None)
            self._not_before.pop(sandbox_id, None)
        directory = self._config.runtime_dir / "tasks"
        for path in directory.glob("*.lock") if directory.is_dir() else ():
            if path.stem not in known and path.stem not in self._running:
                lock = self._lock(path.stem)
                if lock is not None:
                    path.unlink(missing_ok=True)
                    os.close(lock)

    def close(self) -> None:
        """Stop watching; tasks go on to their end and start kmd again if they need it."""
        for task in self._running.values():
            asyncio.get_running_loop().remove_reader(task.pidfd)
            os.close(task.pidfd)
            if task.process.poll() is None:
                # Popen complains about children that outlive it; these are meant to.
                task.process.returncode = 0
        self._running.clear()

    def _ended(self, sandbox_id: str) -> None:
        task = self._running.pop(sandbox_id)
        asyncio.get_running_loop().remove_reader(task.pidfd)
        os.close(task.pidfd)
        code = task.process.wait()
        self._log("task_ended", sandbox=sandbox_id, verb=task.verb, code=code)
        if code == 0:
            self._failures.pop(sandbox_id, None)
            self._not_before[sandbox_id] = self._clock() + 1.0
        else:
            self._fail(sandbox_id)

    def _fail(self, sandbox_id: str) -> None:
        count = self._failures.get(sandbox_id, 0) + 1
        self._failures[sandbox_id] = count
        self._not_before[sandbox_id] = self._clock() + min(300.0, 2.0 ** min(count, 10))

    def _lock(self, sandbox_id: str) -> int | None:
        directory = self._config.runtime_dir / "tasks"
        private_dir(directory)
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(directory / f"{sandbox_id}.lock", flags, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return None
        return descriptor

    def _output(self, sandbox_id: str) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        logs = self._config.sandbox_dir(sandbox_id) / "logs"
        path = logs / "control.log" if logs.is_dir() else self._config.home / "kmd.log"
        return os.open(path, flags, 0o600)

    def _environment(self) -> dict[str, str]:
        places = {"KM_HOME": str(self._config.home), "KM_RUNTIME_DIR": str(self._config.runtime_dir)}
        return {**os.environ, **places}
