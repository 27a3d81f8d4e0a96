"""How many records of one kind may be written one by one."""

from __future__ import annotations


class Allowance:
    """
    So many records of each kind in a row, and so many more each second.

    Args:
        burst: how many of one kind in a row.
        per_s: how many more of it each second thereafter.
    """

    def __init__(self, burst: int, per_s: float) -> None:
        self._burst = float(burst)
        self._per_s = per_s
        # For each kind of its own: a flood of DNS questions must not hide a connection.
        self._left: dict[str, tuple[float, float]] = {}

    def take(self, kind: str, now: float) -> bool:
        """Take one record of *kind* at *now* (monotonic seconds); False when they are used up."""
        left, then = self._left.get(kind, (self._burst, now))
        left = min(left + (now - then) * self._per_s, self._burst)
        enough = left >= 1
        self._left[kind] = (left - 1 if enough else left, now)
        return enough
