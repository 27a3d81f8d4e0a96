"""
Keeps a gate running on a sandbox's listeners.

The listeners belong to the supervisor, so nothing inside can take their ports while a gate is down.  A
gate that ends or falls silent is replaced; connections that were waiting are reset, so that clients see
an end and not a hang.  Repeated failure is loss of enforcement, and the supervisor freezes the sandbox.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import itertools
import json
import socket
import struct
import time
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import ControlUnavailableError, KmError, ProvisionError, from_dict

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from km_host.backend import GateHandle
    from km_host.listeners import Listeners

MAX_LINE = 256 * 1024
"""Longest line a gate may send, in bytes."""
MAX_WAITING = 8192
"""More than a listener's backlog: connections reset in one go."""


@frozen
class GateTiming:
    """Seconds and counts of the supervision (docs/internals.md)."""

    ready_s: float = 15.0
    ping_s: float = 5.0
    silent_s: float = 15.0
    failures: int = 5
    window_s: float = 60.0
    pause_s: float = 0.1
    answer_s: float = 15.0


GATE_TIMING = GateTiming()


class GateEndedError(Exception):
    """A gate is of no use any more; the message says why."""


class GateKeeper:
    """
    One gate at a time.

    Args:
        spawn: starts a gate and sends its bootstrap.
        listeners: the sandbox's sockets, non-blocking.
        lost: called once when enforcement is lost, with the reason.
        event: called with a kind and detail for each restart.
    """

    def __init__(
        self,
        spawn: Callable[[], Awaitable[GateHandle]],
        listeners: Listeners,
        *,
        lost: Callable[[str], Awaitable[None]],
        event: Callable[[str, dict[str, Any]], None],
        log: Callable[..., None],
        timing: GateTiming = GATE_TIMING,
    ) -> None:
        self._spawn = spawn
        self._listeners = listeners
        self._lost = lost
        self._event = event
        self._log = log
        self._timing = timing
        self._gate: GateHandle | None = None
        self._reader: asyncio.StreamReader | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._failures: collections.deque[float] = collections.deque(maxlen=timing.failures)
        self._heard = 0.0
        self._pong: dict[str, Any] = {}
        self._asked: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._numbers = itertools.count(1)
        self.ca_pem = ""
        self.restarts = 0
        self.state = "starting"

    def status(self) -> dict[str, Any]:
        """Return ``{pid, restarts, state, lease}``."""
        return {
            "pid": self._gate.pid if self._gate is not None else 0,
            "restarts": self.restarts,
            "state": self.state,
            "lease": str(self._pong.get("lease", "")),
            "connections": int(self._pong.get("connections") or 0),
        }

    async def start(self) -> str:
        """
        Start the first gate; returns its CA.

        Raises:
            KmError: it does not come up; what it said.
        """
        try:
            await self._start()
        except GateEndedError as error:
            await self.stop()
            raise ProvisionError("the gate does not start", why=str(error), hint="see gate.log") from error
        except BaseException:
            await self.stop()
            raise
        return self.ca_pem

    async def ask(self, what: str, **data: Any) -> Any:
        """
        Ask the gate something (docs/internals.md, "Bootstrap of a gate").

        Raises:
            ControlUnavailableError: no gate answers; one that starts later asks the control plane itself.
            KmError: what it answered.
        """
        writer = self._writer
        if self.state != "running" or writer is None:
            raise ControlUnavailableError("the gate does not answer", why=f"it is {self.state}")
        number = next(self._numbers)
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._asked[number] = future
        try:
            async with asyncio.timeout(self._timing.answer_s):
                writer.write(json.dumps({"ask": number, "what": what, **data}).encode() + b"\n")
                answer = await future
        except (OSError, TimeoutError) as error:
            raise ControlUnavailableError(
                "the gate does not answer", why=str(error) or f"not within {self._timing.answer_s:g} s"
            ) from error
        finally:
            self._asked.pop(number, None)
        if "error" in answer:
            raise from_dict(answer["error"])
        return answer.get("result")

    async def run(self) -> None:
        """Watch and replace gates until cancelled, or until enforcement is lost."""
        while True:
            reason = ""
            try:
                if self._gate is None:
                    await self._start()
                    self.restarts += 1
                    self._event("gate_restarted", {"restarts": self.restarts})
                await self._watch()
            except (GateEndedError, KmError, OSError) as error:
                reason = str(error)
            self.state = "down"
            await self.stop()
            waiting = reset_waiting(self._listeners.tcp)
            self._log("gate_ended", reason=reason, reset=waiting)
            now = time.monotonic()
            self._failures.append(now)
            if (
                len(self._failures) == self._timing.failures
                and now - self._failures[0] <= self._timing.window_s
            ):
                self.state = "lost"
                await self._lost(f"the gate failed {self._timing.failures} times: {reason}")
                reset_waiting(self._listeners.tcp)
                return
            await asyncio.sleep(self._timing.pause_s if len(self._failures) > 1 else 0)

    async def stop(self) -> None:
        """End the gate, whatever state it is in."""
        gate, writer = self._gate, self._writer
        self._gate = self._reader = self._writer = None
        for future in self._asked.values():
            if not future.done():
                future.set_exception(ConnectionError("it ended"))
        if writer is not None:
            writer.close()
        if gate is not None:
            gate.kill()
            with contextlib.suppress(OSError):
                if writer is None:
                    gate.channel.close()
            await gate.wait()

    async def _start(self) -> None:
        self._gate = gate = await self._spawn()
        gate.channel.setblocking(False)
        self._reader, self._writer = await asyncio.open_connection(sock=gate.channel, limit=MAX_LINE)
        try:
            async with asyncio.timeout(self._timing.ready_s):
                answer = await self._line()
        except TimeoutError as error:
            raise GateEndedError(f"it is not ready after {self._timing.ready_s:g} s") from error
        if not answer.get("ready"):
            raise from_dict(answer.get("error") or {"code": "provision", "what": "the gate does not start"})
        ca_pem = answer.get("ca_pem")
        if not isinstance(ca_pem, str) or "BEGIN CERTIFICATE" not in ca_pem:
            raise GateEndedError("it did not say which CA it uses")
        if self.ca_pem and ca_pem != self.ca_pem:
            raise GateEndedError("it came back with another CA than the sandbox trusts")
        self.ca_pem = ca_pem
        self._heard = time.monotonic()
        self.state = "running"
        self._log("gate_ready", pid=gate.pid)

    async def _watch(self) -> None:
        """Ping until the gate ends; always raises."""
        gate = self._gate
        if gate is None:
            raise GateEndedError("there is no gate")
        tasks = {
            asyncio.ensure_future(task) for task in (self._read_pongs(), self._ping(), self._exited(gate))
        }
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _exited(self, gate: GateHandle) -> None:
        raise GateEndedError(f"it ended with code {await gate.wait()}")

    async def _read_pongs(self) -> None:
        while True:
            message = await self._line()
            if "pong" in message:
                self._pong = message
                self._heard = time.monotonic()
            future = self._asked.get(message.get("answer", 0))
            if future is not None and not future.done():
                future.set_result(message)

    async def _ping(self) -> None:
        number = 0
        while True:
            if time.monotonic() - self._heard > self._timing.silent_s:
                raise GateEndedError(f"it has not answered for {self._timing.silent_s:g} s")
            number += 1
            if self._writer is None:
                raise GateEndedError("there is no channel")
            self._writer.write(json.dumps({"ping": number}).encode() + b"\n")
            await asyncio.sleep(self._timing.ping_s)

    async def _line(self) -> dict[str, Any]:
        if self._reader is None:
            raise GateEndedError("there is no channel")
        try:
            line = await self._reader.readline()
            message = json.loads(line) if line else None
        except (ValueError, OSError) as error:
            raise GateEndedError(f"its channel is broken: {error}") from error
        if message is None:
            raise GateEndedError("it closed its channel")
        if not isinstance(message, dict):
            raise GateEndedError("it sent something that is not an object")
        return message


def reset_waiting(tcp: socket.socket) -> int:
    """
    Accept and reset every connection that waits on a listener; returns how many.

    With ``SO_LINGER`` 0 the close is a reset (socket(7)): the client sees a broken connection at once.
    """
    for count in range(MAX_WAITING):
        try:
            connection, _ = tcp.accept()
        except OSError:
            return count
        with connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return MAX_WAITING
