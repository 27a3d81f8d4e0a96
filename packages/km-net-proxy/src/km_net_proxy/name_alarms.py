"""Telling that a suffix's names carry much: to the audit chain at once, to the control plane for notifiers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import structlog

from km_core.errors import KmError

if TYPE_CHECKING:
    from km_core.audit import ChainWriter
    from km_core.control.aio import AsyncControlClient
    from km_net_proxy.dns.name_budget import NameAlarm

WARNING, EXHAUSTED = "name_budget_warning", "name_budget_exhausted"


class NameAlarms:
    """
    Tells alarms of one gate.

    Args:
        chain: takes the record.
        control: takes the event.
    """

    def __init__(self, chain: ChainWriter, control: AsyncControlClient) -> None:
        self._chain = chain
        self._control = control
        self._telling: set[asyncio.Task[None]] = set()
        self._log = structlog.get_logger("km.gate")

    def tell(self, alarm: NameAlarm) -> None:
        """
        Record an alarm and begin to tell the control plane.

        Raises:
            AuditError: it cannot be recorded; the question is then not asked.
        """
        kind = EXHAUSTED if alarm.exhausted else WARNING
        detail = {
            "suffix": alarm.suffix or "*",
            "used_bytes": alarm.used_bytes,
            "limit_bytes": alarm.limit_bytes,
        }
        self._chain.append({"kind": kind, **detail})
        self._log.warning(kind, **detail)
        task = asyncio.get_running_loop().create_task(self._send(kind, detail))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _send(self, kind: str, detail: dict[str, Any]) -> None:
        try:
            await self._control.call("event", kind=kind, detail=detail)
        except KmError as error:
            self._log.warning("name_budget_not_told", error=str(error))

    async def close(self) -> None:
        """Wait for what is being told; call it before the control plane's connection is closed."""
        await asyncio.gather(*self._telling, return_exceptions=True)
