"""Money of one sandbox, as plain data: the rules of the ledger for `km_core.testing.fake_control`."""

from __future__ import annotations

from typing import Any

from km_core.errors import GuardError, UsageError
from km_core.handlers.budget import Pool, admits

_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


def new_budget() -> dict[str, Any]:
    """Return the money of a new sandbox: no ceilings, nothing spent."""
    return {
        "ai": {"limit_nusd": None, "spent_nusd": 0},
        "compute": {"limit_nusd": None, "spent_nusd": 0},
        "warning_threshold": 0.8,
        "held": {},
        "ended": {},
        "models": {},
    }


def add(budget: dict[str, Any], *, ai: int, compute: int) -> None:
    """Raise ceilings; raises `GuardError` for a pool without one and `UsageError` when nothing is added."""
    amounts = {pool: amount for pool, amount in (("ai", ai), ("compute", compute)) if amount > 0}
    if not amounts:
        raise UsageError("one of the amounts must be above 0")
    for pool in amounts:
        if budget[pool]["limit_nusd"] is None:
            raise GuardError(f"the {pool} pool has no ceiling to raise")
    for pool, amount in amounts.items():
        budget[pool]["limit_nusd"] += amount


def pool_of(budget: dict[str, Any]) -> Pool:
    """Return the AI pool."""
    held = sum(item["amount"] for item in budget["held"].values())
    return Pool(budget["ai"]["limit_nusd"], budget["ai"]["spent_nusd"], held)


def reserve(budget: dict[str, Any], call_id: str, amount: int, model: str, provider: str) -> dict[str, Any]:
    """Hold money for a call if the ceiling has room."""
    if call_id in budget["ended"]:
        raise GuardError("the call has ended already", where=call_id)
    held = budget["held"].get(call_id)
    if held is not None and held["amount"] != amount:
        raise GuardError("the call holds a reservation of another amount", where=call_id)
    granted = held is not None or admits(pool_of(budget), amount)
    if granted:
        budget["held"][call_id] = {"amount": amount, "model": model, "provider": provider}
    pool = pool_of(budget)
    return {
        "granted": granted,
        "spent_nusd": pool.spent_nusd,
        "reserved_nusd": pool.reserved_nusd,
        "limit_nusd": pool.limit_nusd,
        "remaining_nusd": pool.remaining_nusd,
    }


def settle(budget: dict[str, Any], call_id: str, cost: int, usage: dict[str, Any]) -> None:
    """Record what a call cost, once."""
    if budget["ended"].get(call_id) == "settled":
        return
    held = budget["held"].pop(call_id, {})
    budget["ended"][call_id] = "settled"
    budget["ai"]["spent_nusd"] += cost
    provider = usage.get("provider") or held.get("provider", "")
    model = usage.get("model") or held.get("model", "")
    line = budget["models"].setdefault(
        f"{provider} {model}",
        {
            "provider": provider,
            "model": model,
            **dict.fromkeys(_TOKENS, 0),
            "calls": 0,
            "estimated_calls": 0,
            "spent_nusd": 0,
            "rate_source": "",
        },
    )
    for name in _TOKENS:
        line[name] += usage.get(name, 0)
    line["calls"] += 1
    line["estimated_calls"] += int(bool(usage.get("estimated")))
    line["spent_nusd"] += cost
    line["rate_source"] = usage.get("rate_source") or line["rate_source"]


def release(budget: dict[str, Any], call_id: str) -> None:
    """Give a reservation back; a call that has ended stays as it is."""
    if call_id not in budget["ended"]:
        budget["held"].pop(call_id, None)
        budget["ended"][call_id] = "released"


def ai_summary(budget: dict[str, Any]) -> dict[str, Any]:
    """Return the AI pool without its models."""
    pool = pool_of(budget)
    return {
        "limit_nusd": pool.limit_nusd,
        "spent_nusd": pool.spent_nusd,
        "reserved_nusd": pool.reserved_nusd,
        "exhausted": pool.exhausted,
    }


def summary(budget: dict[str, Any]) -> dict[str, Any]:
    """Return both pools, as tabled in ``docs/internals.md``."""
    spent, limit = budget["ai"]["spent_nusd"], budget["ai"]["limit_nusd"]
    return {
        "ai": {**ai_summary(budget), "models": [budget["models"][key] for key in sorted(budget["models"])]},
        "compute": dict(budget["compute"]),
        "warning_threshold": budget["warning_threshold"],
        "warned": limit is not None and 0 < spent >= limit * budget["warning_threshold"],
    }
