"""Commands inside a running sandbox: this process's own stdin, stdout and stderr, and the exit code."""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import selectors
import signal
import struct
import termios
import threading
import time
import tty as terminal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field

from km_core.errors import ProvisionError
from km_substrate_docker.engine import translate
from km_substrate_docker.stream import FRAME, hijack

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator, Mapping, Sequence
    from types import FrameType

    from docker import DockerClient

_CHUNK = 65536
_DRAIN_S = 1.0
"""How long output may still come after the sandbox's end."""
_FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)


def execute(
    client: DockerClient,
    host: str,
    container_id: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    cwd: str,
    user: str,
    tty: bool,
    place: socket.socket | None = None,
) -> int:
    """
    Run *argv* in a container and return its exit code (128 + N when signal N ended it).

    Args:
        client: the engine.
        host: its address.
        container_id: the sandbox's main container.
        argv: program and arguments.
        env: variables besides the container's.
        cwd: absolute directory inside, empty for the container's.
        user: ``UID:GID``.
        tty: give it a terminal.
        place: a connection that ends with the sandbox.  An engine may leave the stream of a command
            open when the container under it ends, and nothing else would tell.

    Raises:
        ProvisionError: the container does not run, is frozen, ended, or the engine is gone.
    """
    with translate("the command cannot be started", hint="see km status"):
        made = client.api.exec_create(
            container_id,
            list(argv),
            stdin=True,
            tty=tty,
            user=user,
            workdir=cwd or None,
            environment=dict(env),
        )
    exec_id = str(made["Id"])
    sock, rest = hijack(host, f"/exec/{exec_id}/start", {"Detach": False, "Tty": tty})
    with sock, _raw_terminal(tty), _signals(client, container_id, exec_id, tty=tty):
        _Pump(sock, tty=tty, inbox=bytearray(rest), place=place).run()
    return _exit_code(client, exec_id)


@define
class _Pump:
    """Moves bytes both ways with bounded memory: stdin is read only when the last of it has gone."""

    sock: socket.socket
    tty: bool
    inbox: bytearray = field(factory=bytearray)
    place: socket.socket | None = None
    _outbox: bytes = b""
    _stdin: int = 0
    _open: bool = True

    def run(self) -> None:
        self.sock.setblocking(False)
        self._deliver()
        # poll, unlike epoll, also takes regular files as stdin.
        with selectors.PollSelector() as selector:
            selector.register(self.sock, selectors.EVENT_READ)
            selector.register(self._stdin, selectors.EVENT_READ)
            if self.place is not None:
                selector.register(self.place, selectors.EVENT_READ)
            while True:
                ended = False
                for key, events in selector.select():
                    if key.fd == self._stdin:
                        self._read_stdin(selector)
                    elif key.fileobj is self.place:
                        ended = True
                    elif events & selectors.EVENT_READ and not self._receive():
                        return
                if ended:
                    self._last_words()
                    return
                self._flush(selector)

    def _last_words(self) -> None:
        """Deliver what came before the sandbox ended, and say that it did unless the stream says so too."""
        deadline = time.monotonic() + _DRAIN_S
        while (left := deadline - time.monotonic()) > 0 and select.select([self.sock], [], [], left)[0]:
            if not self._receive():
                return
        raise ProvisionError("the sandbox has ended", hint="km status shows why")

    def _read_stdin(self, selector: selectors.BaseSelector) -> None:
        try:
            data = os.read(self._stdin, _CHUNK)
        except OSError:
            data = b""
        selector.unregister(self._stdin)
        if data:
            self._outbox = data
        else:
            self._open = False

    def _flush(self, selector: selectors.BaseSelector) -> None:
        if self._outbox:
            with contextlib.suppress(BlockingIOError):
                try:
                    self._outbox = self._outbox[self.sock.send(self._outbox) :]
                except (BrokenPipeError, ConnectionResetError):
                    self._outbox, self._open = b"", False
        waiting = selectors.EVENT_READ | (selectors.EVENT_WRITE if self._outbox else 0)
        selector.modify(self.sock, waiting)
        if self._outbox:
            return
        if not self._open:
            # Only the sending half: the command's output may still be coming.
            with contextlib.suppress(OSError):
                self.sock.shutdown(1)
        elif self._stdin not in selector.get_map():
            selector.register(self._stdin, selectors.EVENT_READ)

    def _receive(self) -> bool:
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        self.inbox += data
        self._deliver()
        return bool(data)

    def _deliver(self) -> None:
        if self.tty:
            _write(1, bytes(self.inbox))
            self.inbox.clear()
            return
        while len(self.inbox) >= FRAME.size:
            kind, length = FRAME.unpack_from(self.inbox)
            end = FRAME.size + length
            if len(self.inbox) < end:
                return
            _write(2 if kind == 2 else 1, bytes(self.inbox[FRAME.size : end]))
            del self.inbox[:end]


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


@contextlib.contextmanager
def _raw_terminal(wanted: bool) -> Iterator[None]:
    """Let every key through to the terminal inside, and put the operator's back whatever happens."""
    if not wanted or not os.isatty(0):
        yield
        return
    before = termios.tcgetattr(0)
    terminal.setraw(0)
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _signals(client: DockerClient, container_id: str, exec_id: str, *, tty: bool) -> Iterator[None]:
    """Pass the terminal's size and the operator's signals on; the engine does neither by itself."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def resize(*_: object) -> None:
        # The command may have ended just now: its size no longer matters.
        with contextlib.suppress(ProvisionError, OSError), translate("resize"):
            rows, columns, _x, _y = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
            client.api.exec_resize(exec_id, height=rows, width=columns)

    def forward(number: int, _frame: FrameType | None) -> None:
        with contextlib.suppress(ProvisionError):
            _kill(client, container_id, exec_id, number)

    handlers: dict[int, Any] = {number: signal.signal(number, forward) for number in _FORWARDED}
    if tty and os.isatty(0):
        handlers[signal.SIGWINCH] = signal.signal(signal.SIGWINCH, resize)
        resize()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _kill(client: DockerClient, container_id: str, exec_id: str, number: int) -> None:
    """Send a signal to a command; the engine's API has no such call, so a shell inside does it."""
    with translate("a signal cannot be passed on"):
        outside = int(client.api.exec_inspect(exec_id).get("Pid") or 0)
        inside = inner_pid(outside)
        if inside:
            made = client.api.exec_create(
                container_id, ["/bin/sh", "-c", f"kill -{number} {inside}"], user="0"
            )
            client.api.exec_start(made["Id"])


def inner_pid(pid: int) -> int:
    """Return the process id inside its own namespace of the host's process *pid*, 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return 0
    for line in status.splitlines():
        if line.startswith("NSpid:"):
            return int(line.split()[-1])
    return 0


def _exit_code(client: DockerClient, exec_id: str) -> int:
    deadline = time.monotonic() + 10
    while True:
        with translate("the command's exit code is lost"):
            state = client.api.exec_inspect(exec_id)
        # The stream ends a moment before the engine has noted the code.
        if not state.get("Running") and state.get("ExitCode") is not None:
            return int(state["ExitCode"])
        if time.monotonic() > deadline:
            raise ProvisionError("the command's exit code is lost", why="the engine still calls it running")
        time.sleep(0.01)
