"""What the grammar yields: a schedule, or a refusal with its code."""

from __future__ import annotations

from typing import Literal

from attrs import frozen

from km_core.errors import UsageError

MAX_TEXT = 256
"""Longest time expression, in characters: as long as EventBridge Scheduler takes one."""

RejectCode = Literal[
    "empty",
    "invalid_zone",
    "unparsed",
    "ambiguous",
    "invalid_time",
    "invalid_date",
    "unsupported",
    "invalid_rate",
    "invalid_cron",
    "nonexistent_time",
    "past",
]
"""Why a text is refused, in order of precedence (the three that are not about moments share one rank)."""


class TimeExpressionError(UsageError):
    """
    A text that is no schedule (exit 2).

    Args:
        code: which of the documented reasons applies.
        message: one sentence for people.
        hint: what to write instead, as far as it is known.
    """

    code = "time-expression"

    def __init__(self, code: RejectCode, message: str, hint: str = "") -> None:
        super().__init__(message, hint=hint, code=code)
        self.message = message


@frozen
class Schedule:
    """
    When something happens, as the scheduler is told.

    Attributes:
        expression: ``at(YYYY-MM-DDTHH:MM:SS)``, ``rate(N unit)`` or ``cron(…)`` with six fields.
        timezone: IANA name of the zone that *expression* is read in; ``UTC`` for ``at`` and ``rate``.
        recurring: more than one time is meant.
        human: the same for people, such as ``every Monday at 09:00 (Europe/Berlin)``.
        notes: what may surprise: months that are skipped, a time that a clock change skips.
    """

    expression: str
    timezone: str
    recurring: bool
    human: str
    notes: tuple[str, ...] = ()
