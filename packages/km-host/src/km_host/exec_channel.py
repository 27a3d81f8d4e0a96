"""
Commands in a running sandbox: the supervisor's side.

A client sends one frame over ``ID/exec.sock``::

    {"argv", "env", "cwd", "tty", "rows", "columns"}

and gets ``{"started": true}`` with descriptors attached, then ``{"exit": CODE}``, or ``{"error": {…}}`` at
any time.  Without a terminal the descriptors are the outer ends of three fresh pipes (stdin, stdout,
stderr); with one it is the master of a terminal that was made inside.  In between the client may send
``{"signal": N}``.  Nothing of the client's own terminal, files or sockets ever enters the sandbox: it
could be reopened through ``/proc/self/fd`` or be made to push input (``TIOCSTI``).

What the first process inside says is a claim of the sandbox: numbers are checked, an unasked descriptor
ends it, and a descriptor that is no terminal's master is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import stat
import termios
from typing import TYPE_CHECKING, Any

from attrs import define, field

from km_core.errors import KmError, ProvisionError, UsageError
from km_host.fds import receive_frame, send_frame
from km_host.inside import frames

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

MAX_REPLY = 65536
"""Longest frame from inside, in bytes."""
READY_S = 10.0
PTMX = os.makedev(5, 2)
"""Device number of a terminal's master (Documentation/admin-guide/devices.txt)."""
TIOCGPTN = 0x80045430


@define
class Command:
    """One command inside, as the channel knows it."""

    number: int
    started: asyncio.Future[int] = field(factory=lambda: asyncio.get_running_loop().create_future())
    ended: asyncio.Future[int] = field(factory=lambda: asyncio.get_running_loop().create_future())


class InitChannel:
    """
    The frames between a supervisor and the first process inside.

    Args:
        sock: the supervisor's end, non-blocking; owned from here on.
        broken: called with a reason when the other side breaks the protocol.
    """

    def __init__(self, sock: socket.socket, broken: Callable[[str], None]) -> None:
        self._sock = sock
        self._broken = broken
        self._sending = asyncio.Lock()
        self._commands: dict[int, Command] = {}
        self._next = 0
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reader = asyncio.get_running_loop().create_task(self._read())

    async def ready(self) -> None:
        """
        Wait until the first process has reported.

        Raises:
            ProvisionError: it ended, or did not report in time.
        """
        try:
            async with asyncio.timeout(READY_S):
                await asyncio.shield(self._ready)
        except TimeoutError as error:
            raise ProvisionError("the sandbox's first process does not report") from error

    async def start(self, request: dict[str, Any], descriptors: tuple[int, ...]) -> tuple[Command, int]:
        """
        Start a command; returns it and the terminal's master, -1 without one.

        Raises:
            ProvisionError: it cannot be started, or the sandbox has ended.
        """
        if self._reader.done():
            raise ProvisionError("the sandbox has ended")
        self._next += 1
        command = Command(self._next)
        self._commands[command.number] = command
        try:
            await self._send({"op": "exec", "id": command.number} | request, descriptors)
            return command, await asyncio.shield(command.started)
        except OSError as error:
            raise ProvisionError("the sandbox has ended", why=str(error)) from error

    async def signal(self, command: Command, number: int) -> None:
        """Send a signal to a command's process group."""
        await self._send({"op": "signal", "id": command.number, "signal": number})

    async def terminate(self) -> None:
        """Ask every process inside to end."""
        await self._send({"op": "terminate"})

    def forget(self, command: Command) -> None:
        """Stop waiting for a command."""
        self._commands.pop(command.number, None)

    async def close(self) -> None:
        """Close the channel, which ends the first process."""
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self._sock.close()
        self._fail("the sandbox has ended")

    async def _send(self, message: dict[str, Any], descriptors: tuple[int, ...] = ()) -> None:
        async with self._sending:
            await send_frame(self._sock, message, descriptors)

    async def _read(self) -> None:
        reason = "it closed its channel"
        try:
            while (
                received := await receive_frame(self._sock, max_descriptors=1, limit=MAX_REPLY)
            ) is not None:
                self._take(*received)
        except (frames.FrameError, KmError, OSError, TypeError, ValueError) as error:
            reason = str(error)
        self._fail("the sandbox has ended")
        self._broken(reason)

    def _take(self, message: dict[str, Any], descriptors: list[int]) -> None:
        try:
            if "ready" in message:
                if not self._ready.done():
                    self._ready.set_result(None)
                return
            command = self._commands.get(_integer(message.get("id"), 1, 2**53))
            if command is None:
                return
            if "exit" in message:
                if not command.ended.done():
                    command.ended.set_result(_integer(message["exit"], 0, 255))
            elif command.started.done():
                return
            elif "error" in message:
                why = str(message["error"])[:200]
                command.started.set_exception(ProvisionError("the command cannot be started", why=why))
            else:
                command.started.set_result(descriptors.pop() if descriptors else -1)
        finally:
            frames.close_all(descriptors)

    def _fail(self, what: str) -> None:
        for command in tuple(self._commands.values()):
            for future in (command.started, command.ended):
                if not future.done():
                    future.set_exception(ProvisionError(what))
                    future.exception()
        self._commands.clear()
        if not self._ready.done():
            self._ready.set_exception(ProvisionError("the sandbox's first process ended early"))
            self._ready.exception()


