"""Running commands in a sandbox the way the command line does: with pipes, in a process of their own."""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time
import warnings
from typing import TYPE_CHECKING

from attrs import define, frozen

from km_core.errors import KmError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.control.substrate import Box, Substrate

REFUSED = 250
"""Exit code of a run that ended in a `KmError`; its text stands on standard error."""
BROKEN = 251
"""Exit code of a run that ended in another exception."""


@frozen
class Ran:
    """What a command came to."""

    code: int
    stdout: bytes
    stderr: bytes

    @property
    def text(self) -> str:
        """Standard output, decoded."""
        return self.stdout.decode(errors="replace")


@define
class Running:
    """A command under way; end it with `finish` or `kill`."""

    pid: int
    stdin: int
    stdout: int
    stderr: int

    def read(self, seconds: float, *, enough: int = 1) -> bytes:
        """Return standard output until *enough* bytes came, it ended, or *seconds* passed."""
        data, ends = b"", time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.stdout, selectors.EVENT_READ)
            while len(data) < enough and (left := ends - time.monotonic()) > 0:
                if selector.select(left):
                    chunk = os.read(self.stdout, 65536)
                    if not chunk:
                        break
                    data += chunk
        return data

    def write(self, data: bytes) -> None:
        """Send *data* to standard input."""
        os.write(self.stdin, data)

    def finish(self, stdin: bytes = b"", *, seconds: float = 60.0) -> Ran:
        """Send *stdin*, wait for the end and return what came; a run that takes longer is killed."""
        kept: dict[int, bytes] = {}
        threads = [
            threading.Thread(target=_feed, args=(self.stdin, stdin)),
            *(threading.Thread(target=_drain, args=(fd, kept)) for fd in (self.stdout, self.stderr)),
        ]
        for thread in threads:
            thread.start()
        code = self._wait(seconds)
        for thread in threads:
            thread.join(seconds)
        assert code is not None, f"the command takes longer than {seconds:g} s"
        return Ran(code, kept.get(self.stdout, b""), kept.get(self.stderr, b""))

    def kill(self) -> None:
        """End the run from outside; what it started inside is the substrate's to end."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        for fd in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(OSError):
                os.close(fd)

    def _wait(self, seconds: float) -> int | None:
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return None


def begin(
    substrate: Substrate,
    box: Box,
    *argv: str,
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    root: bool = False,
) -> Running:
    """Start a command inside."""
    in_read, in_write = os.pipe()
    out_read, out_write = os.pipe()
    err_read, err_write = os.pipe()
    pid = fork()
    if pid == 0:
        code = BROKEN
        try:
            for source, target in ((in_read, 0), (out_write, 1), (err_write, 2)):
                os.dup2(source, target)
            for fd in (in_read, in_write, out_read, out_write, err_read, err_write):
                os.close(fd)
            code = substrate.exec(box, argv, env=dict(env or {}), cwd=cwd, root=root, tty=False)
        except KmError as error:
            code = REFUSED
            os.write(2, f"{error.code}: {error}".encode())
        except BaseException as error:  # noqa: BLE001 - the parent has to hear of it
            os.write(2, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(code & 0xFF)
    for fd in (in_read, out_write, err_write):
        os.close(fd)
    return Running(pid, in_write, out_read, err_read)


def run(
    substrate: Substrate,
    box: Box,
    *argv: str,
    stdin: bytes = b"",
    env: Mapping[str, str] | None = None,
    cwd: str = "/",
    root: bool = False,
) -> Ran:
    """Run a command inside to its end."""
    return begin(substrate, box, *argv, env=env, cwd=cwd, root=root).finish(stdin)


def fork() -> int:
    """Fork as `os.fork`; the child must end with `os._exit`."""
    with warnings.catch_warnings():
        # Newer Pythons warn of threads; the children here call the substrate and leave.
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def _feed(fd: int, data: bytes) -> None:
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(fd, view) :]
    except BrokenPipeError:
        return
    finally:
        os.close(fd)


def _drain(fd: int, into: dict[int, bytes]) -> None:
    chunks = []
    while chunk := os.read(fd, 65536):
        chunks.append(chunk)
    os.close(fd)
    into[fd] = b"".join(chunks)
