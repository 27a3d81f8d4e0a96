"""
How much may be told to the outside through the names that are asked for.

A rule that opens every name below a suffix lets whoever chooses those names write into them, and whoever
answers for the suffix read along: each question is a message.  Every suffix therefore has a budget, in
bytes, for what its names can carry at most.  A name never asked before costs all the text below the suffix
(38 characters, 5.25 bits each); one asked before costs only which of the known ones it was.  Names that
a rule lists one by one are the operator's choice, carry nothing and cost nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from attrs import define, frozen

from km_core.types import Verdict
from km_net_proxy.dns.registries import gives_out_names

if TYPE_CHECKING:
    from collections.abc import Callable

RULE = "builtin:name-budget"
MAX_SUFFIXES = 1024
MAX_NAMES = 4096
MAX_KNOWN = 32768
"""Names remembered below one suffix, and below all of them."""
WARN_SHARE = 0.75
"""The share of a budget at which the alarm is raised, before anything is refused."""

_QUARTER_BITS = 21
"""log2 of the 38 characters of a name (letters, digits, hyphen, underscore, dot), in quarters of a bit."""


@frozen
class NameAlarm:
    """
    A budget is nearly or entirely used up.

    Attributes:
        suffix: the suffix, without a dot in front; empty for what shares the last budget.
        used_bytes: what the names below it can have carried and has not been earned back.
        limit_bytes: the budget.
        exhausted: a name was refused.
    """

    suffix: str
    used_bytes: int
    limit_bytes: int
    exhausted: bool


@define(eq=False)
class _Suffix:
    used: float
    at: float
    names: dict[str, None]
    told: int = 0


class NameBudget:
    """
    The budgets of one sandbox; bounded in memory.

    Args:
        free_below: the suffix below which a canonical name was chosen freely (empty: anywhere), None for
            a name that a rule lists; asked each time, so that a new policy holds at once.
        burst_bytes: what the names below one suffix may carry at once.
        bytes_per_hour: what they earn back.
        on_alarm: told once when a budget is three quarters used and once when it is used up, again after
            it has recovered to half; what it raises reaches the caller of `charge`.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        free_below: Callable[[str], str | None],
        *,
        burst_bytes: int,
        bytes_per_hour: int,
        on_alarm: Callable[[NameAlarm], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._free_below = free_below
        self._limit = burst_bytes * 8
        self._rate = bytes_per_hour * 8 / 3600
        self._on_alarm = on_alarm
        self._clock = clock
        self._suffixes: dict[str, _Suffix] = {}
        self._known = 0
        self._swept = float("-inf")

    def charge(self, name: str) -> Verdict | None:
        """
        Pay for one question about a canonical name that policy allows, before it leaves.

        Returns:
            None when it may be asked; otherwise the denial, and nothing was paid.
        """
        below = self._free_below(name)
        if below is None:
            return None
        now = self._clock()
        suffix = _zone(name, below)
        budget = self._suffixes.get(suffix)
        if budget is None:
            suffix, budget = self._start(suffix, now)
        budget.used = max(0.0, budget.used - (now - budget.at) * self._rate)
        budget.at = now
        if budget.used <= self._limit / 2:
            budget.told = 0
        used = budget.used + _cost(name, suffix, budget.names)
        if used > self._limit:
            self._tell(suffix, budget, 2, budget.used)
            return _denial(suffix)
        if used >= self._limit * WARN_SHARE:
            self._tell(suffix, budget, 1, used)
        budget.used = used
        self._remember(name, budget.names)
        return None

    def _remember(self, name: str, names: dict[str, None]) -> None:
        """Note a name as known; whoever has not been asked for longest is forgotten, and is new again."""
        if name in names:
            del names[name]
        else:
            self._known += 1
        names[name] = None
        if len(names) > MAX_NAMES or self._known > MAX_KNOWN:
            del names[next(iter(names))]
            self._known -= 1

    def _start(self, suffix: str, now: float) -> tuple[str, _Suffix]:
        """
        Begin the budget of a suffix that was not asked for lately.

        Beyond the bound, only with ``*``, suffixes share one: forgetting what is used would be a refill.
        """
        if len(self._suffixes) >= MAX_SUFFIXES and now - self._swept >= 1.0:
            self._swept = now
            for name, budget in list(self._suffixes.items()):
                if budget.used <= (now - budget.at) * self._rate:
                    self._known -= len(budget.names)
                    del self._suffixes[name]
        if len(self._suffixes) >= MAX_SUFFIXES:
            suffix = ""
        return suffix, self._suffixes.setdefault(suffix, _Suffix(0.0, now, {}))

    def _tell(self, suffix: str, budget: _Suffix, level: int, used: float) -> None:
        if budget.told >= level:
            return
        self._on_alarm(NameAlarm(suffix, int(used / 8), self._limit // 8, exhausted=level == 2))
        # Last: an alarm that could not be recorded is still to be told.
        budget.told = level


def _cost(name: str, suffix: str, known: dict[str, None]) -> int:
    """Return the bits that asking for *name* can carry at most."""
    if name in known:
        return (len(known) - 1).bit_length()
    free = len(name) - len(suffix) - 1 if suffix else len(name)
    return max(1, (free * _QUARTER_BITS + 3) // 4)


def _zone(name: str, below: str) -> str:
    """
    Return the suffix that pays: the rule's own, but never one under which strangers own names.

    Below ``*`` or a top-level suffix that is the last two labels, three below a country's registry
    (``co.uk``).
    """
    labels = name.split(".")
    registry = len(labels) > 2 and gives_out_names(labels[-2], labels[-1])
    owned = ".".join(labels[-3 if registry else -2 :])
    return owned if len(owned) > len(below) else below


def _denial(suffix: str) -> Verdict:
    where = f"below {suffix}" if suffix else "asked for"
    return Verdict(
        False, RULE, "dns", f"the names {where} have carried as many bytes to its resolvers as names may"
    )
