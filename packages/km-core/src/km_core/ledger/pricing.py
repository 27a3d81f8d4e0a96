"""
What a call costs and what it may cost at most, in whole nano-dollars.

One formula serves both sides, so that a settled cost cannot exceed its reservation as long as the
usage keeps the bounds of the plan: sum of tokens times rate times multipliers, rounded up once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.ledger.prices import PriceTable, default_table

if TYPE_CHECKING:
    from km_core.ledger.rates import Rates
    from km_core.types import CallPlan, Usage

TOKENS_PER_RATE = 1_000_000
"""Rates are per this many tokens."""


@frozen
class Priced:
    """
    The cost of a call.

    Attributes:
        cost_nusd: nano-dollars, rounded up.
        rate_source: ``table``, ``family`` or ``fallback``.
        estimated: the answer was incomplete and bounds took the place of figures.
    """

    cost_nusd: int
    rate_source: str
    estimated: bool = False


def price(usage: Usage, table: PriceTable | None = None) -> Priced:
    """
    Return what a call cost.

    An incomplete usage is priced at the larger of what was reported and what was estimated, never at
    nothing.  Figures below zero count as zero.
    """
    found = (table or default_table()).find(usage.provider, usage.model)
    write = max(usage.cache_write_tokens, 0)
    write_1h = min(max(usage.cache_write_1h_tokens, 0), write)
    plain = max(usage.input_tokens, 0)
    read = max(usage.cache_read_tokens, 0)
    output = max(usage.output_tokens, 0)
    unseen = 0
    if not usage.complete:
        output = max(output, usage.estimated_output_tokens, usage.output_bound_tokens)
        unseen = max(usage.estimated_input_tokens - plain - read - write, 0)
    rates = found.rates.at(plain + read + write + unseen)
    amount = (
        plain * rates.input
        + read * rates.cache_read
        + (write - write_1h) * rates.cache_write_5m
        + write_1h * rates.cache_write_1h
        # Input that nobody reported may have been a cache write.
        + unseen * rates.dearest_input(usage.estimated_cache_write)
        + output * rates.output
    )
    factor, scale = _factor(rates, usage.multipliers, at_least_one=False)
    cost = _ceil(amount * factor, TOKENS_PER_RATE * scale)
    cost += max(usage.web_search_requests, 0) * rates.web_search
    return Priced(cost, found.source, estimated=not usage.complete)


def worst_case_nusd(
    provider: str, model: str, plan: CallPlan, output_limit: int, table: PriceTable | None = None
) -> int:
    """
    Return the most a call can cost.

    Args:
        provider: provider name in the price table.
        model: model id as the request names it.
        plan: the request, read; its input counts at the dearest rate it can get.
        output_limit: output tokens for all choices together, as in `CallPlan.output_limit`.
        table: price table, by default the package's own.

    Returns:
        Nano-dollars, rounded up.
    """
    fixed, slope, scale = _line(provider, model, plan, table)
    return _ceil(fixed + max(output_limit, 0) * slope, scale)


def affordable_output(
    provider: str, model: str, plan: CallPlan, remaining_nusd: int, table: PriceTable | None = None
) -> int:
    """
    Return the largest output limit that *remaining_nusd* pays for.

    Returns:
        Tokens for all choices together, at most the plan's own limit; -1 when not even the input
        fits, so that a call without output (embeddings) can be told from one that does not fit.
    """
    fixed, slope, scale = _line(provider, model, plan, table)
    room = remaining_nusd * scale - fixed
    if room < 0:
        return -1
    if slope == 0:
        return plan.output_limit
    return min(room // slope, plan.output_limit)


def _line(provider: str, model: str, plan: CallPlan, table: PriceTable | None) -> tuple[int, int, int]:
    """Return ``(fixed, per output token, scale)``: the cost is (fixed + tokens * slope) / scale."""
    rates = (table or default_table()).find(provider, model).rates.at(plan.input_bound)
    factor, scale = _factor(rates, plan.multipliers, at_least_one=True)
    scale *= TOKENS_PER_RATE
    fixed = plan.input_bound * rates.dearest_input(plan.cache_write) * factor
    fixed += max(plan.server_tool_uses, 0) * rates.web_search * scale
    return fixed, rates.output * factor, scale


def _factor(rates: Rates, names: tuple[str, ...], *, at_least_one: bool) -> tuple[int, int]:
    """Multiply the named multipliers; a discount that was only asked for does not count."""
    factor = scale = 1
    for name in names:
        thousandths = rates.multiplier(name)
        factor *= max(thousandths, 1000) if at_least_one else thousandths
        scale *= 1000
    return factor, scale


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)
