"""
Commands in a running sandbox: the operator's side.

The client relays between its own stdin, stdout and stderr and the pipes or the terminal that the
supervisor hands it, so that nothing of the operator's enters the sandbox.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
import termios
import threading
import time
import tty
from typing import TYPE_CHECKING, Any

from km_core.errors import ControlUnavailableError, ProvisionError, from_dict
from km_host.inside import frames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

CHUNK = 65536
DRAIN_S = 0.2
"""How long output may pause after the command's end before what its children still hold open is left."""
END_OF_INPUT = b"\x04"
"""What a terminal takes for the end of its input (``VEOF``)."""
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def run_command(
    path: Path,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    terminal: bool,
    stdio: tuple[int, int, int] = (0, 1, 2),
) -> int:
    """
    Run a command and relay until it has ended.

    Args:
        path: the sandbox's ``exec.sock``.
        argv: program and arguments.
        env: variables besides those the sandbox has.
        cwd: absolute directory inside.
        terminal: give it a terminal of its own.
        stdio: this side's descriptors; with a terminal the first is put into raw mode if it is one.

    Returns:
        Its exit code, 128+N when signal N ended it.

    Raises:
        ControlUnavailableError: nobody serves the sandbox.
        KmError: the command could not be started, or the sandbox ended.
    """
    rows, columns = _size(stdio[0])
    request = {
        "argv": list(argv),
        "env": dict(env),
        "cwd": cwd,
        "tty": terminal,
        "rows": rows,
        "columns": columns,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        try:
            connection.connect(str(path))
            frames.send(connection, request)
            received = frames.receive(connection, max_descriptors=3)
        except (OSError, frames.FrameError) as error:
            raise ControlUnavailableError(
                "the sandbox is not running", where=str(path), why=str(error), hint="km status shows why"
            ) from error
        message, descriptors = received if received is not None else ({}, [])
        try:
            if message.get("started") is not True or len(descriptors) != (1 if terminal else 3):
                raise from_dict(
                    message.get("error") or {"what": "the sandbox has ended", "code": "provision"}
                )
            relay = _Relay(connection, descriptors, stdio, terminal=terminal)
            with _raw(stdio[0]) if terminal else contextlib.nullcontext(), relay.signals():
                return relay.run()
        finally:
            frames.close_all(descriptors)


class _Relay:
    """Copies bytes until the exit code is known and the output is through."""

    def __init__(
        self,
        connection: socket.socket,
        descriptors: list[int],
        stdio: tuple[int, int, int],
        *,
        terminal: bool,
    ) -> None:
        self._connection = connection
        self._descriptors = descriptors
        self._stdin, stdout, stderr = stdio
        self._terminal = terminal
        if terminal:
            self._into, self._outputs = os.dup(descriptors[0]), {descriptors[0]: stdout}
            descriptors.append(self._into)
        else:
            self._into, self._outputs = descriptors[0], {descriptors[1]: stdout, descriptors[2]: stderr}
        os.set_blocking(self._into, False)
        self._pending = b""
        self._input_open = True
        self._signals: list[int] = []
        self._code: int | None = None

    def run(self) -> int:
        quiet_since = 0.0
        while self._code is None or (self._outputs and time.monotonic() - quiet_since < DRAIN_S):
            ready = self._poll()
            self._forward_signals()
            for descriptor in ready:
                if descriptor == self._connection.fileno():
                    self._result()
                    quiet_since = time.monotonic()
                elif descriptor in self._outputs:
                    self._output(descriptor)
                    quiet_since = time.monotonic()
                elif descriptor == self._stdin:
                    self._input()
            self._flush()
        return self._code

    def _poll(self) -> list[int]:
        poll = select.poll()
        for descriptor in self._outputs:
            poll.register(descriptor, select.POLLIN)
        if self._code is None:
            poll.register(self._connection, select.POLLIN)
            if self._pending:
                poll.register(self._into, select.POLLOUT)
            elif self._input_open:
                poll.register(self._stdin, select.POLLIN)
        if self._wakeup >= 0:
            poll.register(self._wakeup, select.POLLIN)
        return [descriptor for descriptor, _ in poll.poll(1000 if self._code is None else DRAIN_S * 1000)]

    def _result(self) -> None:
        try:
            received = frames.receive(self._connection, limit=CHUNK)
        except (OSError, frames.FrameError) as error:
            raise ProvisionError("the sandbox has ended", why=str(error)) from error
        message = received[0] if received is not None else {}
        code = message.get("exit")
        if not isinstance(code, int):
            raise from_dict(message.get("error") or {"what": "the sandbox has ended", "code": "provision"})
        self._code = code & 0xFF
        self._pending = b""

    def _output(self, descriptor: int) -> None:
        try:
            data = os.read(descriptor, CHUNK)
        except OSError:
            # A terminal's master fails with EIO when nobody has the other end open any more.
            data = b""
        if not data:
            del self._outputs[descriptor]
            return
        try:
            _write_all(self._outputs[descriptor], data)
        except BrokenPipeError:
            # Our reader is gone: let the command see that too.
            del self._outputs[descriptor]
            if not self._terminal:
                self._close(descriptor)

    def _input(self) -> None:
        try:
            data = os.read(self._stdin, CHUNK)
        except OSError:
            data = b""
        if data:
            self._pending = data
            return
        self._input_open = False
        if self._terminal:
            self._pending = END_OF_INPUT
        else:
            self._close(self._into)

    def _flush(self) -> None:
        if not self._pending:
            return
        try:
            self._pending = self._pending[os.write(self._into, self._pending) :]
        except BlockingIOError:
            return
        except OSError:
            self._pending, self._input_open = b"", False

    def _close(self, descriptor: int) -> None:
        os.close(descriptor)
        self._descriptors.remove(descriptor)

    _wakeup = -1

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Pass on this process's signals, and changes of its window, while the command runs."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._wakeup, write_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        numbers = (signal.SIGWINCH,) if self._terminal else FORWARDED
        handler: Callable[[int, Any], None] = lambda number, _frame: self._signals.append(number)  # noqa: E731 - typed
        old_wakeup = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        old = {number: signal.signal(number, handler) for number in numbers}
        try:
            yield
        finally:
            for number, previous in old.items():
                signal.signal(number, previous)
            signal.set_wakeup_fd(old_wakeup)
            os.close(self._wakeup)
            os.close(write_end)
            self._wakeup = -1

    def _forward_signals(self) -> None:
        if self._wakeup >= 0:
            with contextlib.suppress(BlockingIOError):
                os.read(self._wakeup, 4096)
        while self._signals:
            number = self._signals.pop(0)
            if number == signal.SIGWINCH:
                size = struct.pack("HHHH", *_size(self._stdin), 0, 0)
                with contextlib.suppress(OSError):
                    fcntl.ioctl(self._into, termios.TIOCSWINSZ, size)
            elif self._code is None:
                with contextlib.suppress(OSError):
                    frames.send(self._connection, {"signal": int(number)})


def _write_all(descriptor: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:
            # Somebody who shares our stdout has made it non-blocking.
            select.select([], [descriptor], [])


def _size(descriptor: int) -> tuple[int, int]:
    """Return rows and columns of a terminal, 24 by 80 when it is none."""
    try:
        raw = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, b"\0" * 8)
    except OSError:
        return 24, 80
    rows, columns, _, _ = struct.unpack("HHHH", raw)
    return (rows, columns) if rows and columns else (24, 80)


@contextlib.contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """Put the operator's terminal into raw mode; something else is left as it is."""
    try:
        old = termios.tcgetattr(descriptor)
    except termios.error:
        yield
        return
    try:
        # What was typed ahead is kept.
        tty.setraw(descriptor, termios.TCSADRAIN)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, old)
