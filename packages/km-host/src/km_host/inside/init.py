"""
The first process of a sandbox: starts commands for the supervisor and reaps what is left behind.

Runs under the system's python3, from ``/opt/km/lib``, with standard library only (see `COMMAND`).  Its
argument is the descriptor of a stream of frames to the supervisor outside:

* in ``{"op": "exec", "id", "argv", "env", "cwd", "tty", "rows", "columns"}``, without a terminal with the
  descriptors stdin, stdout, stderr; ``{"op": "signal", "id", "signal"}``; ``{"op": "terminate"}``;
* out ``{"ready": PID}``; ``{"id", "pid"}``, with a terminal with its master's descriptor;
  ``{"id", "exit": CODE}``; ``{"id", "error": TEXT, "errno": N}``.

It holds no secret and decides nothing: the supervisor trusts no word of it, since what runs here may
have the same uid.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import termios
from typing import Any

from km_host.inside import frames

LIBRARY = "/opt/km/lib"
"""Where the sandbox has this package."""
COMMAND = (
    "/usr/bin/python3",
    "-ISBc",
    f"import sys; sys.path.insert(0, {LIBRARY!r}); from km_host.inside.init import main; sys.exit(main())",
)
"""How the supervisor starts it: isolated, without site packages, writing no byte code."""
PR_SET_DUMPABLE = 4
NOT_FOUND, NOT_EXECUTABLE = 127, 126
MAX_COMMANDS = 256
"""Commands at a time: the supervisor's memory is not the sandbox's to fill."""


class Init:
    """The loop: one channel, many children."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._commands: dict[int, int] = {}
        self._ending = False
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> int:
        """Serve until the supervisor closes the channel."""
        signal.set_wakeup_fd(self._wake_write, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        frames.send(self._channel, {"ready": os.getpid()})
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            for descriptor, _ in poll.poll():
                if descriptor == self._wake_read:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake_read, 4096)
                    if self._reap():
                        return 0
                    continue
                received = frames.receive(self._channel, max_descriptors=3)
                if received is None:
                    return 0
                self._handle(*received)

    def _handle(self, message: dict[str, Any], descriptors: list[int]) -> None:
        try:
            operation = message.get("op")
            if operation == "exec":
                self._exec(message, descriptors)
            elif operation == "signal":
                self._signal(message)
            elif operation == "terminate":
                self._ending = True
                # Process 1 is spared by kill(-1).
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGTERM)
                os.write(self._wake_write, b"\0")
        finally:
            frames.close_all(descriptors)

    def _exec(self, message: dict[str, Any], descriptors: list[int]) -> None:
        number = int(message["id"])
        master, slave = -1, -1
        try:
            if len(self._commands) >= MAX_COMMANDS:
                raise OSError(11, "too many commands run already")
            if message["tty"]:
                master, slave = os.openpty()
                size = struct.pack("HHHH", message["rows"], message["columns"], 0, 0)
                fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
                stdio = (slave, slave, slave)
            else:
                stdin, stdout, stderr = descriptors
                stdio = (stdin, stdout, stderr)
            child = self._start(message, stdio, terminal=slave >= 0)
            self._commands[child] = number
            frames.send(self._channel, {"id": number, "pid": child}, (master,) if master >= 0 else ())
        except OSError as error:
            frames.send(
                self._channel,
                {"id": number, "error": error.strerror or str(error), "errno": error.errno or 0},
            )
        finally:
            frames.close_all([descriptor for descriptor in (master, slave) if descriptor >= 0])

    def _start(self, message: dict[str, Any], stdio: tuple[int, int, int], *, terminal: bool) -> int:
        started_read, started_write = os.pipe2(os.O_CLOEXEC)
        child = os.fork()
        if child:
            os.close(started_write)
            # Ends when the command has its own session, or has failed: a signal now finds it there.
            os.read(started_read, 1)
            os.close(started_read)
            return child
        try:
            _become(stdio, started_write, terminal=terminal)
            _run(message["argv"], dict(os.environ) | message["env"], message["cwd"])
        finally:
            os._exit(NOT_EXECUTABLE)

    def _signal(self, message: dict[str, Any]) -> None:
        for child, number in self._commands.items():
            if number == message["id"]:
                with contextlib.suppress(OSError):
                    # Each command leads a session and so a process group.
                    os.killpg(child, message["signal"])

    def _reap(self) -> bool:
        """Collect what has ended; says whether the end was asked for and nothing runs any more."""
        while True:
            try:
                child, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                # Orphans become children of process 1, so no child means no process.
                return self._ending
            if not child:
                return False
            number = self._commands.pop(child, None)
            if number is not None:
                code = os.waitstatus_to_exitcode(status)
                frames.send(self._channel, {"id": number, "exit": code if code >= 0 else 128 - code})


def _become(stdio: tuple[int, int, int], started: int, *, terminal: bool) -> None:
    """Turn this fresh child into what a login would start: own session, own descriptors, default signals."""
    signal.set_wakeup_fd(-1)
    os.setsid()
    # Moved out of the way first: one of them may be descriptor 0, 1 or 2 itself.
    moved = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 10) for descriptor in stdio]
    for target, descriptor in enumerate(moved):
        os.dup2(descriptor, target, inheritable=True)
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
        if int(name) not in {0, 1, 2, started}:
            with contextlib.suppress(OSError):
                os.close(int(name))
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    for number in range(1, signal.NSIG):
        with contextlib.suppress(OSError, ValueError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _run(argv: list[str], env: dict[str, str], cwd: str) -> None:
    try:
        os.chdir(cwd)
    except OSError as error:
        _complain(f"{cwd}: {error.strerror}")
        return
    try:
        os.execvpe(argv[0], argv, env)  # noqa: S606 - starting what the operator asked for is the job
    except OSError as error:
        _complain(f"{argv[0]}: {error.strerror}")
        os._exit(NOT_FOUND if isinstance(error, FileNotFoundError) else NOT_EXECUTABLE)


def _complain(text: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, f"km: {text}\n".encode(errors="replace"))


def main() -> int:
    """Serve the channel named on the command line."""
    # No process of the same uid may look into this one or take its descriptors.
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    channel = socket.socket(fileno=int(sys.argv[1]))
    channel.set_inheritable(False)
    return Init(channel).run()


if __name__ == "__main__":
    sys.exit(main())