async def serve(connection: socket.socket, channel: InitChannel, owner: tuple[int, int]) -> None:
    """
    Serve one client until its command has ended or it is gone.

    Args:
        connection: the client, non-blocking.
        channel: the sandbox.
        owner: uid and gid that the workload has on the host; they own the pipes, so that programs
            inside can open ``/dev/stdout``.
    """
    try:
        received = await receive_frame(connection)
        if received is None:
            return
        request = checked_request(received[0])
        await _run(connection, channel, request, owner)
    except frames.FrameError as error:
        await _tell(connection, UsageError("the request is not understood", why=str(error)))
    except KmError as error:
        await _tell(connection, error)


async def _tell(connection: socket.socket, error: KmError) -> None:
    with contextlib.suppress(OSError):
        await send_frame(connection, {"error": error.to_dict()})


async def _run(
    connection: socket.socket, channel: InitChannel, request: dict[str, Any], owner: tuple[int, int]
) -> None:
    inner, outer = ([], []) if request["tty"] else _pipes(owner)
    try:
        command, master = await channel.start(request, tuple(inner))
        if request["tty"]:
            outer = [master] if master >= 0 else []
            _require_master(master)
        await send_frame(connection, {"started": True}, tuple(outer))
    finally:
        frames.close_all([*inner, *outer])
    listening = asyncio.ensure_future(_signals(connection, channel, command))
    try:
        either: set[asyncio.Future[Any]] = {listening, command.ended}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if command.ended.done():
            await send_frame(connection, {"exit": command.ended.result()})
        else:
            # The client is gone: what a closed terminal does, done for a command without one too.
            await channel.signal(command, signal.SIGHUP)
    finally:
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        channel.forget(command)


async def _signals(connection: socket.socket, channel: InitChannel, command: Command) -> None:
    """Pass on what the client sends until it hangs up."""
    with contextlib.suppress(frames.FrameError, OSError, UsageError):
        while (received := await receive_frame(connection, limit=4096)) is not None:
            await channel.signal(command, _integer(received[0].get("signal"), 1, 64))


def _pipes(owner: tuple[int, int]) -> tuple[list[int], list[int]]:
    """Return the inner and the outer ends of three pipes for stdin, stdout and stderr."""
    inner: list[int] = []
    outer: list[int] = []
    for inside_reads in (True, False, False):
        reading, writing = os.pipe2(os.O_CLOEXEC)
        if os.geteuid() == 0:
            os.fchown(reading, *owner)
        inner.append(reading if inside_reads else writing)
        outer.append(writing if inside_reads else reading)
    return inner, outer


def _require_master(descriptor: int) -> None:
    found = os.fstat(descriptor) if descriptor >= 0 else None
    if found is None or not stat.S_ISCHR(found.st_mode) or found.st_rdev != PTMX:
        raise ProvisionError("the sandbox did not hand out a terminal")
    try:
        fcntl.ioctl(descriptor, TIOCGPTN, b"\0" * 4)
        termios.tcgetattr(descriptor)
    except (OSError, termios.error) as error:
        raise ProvisionError("the sandbox did not hand out a terminal", why=str(error)) from error


def checked_request(data: dict[str, Any]) -> dict[str, Any]:
    """
    Return a client's request with every part checked.

    Raises:
        UsageError: something is missing or of the wrong type.
    """
    argv, env, cwd = data.get("argv"), data.get("env", {}), data.get("cwd", "/")
    if not isinstance(argv, list) or not argv or not all(_is_word(word) for word in argv) or not argv[0]:
        raise UsageError("argv must be a list of texts, the program first")
    if not isinstance(env, dict) or not all(
        _is_word(key) and key and "=" not in key and _is_word(value) for key, value in env.items()
    ):
        raise UsageError("env must map names to texts")
    if not _is_word(cwd) or not cwd.startswith("/"):
        raise UsageError("cwd must be an absolute path")
    return {
        "argv": argv,
        "env": env,
        "cwd": cwd,
        "tty": data.get("tty") is True,
        "rows": _integer(data.get("rows", 24), 0, 65535),
        "columns": _integer(data.get("columns", 80), 0, 65535),
    }


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


def _integer(value: Any, low: int, high: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise UsageError(f"must be a whole number from {low} to {high}")
    return value
