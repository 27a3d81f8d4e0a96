"""
The journal of settlements: what a model call cost reaches the ledger, whatever dies in between.

An entry is on the disk before it is sent, is sent until the control plane has taken it (by call id, so
twice does no harm), and what a gate left behind is sent by the next one (DESIGN section 5).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import TYPE_CHECKING, Any

import structlog
from attrs import frozen

from km_core.errors import ControlError, ControlUnavailableError, KmError

if TYPE_CHECKING:
    from pathlib import Path

    from km_net_proxy.http.credentials import Control

_RETRY_S = 2.0
_COMPACT_BYTES = 1 << 20


@frozen
class Settlement:
    """
    One entry.

    Attributes:
        call_id: the reservation's id.
        op: ``ledger.settle`` or ``ledger.release``.
        args: the operation's other arguments.
    """

    call_id: str
    op: str
    args: dict[str, Any]

    def to_line(self) -> bytes:
        """Return one line of the journal."""
        data = {"call_id": self.call_id, "op": self.op, "args": self.args}
        return json.dumps(data, separators=(",", ":")).encode() + b"\n"


class SettlementJournal:
    """
    Writes, sends and replays settlements.

    Args:
        path: ``settle.wal``.
        control: the sandbox's connection to the control plane.
    """

    def __init__(self, path: Path, control: Control) -> None:
        self._path = path
        self._control = control
        self._fd = -1
        self._queued: list[Settlement] = []
        self._open: dict[str, Settlement] = {}
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = False
        self._log = structlog.get_logger("km.gate.settle")

    @property
    def pending(self) -> int:
        """Settlements the control plane has not taken yet."""
        return len(self._queued) + len(self._open)

    def start(self) -> None:
        """
        Load what an earlier gate left and begin to send.

        Raises:
            KmError: the journal cannot be opened; the gate must not meter without it.
        """
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(self._path, flags, 0o600)
            data = self._path.read_bytes()
        except OSError as error:
            raise KmError(
                "the journal of settlements cannot be opened", where=str(self._path), why=str(error)
            ) from error
        self._open = _replay(data)
        if self._open:
            self._log.info("settlements_replayed", count=len(self._open))
        if data and not data.endswith(b"\n"):
            os.write(self._fd, b"\n")  # a torn line stays one line of its own
        self._wake.set()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def add(self, settlement: Settlement) -> None:
        """Take a settlement; it is written and sent in the background."""
        self._queued.append(settlement)
        self._wake.set()

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            if self._queued:
                batch, self._queued = self._queued, []
                await self._write(batch)
            if self._open and not await self._sent() and not self._closing:
                # Nobody listens: wait, but write what comes in meanwhile.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_RETRY_S):
                        await self._wake.wait()
                self._wake.set()
            if self._closing and not self._queued:
                return

    async def _write(self, batch: list[Settlement]) -> None:
        lines = b"".join(settlement.to_line() for settlement in batch)
        try:
            await asyncio.to_thread(self._append, lines)
        except OSError as error:
            # Sending is still better than losing it: memory is the journal until it has gone.
            self._log.error("journal_not_written", error=str(error))
        for settlement in batch:
            self._open[settlement.call_id] = settlement

    def _append(self, lines: bytes) -> None:
        size = os.fstat(self._fd).st_size
        try:
            if os.write(self._fd, lines) != len(lines):
                raise OSError("the disk is full")
            os.fdatasync(self._fd)
        except OSError:
            # A torn line would take the next one with it: both would read as one that is damaged.
            os.ftruncate(self._fd, size)
            raise

    async def _sent(self) -> bool:
        """Send everything open; a defect on the way is logged and tried again, never the end of sending."""
        try:
            return await self._send()
        except Exception as error:  # noqa: BLE001 - settlements outlive whatever fails once
            self._log.error("settlements_not_sent", error=type(error).__name__)
            return False

    async def _send(self) -> bool:
        """Send everything open, at most 32 at a time; False when the control plane is not there."""
        entries = list(self._open.values())
        for start in range(0, len(entries), 32):
            answers = await asyncio.gather(*(self._one(entry) for entry in entries[start : start + 32]))
            if not all(answers):
                return False
        return True

    async def _one(self, entry: Settlement) -> bool:
        try:
            await self._control.call(entry.op, call_id=entry.call_id, **entry.args)
        except ControlError as error:
            # Not there, going down, or failing inside: nothing is said about the settlement itself.
            if not isinstance(error, ControlUnavailableError):
                self._log.warning("settlement_delayed", call_id=entry.call_id, error=str(error))
            return False
        except KmError as error:
            # It was understood and refused; sending it again changes nothing.
            self._log.error("settlement_refused", call_id=entry.call_id, error=str(error))
        self._open.pop(entry.call_id, None)
        try:
            done = json.dumps({"done": entry.call_id}).encode() + b"\n"
            size = os.fstat(self._fd).st_size
            if os.write(self._fd, done) != len(done):
                os.ftruncate(self._fd, size)
            if not self._open and os.fstat(self._fd).st_size > _COMPACT_BYTES:
                os.ftruncate(self._fd, 0)
        except OSError as error:
            self._log.warning("journal_not_marked", error=str(error))
        return True

    async def close(self, timeout_s: float = 2.0) -> None:
        """Write what is queued and give the control plane a moment to take it."""
        self._closing = True
        self._wake.set()
        if self._task is not None:
            with contextlib.suppress(TimeoutError, asyncio.CancelledError):
                async with asyncio.timeout(timeout_s):
                    await asyncio.shield(self._task)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        if self._fd >= 0:
            if self._queued:
                with contextlib.suppress(OSError):
                    self._append(b"".join(settlement.to_line() for settlement in self._queued))
            os.close(self._fd)
            self._fd = -1


def _replay(data: bytes) -> dict[str, Settlement]:
    """Return what the journal holds and nobody has taken; a line that was torn by a crash is no entry."""
    entries: dict[str, Settlement] = {}
    for line in data.splitlines():
        try:
            item = json.loads(line)
            if "done" in item:
                entries.pop(item["done"], None)
            else:
                entries[item["call_id"]] = Settlement(item["call_id"], item["op"], dict(item["args"]))
        except (ValueError, KeyError, TypeError):
            continue
    return entries
