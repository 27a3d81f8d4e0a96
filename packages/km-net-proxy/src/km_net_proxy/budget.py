"""
Reserve before a model call leaves, settle after: the ceiling holds whatever runs in parallel.

Money is integer nano-dollars from the price table to the wire; dollars appear in messages only
(DESIGN section 8, spec/metering-budget.md section 6).
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Protocol

import structlog
from attrs import asdict, evolve, frozen

from km_core.errors import ControlError, KmError
from km_core.ledger.money import usd_number
from km_core.ledger.pricing import affordable_output, price, worst_case_nusd
from km_core.types import Usage
from km_net_proxy.settlement import Settlement

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.ledger.prices import PriceTable
    from km_core.types import CallPlan
    from km_net_proxy.http.credentials import Control
    from km_net_proxy.settlement import SettlementJournal

_LOG = structlog.get_logger("km.gate.budget")
_ATTEMPTS = 4
_CENT = 10_000_000
_MOST_NUSD = 10**15
"""The largest amount the ledger's wire takes; no pool holds it, so such a call is clamped or refused."""


class Refused(Exception):  # noqa: N818 - an answer, not a defect
    """
    A model call is refused.

    Args:
        code: ``ai_budget_exhausted``, ``ai_endpoint_not_metered``, ``control_plane_unavailable`` ...
        message: for people.
        km: the ``km`` member of the answer.
        exhausted: whether ``x-km-budget: exhausted`` is said.
    """

    def __init__(
        self, code: str, message: str, km: dict[str, object] | None = None, *, exhausted: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.km = km or {"code": code}
        self.exhausted = exhausted


@frozen
class Reservation:
    """
    Room for one call.

    Attributes:
        call_id: its id in the ledger.
        amount_nusd: what was reserved.
        output_limit: what the output was clamped to, or None when it was not.
        plan: the call.
        provider: whose call it is.
    """

    call_id: str
    amount_nusd: int
    output_limit: int | None
    plan: CallPlan
    provider: str


class BudgetView(Protocol):
    """What the inside API and the engine ask."""

    async def summary(self) -> dict[str, Any]:
        """Return the summary of the wire (docs/internals.md)."""


class Budget:
    """
    The AI pool of one sandbox.

    Args:
        control: the sandbox's connection to the control plane.
        journal: carries settlements.
        prices: the price table.
        ceiling: whether the plan sets a limit; one set later is noticed at the next call.
        sandbox: how the operator refers to the sandbox, for hints.
    """

    def __init__(
        self,
        control: Control,
        journal: SettlementJournal,
        prices: PriceTable,
        *,
        ceiling: bool,
        sandbox: str,
        new_id: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        self._control = control
        self._journal = journal
        self._prices = prices
        self._ceiling = ceiling
        self._sandbox = sandbox
        self._new_id = new_id
        self._told_at: int | None = None
        self._telling: set[asyncio.Task[None]] = set()

    async def summary(self) -> dict[str, Any]:
        """Return the budget's summary; raises `KmError`."""
        answer = await self._control.call("budget.get")
        if not isinstance(answer, dict):
            raise KmError("the control plane gave no summary")
        return answer

    async def has_ceiling(self) -> bool:
        """Whether spending is limited; fails closed when nobody can say."""
        if self._ceiling:
            return True
        try:
            summary = await self.summary()
            return summary["ai"]["limit_nusd"] is not None
        except (KmError, KeyError, TypeError):
            return True

    async def reserve(self, provider: str, plan: CallPlan) -> Reservation:
        """
        Make room for a call, lowering its output limit when the rest of the pool asks for it.

        Raises:
            Refused: there is not enough left, or nobody answers.
        """
        amount = self._worst(provider, plan, plan.output_limit)
        limit: int | None = None
        answer: dict[str, Any] = {}
        for _ in range(_ATTEMPTS):
            # A fresh id for each attempt: a refused reservation is remembered by its id.
            call_id = self._new_id()
            answer = await self._ask(call_id, provider, plan, amount)
            if answer.get("granted") is True:
                return Reservation(call_id, amount, limit, plan, provider)
            remaining = answer.get("remaining_nusd")
            if not isinstance(remaining, int):
                break
            affordable = affordable_output(provider, plan.model, plan, remaining, self._prices)
            if affordable < max(plan.min_output, 0) or affordable >= (
                plan.output_limit if limit is None else limit
            ):
                break
            limit = affordable
            amount = self._worst(provider, plan, limit)
        self._tell_exhausted(provider, plan, answer)
        raise self._exhausted(plan, answer, amount)

    def _worst(self, provider: str, plan: CallPlan, output_limit: int) -> int:
        return min(worst_case_nusd(provider, plan.model, plan, output_limit, self._prices), _MOST_NUSD)

    async def _ask(self, call_id: str, provider: str, plan: CallPlan, amount: int) -> dict[str, Any]:
        try:
            answer = await self._control.call(
                "ledger.reserve", call_id=call_id, model=plan.model, provider=provider, amount_nusd=amount
            )
        except BaseException as error:
            # The ledger may have granted it before the line broke or the call was cut: give it back.
            self._journal.add(Settlement(call_id, "ledger.release", {}))
            if isinstance(error, KmError):
                raise unavailable() from error
            raise
        if not isinstance(answer, dict):
            self._journal.add(Settlement(call_id, "ledger.release", {}))
            raise unavailable()
        return answer

    def _tell_exhausted(self, provider: str, plan: CallPlan, answer: dict[str, Any]) -> None:
        """
        Raise ``budget_exhausted`` once when what is left buys not even the model's smallest call.

        The control plane raises it by itself when the ceiling is reached to the last nano-dollar; a
        remainder below the price of the smallest call ends the work just as well, and only the gate
        knows that price.  Another ceiling arms it anew.
        """
        spent, limit = answer.get("spent_nusd"), answer.get("limit_nusd")
        if not isinstance(spent, int) or not isinstance(limit, int) or spent >= limit:
            return
        smallest = evolve(plan, input_bound=min(plan.input_bound, 1), server_tool_uses=0)
        left = affordable_output(provider, plan.model, smallest, limit - spent, self._prices)
        if left >= max(plan.min_output, 0) or self._told_at == limit:
            return
        self._told_at = limit
        detail = {
            "pool": "ai",
            "model": plan.model,
            "spent_nusd": spent,
            "limit_nusd": limit,
            "remaining_nusd": limit - spent,
        }
        task = asyncio.get_running_loop().create_task(self._tell(detail))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, detail: dict[str, Any]) -> None:
        try:
            await self._control.call("event", kind="budget_exhausted", detail=detail)
        except KmError as error:
            if isinstance(error, ControlError):
                self._told_at = None  # nobody heard it: the next refused call says it again
            _LOG.warning("budget_event_not_told", error=str(error))

    async def close(self) -> None:
        """Wait for what is being told; call it before the control plane's connection is closed."""
        await asyncio.gather(*self._telling, return_exceptions=True)

    def _exhausted(self, plan: CallPlan, answer: dict[str, Any], amount: int) -> Refused:
        spent, limit = answer.get("spent_nusd"), answer.get("limit_nusd")
        spent = spent if isinstance(spent, int) else 0
        limit = limit if isinstance(limit, int) else 0
        add = max(-(-amount // _CENT), 1) * _CENT
        top_up = f"km budget add {self._sandbox} --ai {usd_number(add):.2f}"
        message = (
            f"The AI budget of this sandbox does not cover this call: ${usd_number(spent):.4f} of "
            f"${usd_number(limit):.4f} is spent. On the host: {top_up}"
        )
        km: dict[str, object] = {
            "code": "ai_budget_exhausted",
            "pool": "ai",
            "spent": usd_number(spent),
            "limit": usd_number(limit),
            "model": plan.model,
            "top_up": top_up,
        }
        return Refused("ai_budget_exhausted", message, km, exhausted=True)

    def settle(self, reservation: Reservation, usage: Usage) -> None:
        """Settle a call at what its answer says, or at its bounds where the answer broke off."""
        priced = price(usage, self._prices)
        self._add(reservation, priced.cost_nusd, usage, priced.rate_source, estimated=priced.estimated)

    def settle_lost(self, reservation: Reservation) -> None:
        """Settle a call of which nothing was heard, at all that was reserved for it."""
        plan = reservation.plan
        output = plan.output_limit if reservation.output_limit is None else reservation.output_limit
        usage = Usage(
            reservation.provider,
            plan.model or "unknown",
            input_tokens=plan.input_bound,
            output_tokens=output,
            complete=False,
        )
        self._add(reservation, reservation.amount_nusd, usage, "reservation", estimated=True)

    def release(self, reservation: Reservation) -> None:
        """Give the room back: the provider refused, or the call never left."""
        self._journal.add(Settlement(reservation.call_id, "ledger.release", {}))

    def _add(
        self, reservation: Reservation, cost: int, usage: Usage, source: str, *, estimated: bool
    ) -> None:
        data = asdict(usage)
        data["provider"] = usage.provider or reservation.provider
        data["model"] = usage.model or reservation.plan.model or "unknown"
        data["notes"] = list(usage.notes)
        data["multipliers"] = list(usage.multipliers)
        data |= {"estimated": estimated, "rate_source": source}
        self._journal.add(
            Settlement(reservation.call_id, "ledger.settle", {"cost_nusd": cost, "usage": data})
        )


def unavailable() -> Refused:
    """Return the refusal for a control plane that cannot be asked."""
    return Refused(
        "control_plane_unavailable",
        "The control plane of this sandbox cannot be reached, so the call was not made. Try again.",
        {"code": "control_plane_unavailable", "pool": "ai"},
    )
