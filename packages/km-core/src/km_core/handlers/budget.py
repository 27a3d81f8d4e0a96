"""What a pool of money admits and when its owner is told (spec/metering-budget.md sections 5-8)."""

from __future__ import annotations

from enum import StrEnum

from attrs import evolve, frozen

PPM = 1_000_000


class Notice(StrEnum):
    """What a pool's owner is told, once per crossing."""

    WARNING = "budget_warning"
    EXHAUSTED = "budget_exhausted"


@frozen
class Pool:
    """
    One pool in nano-dollars.

    Attributes:
        limit_nusd: the ceiling; None means none, 0 that nothing may be spent.
        spent_nusd: settled.
        reserved_nusd: held by calls under way.
        warned: the threshold's crossing has been told.
        told: the ceiling's crossing has been told.
    """

    limit_nusd: int | None
    spent_nusd: int
    reserved_nusd: int = 0
    warned: bool = False
    told: bool = False

    @property
    def remaining_nusd(self) -> int | None:
        """What a reservation may still take, never negative; None without a ceiling."""
        if self.limit_nusd is None:
            return None
        return max(0, self.limit_nusd - self.spent_nusd - self.reserved_nusd)

    @property
    def exhausted(self) -> bool:
        """Whether the ceiling is reached by what is settled."""
        return self.limit_nusd is not None and self.spent_nusd >= self.limit_nusd


def admits(pool: Pool, amount_nusd: int) -> bool:
    """Say whether a reservation of *amount_nusd* keeps spent + reserved within the ceiling."""
    if pool.limit_nusd is None:
        return True
    fits = pool.spent_nusd + pool.reserved_nusd + amount_nusd <= pool.limit_nusd
    return fits and not (pool.exhausted and amount_nusd == 0)


def notices(pool: Pool, threshold_ppm: int) -> tuple[Pool, Notice | None]:
    """
    Return the pool with its flags brought up to date, and what is to be told now.

    Called after a pool changed.  A flag falls when a higher ceiling puts the spend below it again, so
    that the next crossing is told too.  Reaching the ceiling in one leap is told as that alone.

    Args:
        pool: after the change, with the flags from before it.
        threshold_ppm: warning threshold in millionths of the ceiling.
    """
    spent, limit = pool.spent_nusd, pool.limit_nusd
    over = limit is not None and spent > 0 and spent >= limit
    near = limit is not None and spent > 0 and spent * PPM >= limit * threshold_ppm
    notice = None
    if over and not pool.told:
        notice = Notice.EXHAUSTED
    elif near and not over and not pool.warned:
        notice = Notice.WARNING
    return evolve(pool, warned=near or over, told=over), notice


def running_cost_nusd(rate_nusd_per_hour: int, running_s: int) -> int:
    """Return what *running_s* whole seconds cost, rounded up to a nano-dollar."""
    return -(-rate_nusd_per_hour * max(0, running_s) // 3600)
