"""
The money of every sandbox: integers, in nano-dollars, changed only inside transactions.

``reserve`` takes an amount before a call leaves, ``settle`` puts in its place what the call cost,
``release`` gives it back.  A reservation is made by one conditional UPDATE, so that
``spent + reserved <= limit`` holds whoever else is reserving; only a provider that bills more than
the worst case that was reserved can move the spend past the ceiling, and that is recorded as it is
and flagged.  Every call counts once, by its ``call_id``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import GuardError, NotFoundError, UsageError
from km_core.handlers.budget import PPM, Notice, Pool, admits, notices

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable

    from km_embedded.store import Database

MAX_NUSD = 10**15
"""Largest single amount: a million dollars.  Sums stay far below SQLite's 2**63."""
MAX_TOKENS = 10**12
STALE_S = 15 * 60
"""Age at which a reservation without a settlement is settled at its full amount."""
KEEP_CALLS_S = 2 * 86400
"""How long a call id is remembered, for settlements that are sent again."""

_POOLS = ("ai", "compute")
_TOKENS = ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens")


@frozen
class CallUsage:
    """What a settled call used; the ledger's part of `km_core.types.Usage`."""

    provider: str = ""
    model: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    estimated: bool = False
    rate_source: str = ""

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> CallUsage:
        """
        Rebuild from the wire; figures that the ledger does not keep are ignored.

        Raises:
            UsageError: a figure is negative, too large or of the wrong type.
        """
        known = {name: data[name] for name in cls.__annotations__ if name in data}
        for name, value in known.items():
            if name in _TOKENS:
                valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_TOKENS
            elif name == "estimated":
                valid = isinstance(value, bool)
            else:
                valid = isinstance(value, str) and len(value) <= 256
            if not valid:
                raise UsageError(f"usage.{name} has no valid value", where="ledger.settle")
        return cls(**known)


