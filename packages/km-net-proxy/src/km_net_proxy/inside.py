"""
The inside API: what the sandbox may ask its gate at ``http://km.internal/``.

The gate's own services are read-only; plugins add theirs (`km_net_proxy.inside_services`).  The name never
leaves the gate, and nothing is cached on the way.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

from km_core.errors import KmError
from km_core.ledger.money import usd_number
from km_net_proxy.http.refusal import json_error, response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from km_core.types import InsideService
    from km_net_proxy.budget import BudgetView
    from km_net_proxy.inside_services import InsideServices

    Service = Callable[[], Awaitable[dict[str, Any]]]

_JSON = "application/json"


class InsideApi:
    """
    Answers requests to km.internal.

    Args:
        budget: the sandbox's budget.
        sandbox_id: whose gate it is.
        added: the services of plugins.
    """

    def __init__(self, budget: BudgetView, *, sandbox_id: str, added: InsideServices | None = None) -> None:
        self._budget = budget
        self._added = added
        self._sandbox_id = sandbox_id
        self._asking: asyncio.Task[dict[str, Any]] | None = None
        self._services: dict[str, tuple[str, Service]] = {
            "/": ("this list", self._index),
            "/budget": ("what is spent and what is left, in dollars", self._summary),
        }

    async def answer(self, method: str, target: str, *, close: bool) -> bytes:
        """Return the whole response to one request."""
        path = target.partition("?")[0]
        path = path.rstrip("/") or "/"
        head_only = method == "HEAD"
        if method not in ("GET", "HEAD"):
            body = json_error("method_not_allowed", "only GET is served here")
            return response(405, body, content_type=_JSON, headers=(("Allow", "GET, HEAD"),), close=close)
        entry = self._services.get(path)
        if entry is None:
            body = json_error("not_found", f"there is no service {path[:80]!r}", services=self._list())
            return response(404, body, content_type=_JSON, close=close, head_only=head_only)
        try:
            data = await entry[1]()
        except (KmError, KeyError, TypeError):
            body = json_error("control_plane_unavailable", "the control plane cannot be reached")
            return response(503, body, content_type=_JSON, close=close, head_only=head_only)
        body = json.dumps(data, indent=2).encode() + b"\n"
        return response(200, body, content_type=_JSON, close=close, head_only=head_only)

    def added(self, target: str) -> InsideService | None:
        """Return the plugin's service that a request target asks, or None."""
        return None if self._added is None else self._added.find(target)

    async def answer_added(
        self,
        service: InsideService,
        method: str,
        target: str,
        *,
        headers: Mapping[str, str],
        body: bytes,
        close: bool,
    ) -> bytes:
        """Return the whole response of a plugin's service to one request."""
        allowed = "GET, HEAD, POST" if service.writes else "GET, HEAD"
        if method not in allowed.split(", ") or self._added is None:
            refusal = json_error("method_not_allowed", f"{allowed} are served here")
            return response(405, refusal, content_type=_JSON, headers=(("Allow", allowed),), close=close)
        asked = "GET" if method == "HEAD" else method
        answer = await self._added.answer(service, asked, target, headers=headers, body=body)
        head_only = method == "HEAD"
        return response(answer.status, answer.body, content_type=_JSON, close=close, head_only=head_only)

    def _list(self) -> dict[str, str]:
        own = {path: summary for path, (summary, _) in self._services.items()}
        return own if self._added is None else {**self._added.summaries, **own}

    async def _index(self) -> dict[str, Any]:
        return {"sandbox_id": self._sandbox_id, "services": self._list()}

    async def _summary(self) -> dict[str, Any]:
        # Whoever asks meanwhile shares the answer: the control plane serves other sandboxes too.
        asking = self._asking
        if asking is None:
            asking = self._asking = asyncio.get_running_loop().create_task(self._budget.summary())
            asking.add_done_callback(self._answered)
        return budget_in_dollars(await asyncio.shield(asking))

    def _answered(self, asked: asyncio.Task[dict[str, Any]]) -> None:
        self._asking = None
        if not asked.cancelled():
            asked.exception()  # whoever asked may be gone


def budget_in_dollars(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a summary of the wire with nano-dollars as dollars (``_nusd`` becomes ``_usd``)."""

    def convert(value: Any) -> Any:
        if isinstance(value, dict):
            return {
                (key.removesuffix("_nusd") + "_usd" if key.endswith("_nusd") else key): (
                    usd_number(item) if key.endswith("_nusd") and isinstance(item, int) else convert(item)
                )
                for key, item in value.items()
            }
        if isinstance(value, list):
            return [convert(item) for item in value]
        return value

    result: dict[str, Any] = convert(summary)
    for pool in ("ai", "compute"):
        entry, wire = result.get(pool), summary.get(pool)
        if isinstance(entry, dict) and isinstance(wire, dict):
            limit = wire.get("limit_nusd")
            used = int(wire.get("spent_nusd", 0)) + int(wire.get("reserved_nusd", 0))
            entry["remaining_usd"] = None if limit is None else usd_number(max(int(limit) - used, 0))
    return result