class Ledger:
    """
    The ledger of every sandbox.

    Every changing method runs inside the caller's transaction.

    Args:
        db: the database.
        emit: records an event in the same transaction: sandbox id, kind, detail.
    """

    def __init__(self, db: Database, emit: Callable[[str, str, dict[str, Any]], None]) -> None:
        self._db = db
        self._emit = emit

    def set_limits(
        self, sandbox_id: str, *, ai: int | None, compute: int | None, threshold_ppm: int | None
    ) -> None:
        """Set both ceilings (None for none) and, unless None, the warning threshold."""
        self._row(sandbox_id)
        self._db.run(
            "UPDATE budgets SET ai_limit = ?, compute_limit = ?, threshold_ppm = coalesce(?, threshold_ppm)"
            " WHERE sandbox_id = ?",
            (ai, compute, threshold_ppm, sandbox_id),
        )
        detail = {"ai_limit_nusd": ai, "compute_limit_nusd": compute}
        self._emit(sandbox_id, "budget_set", detail)
        self._tell(sandbox_id)

    def add(self, sandbox_id: str, *, ai: int, compute: int) -> None:
        """
        Raise the ceilings.

        Raises:
            GuardError: a pool that is to be raised has no ceiling, or would pass the largest one.
            UsageError: nothing is added.
        """
        row = self._row(sandbox_id)
        if ai <= 0 and compute <= 0:
            raise UsageError("one of the amounts must be above 0", where=sandbox_id)
        for pool, amount in (("ai", ai), ("compute", compute)):
            if amount <= 0:
                continue
            if row[f"{pool}_limit"] is None:
                raise GuardError(
                    f"the {pool} pool has no ceiling to raise",
                    where=sandbox_id,
                    hint="its spend is not limited",
                )
            if row[f"{pool}_limit"] + amount > MAX_NUSD:
                raise GuardError(f"the {pool} ceiling would pass {MAX_NUSD} nano-dollars", where=sandbox_id)
            self._db.run(
                f"UPDATE budgets SET {pool}_limit = {pool}_limit + ? WHERE sandbox_id = ?",  # noqa: S608 - pool is one of two words above
                (amount, sandbox_id),
            )
        self._emit(sandbox_id, "budget_topup", {"ai_nusd": ai, "compute_nusd": compute})
        self._tell(sandbox_id)

    def reserve(
        self, sandbox_id: str, call_id: str, *, provider: str, model: str, amount: int, now: float
    ) -> dict[str, Any]:
        """
        Hold *amount* for a call if the ceiling has room for it.

        Asking again for a call that holds a reservation of the same amount is answered alike.  A call
        that was refused may ask again for less.

        Raises:
            GuardError: the call has ended already, or holds another amount.
        """
        if self._call(sandbox_id, call_id) is not None:
            raise GuardError("the call has ended already", where=call_id)
        held = self._reservation(sandbox_id, call_id)
        if held is not None:
            if held["amount"] != amount:
                raise GuardError("the call holds a reservation of another amount", where=call_id)
            return self._granted(sandbox_id, True)
        granted = admits(self._pool(self._row(sandbox_id), "ai"), amount)
        if granted:
            # The condition stands in the statement too: it holds even for a caller without `admits`.
            granted = self._hold(sandbox_id, amount)
        if granted:
            self._db.run(
                "INSERT INTO reservations VALUES (?, ?, ?, ?, ?, ?)",
                (sandbox_id, call_id, amount, provider, model, now),
            )
        return self._granted(sandbox_id, granted)

    def settle(self, sandbox_id: str, call_id: str, *, cost: int, usage: CallUsage, now: float) -> None:
        """
        Record what a call cost, in place of its reservation if it holds one.

        A call that is settled already stays as it is.  One that was settled at its full amount because
        it was late is corrected; one that was released is recorded, because its provider billed it.
        """
        call = self._call(sandbox_id, call_id)
        if call is not None and call["outcome"] == "settled":
            return
        held = self._reservation(sandbox_id, call_id)
        known = call if held is None else held
        flags = []
        if call is not None and call["outcome"] == "stale":
            reserved = call["reserved"]
            self._spend(sandbox_id, -call["cost"])
            wrong = (sandbox_id, call["provider"], call["model"])
            self._count(wrong, -call["cost"], CallUsage(estimated=True), -1)
            flags.append("late")
        elif call is not None:
            reserved = None
            flags.append("after_release")
        else:
            reserved = self._unreserve(sandbox_id, call_id)
            if reserved is None:
                flags.append("without_reservation")
        if reserved is not None and cost > reserved:
            flags.append("above_reservation")
        provider = usage.provider or (known["provider"] if known is not None else "")
        model = usage.model or (known["model"] if known is not None else "")
        self._spend(sandbox_id, cost)
        self._count((sandbox_id, provider, model), cost, usage, 1)
        self._end(sandbox_id, call_id, ("settled", reserved, cost, provider, model, now))
        if flags:
            detail = {"call_id": call_id, "cost_nusd": cost, "reserved_nusd": reserved, "flags": flags}
            self._emit(sandbox_id, "settlement_flagged", detail)
        self._tell(sandbox_id)

    def release(self, sandbox_id: str, call_id: str, *, now: float) -> None:
        """
        Give a call's reservation back; a call that has ended stays as it is.

        A call that holds nothing is remembered as ended, so that a reservation request which comes
        late, over another connection, cannot hold money for nobody.
        """
        if self._call(sandbox_id, call_id) is not None:
            return
        reserved = self._unreserve(sandbox_id, call_id)
        self._end(sandbox_id, call_id, ("released", reserved, 0, "", "", now))

    def settle_stale(self, now: float) -> int:
        """Settle reservations older than `STALE_S` at their full amount; returns how many."""
        rows = self._db.all("SELECT * FROM reservations WHERE at <= ? ORDER BY at", (now - STALE_S,))
        for row in rows:
            sandbox_id, call_id, amount = row["sandbox_id"], row["call_id"], row["amount"]
            self._unreserve(sandbox_id, call_id)
            self._spend(sandbox_id, amount)
            provider, model = row["provider"], row["model"]
            self._count((sandbox_id, provider, model), amount, CallUsage(estimated=True), 1)
            self._end(sandbox_id, call_id, ("stale", amount, amount, provider, model, now))
            self._emit(sandbox_id, "reservation_expired", {"call_id": call_id, "cost_nusd": amount})
            self._tell(sandbox_id)
        return len(rows)

    def any_stale(self, now: float) -> bool:
        """Say whether `settle_stale` has something to do."""
        return self._db.one("SELECT 1 FROM reservations WHERE at <= ? LIMIT 1", (now - STALE_S,)) is not None

    def forget_calls(self, now: float) -> None:
        """Forget call ids older than `KEEP_CALLS_S`."""
        self._db.run("DELETE FROM calls WHERE at <= ?", (now - KEEP_CALLS_S,))

    def ai_summary(self, sandbox_id: str) -> dict[str, Any]:
        """Return the AI pool without its models."""
        pool = self._pool(self._row(sandbox_id), "ai")
        return {
            "limit_nusd": pool.limit_nusd,
            "spent_nusd": pool.spent_nusd,
            "reserved_nusd": pool.reserved_nusd,
            "exhausted": pool.exhausted,
        }

    def summary(self, sandbox_id: str) -> dict[str, Any]:
        """Return both pools and the AI spend by model, as tabled in ``docs/internals.md``."""
        row = self._row(sandbox_id)
        models = self._db.all(
            "SELECT provider, model, input_tokens, output_tokens, cache_read_tokens, cache_write_tokens, calls,"
            " estimated_calls, spent AS spent_nusd, rate_source FROM models WHERE sandbox_id = ?"
            " ORDER BY provider, model",
            (sandbox_id,),
        )
        return {
            "ai": {
                **self.ai_summary(sandbox_id),
                "models": [dict(model) for model in models if model["calls"]],
            },
            "compute": {"limit_nusd": row["compute_limit"], "spent_nusd": row["compute_spent"]},
            "warning_threshold": row["threshold_ppm"] / PPM,
            "warned": bool(row["ai_warned"] or row["compute_warned"]),
        }

    def _granted(self, sandbox_id: str, granted: bool) -> dict[str, Any]:
        pool = self._pool(self._row(sandbox_id), "ai")
        return {
            "granted": granted,
            "spent_nusd": pool.spent_nusd,
            "reserved_nusd": pool.reserved_nusd,
            "limit_nusd": pool.limit_nusd,
            "remaining_nusd": pool.remaining_nusd,
        }

    def _row(self, sandbox_id: str) -> sqlite3.Row:
        row = self._db.one("SELECT * FROM budgets WHERE sandbox_id = ?", (sandbox_id,))
        if row is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id[:64]!r}")
        return row

    def _pool(self, row: sqlite3.Row, pool: str) -> Pool:
        return Pool(
            row[f"{pool}_limit"],
            row[f"{pool}_spent"],
            row["ai_reserved"] if pool == "ai" else 0,
            warned=bool(row[f"{pool}_warned"]),
            told=bool(row[f"{pool}_told"]),
        )

    def _call(self, sandbox_id: str, call_id: str) -> sqlite3.Row | None:
        return self._db.one("SELECT * FROM calls WHERE sandbox_id = ? AND call_id = ?", (sandbox_id, call_id))

    def _reservation(self, sandbox_id: str, call_id: str) -> sqlite3.Row | None:
        sql = "SELECT amount, provider, model FROM reservations WHERE sandbox_id = ? AND call_id = ?"
        return self._db.one(sql, (sandbox_id, call_id))

    def _hold(self, sandbox_id: str, amount: int) -> bool:
        touched = self._db.run(
            "UPDATE budgets SET ai_reserved = ai_reserved + ?1 WHERE sandbox_id = ?2"
            " AND (ai_limit IS NULL OR ai_spent + ai_reserved + ?1 <= ai_limit)",
            (amount, sandbox_id),
        )
        return touched == 1

    def _unreserve(self, sandbox_id: str, call_id: str) -> int | None:
        held = self._reservation(sandbox_id, call_id)
        if held is None:
            return None
        amount = int(held["amount"])
        self._db.run("DELETE FROM reservations WHERE sandbox_id = ? AND call_id = ?", (sandbox_id, call_id))
        self._db.run(
            "UPDATE budgets SET ai_reserved = ai_reserved - ? WHERE sandbox_id = ?", (amount, sandbox_id)
        )
        return amount

    def _spend(self, sandbox_id: str, amount: int) -> None:
        self._db.run("UPDATE budgets SET ai_spent = ai_spent + ? WHERE sandbox_id = ?", (amount, sandbox_id))

    def _count(self, key: tuple[str, str, str], cost: int, usage: CallUsage, calls: int) -> None:
        figures = [getattr(usage, name) for name in _TOKENS]
        estimated = calls if usage.estimated else 0
        self._db.run("INSERT OR IGNORE INTO models (sandbox_id, provider, model) VALUES (?, ?, ?)", key)
        self._db.run(
            "UPDATE models SET input_tokens = input_tokens + ?, output_tokens = output_tokens + ?,"
            " cache_read_tokens = cache_read_tokens + ?, cache_write_tokens = cache_write_tokens + ?,"
            " calls = calls + ?, estimated_calls = estimated_calls + ?, spent = spent + ?,"
            " rate_source = CASE WHEN ? <> '' THEN ? ELSE rate_source END"
            " WHERE sandbox_id = ? AND provider = ? AND model = ?",
            (*figures, calls, estimated, cost, usage.rate_source, usage.rate_source, *key),
        )

    def _end(
        self, sandbox_id: str, call_id: str, ended: tuple[str, int | None, int, str, str, float]
    ) -> None:
        """Remember a call: outcome, what was reserved, cost, provider, model, time."""
        self._db.run(
            "INSERT OR REPLACE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (sandbox_id, call_id, *ended)
        )

    def _tell(self, sandbox_id: str) -> None:
        """Bring the pools' flags up to date and emit what their owner is to be told."""
        row = self._row(sandbox_id)
        for name in _POOLS:
            before = self._pool(row, name)
            after, notice = notices(before, row["threshold_ppm"])
            if after != before:
                self._db.run(
                    f"UPDATE budgets SET {name}_warned = ?, {name}_told = ? WHERE sandbox_id = ?",  # noqa: S608 - name is one of _POOLS
                    (int(after.warned), int(after.told), sandbox_id),
                )
            if notice is not None:
                detail = {"pool": name, "spent_nusd": after.spent_nusd, "limit_nusd": after.limit_nusd}
                if notice is Notice.WARNING:
                    detail["threshold"] = row["threshold_ppm"] / PPM
                self._emit(sandbox_id, str(notice), detail)
