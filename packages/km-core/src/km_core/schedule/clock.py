"""Clock times: ``9am``, ``9:05 p.m.``, ``845am``, ``14:00``, ``noon``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.schedule.model import TimeExpressionError
from km_core.schedule.words import DAY_PARTS

if TYPE_CHECKING:
    from km_core.schedule.tokens import Cursor


@frozen
class Clock:
    """
    A clock time as it was written; `check` says whether there is one.

    Attributes:
        half: ``am``, ``pm`` or empty for the 24-hour form.
        bare: an hour alone, up to 12, that may be either half of the day.
        midnight: written as the word.
    """

    hour: int
    minute: int = 0
    half: str = ""
    bare: bool = False
    midnight: bool = False

    @property
    def exists(self) -> bool:
        """Whether a clock shows it."""
        hours = range(1, 13) if self.half else range(24)
        return self.hour in hours and self.minute in range(60)

    @property
    def time(self) -> tuple[int, int]:
        """Hour 0 to 23 and minute; only where it exists."""
        if not self.half:
            return self.hour, self.minute
        return self.hour % 12 + (12 if self.half == "pm" else 0), self.minute

    def check_clear(self) -> None:
        """Raise ``ambiguous`` for an hour that may be either half of the day."""
        if self.bare:
            raise TimeExpressionError(
                "ambiguous",
                f"{self.hour} may be in the morning or in the evening",
                f"write {self.hour or 12}am, {self.hour or 12}pm or {self.hour:02d}:00",
            )

    def check_exists(self) -> None:
        """Raise ``invalid_time`` for what no clock shows."""
        if not self.exists:
            written = f"{self.hour}:{self.minute:02d}{self.half}"
            why = "hours with am or pm are 1 to 12" if self.half else "hours are 0 to 23, minutes 0 to 59"
            raise TimeExpressionError("invalid_time", f"no clock shows {written}", why)


def clock_text(time: tuple[int, int]) -> str:
    """Return ``09:05`` of an hour and a minute."""
    return f"{time[0]:02d}:{time[1]:02d}"


def read_clock(cursor: Cursor, *, after_at: bool = False) -> Clock | None:
    """Take a clock time; an hour alone from 13 on only *after_at*."""
    if cursor.word("noon"):
        return Clock(12)
    if cursor.word("midnight"):
        return Clock(0, midnight=True)
    return cursor.attempt(lambda here: _digits(here, after_at))


def _digits(cursor: Cursor, after_at: bool) -> Clock | None:
    digits = cursor.number()
    if digits is None or len(digits) > 4:
        return None
    if cursor.symbol(":"):
        minutes = cursor.number(glued=True)
        if minutes is None or len(minutes) != 2 or len(digits) > 2:
            return None
        return Clock(int(digits), int(minutes), half=_half(cursor) or "")
    half = _half(cursor)
    if half:
        if len(digits) > 2:
            return Clock(int(digits[:-2]), int(digits[-2:]), half=half)
        return Clock(int(digits), half=half)
    if len(digits) > 2:
        return None
    if int(digits) <= 12:
        return Clock(int(digits), bare=True)
    return Clock(int(digits)) if after_at else None


def _half(cursor: Cursor) -> str | None:
    short = cursor.word("am", "pm", glued=True)
    if short:
        return short

    def dotted(here: Cursor) -> str | None:
        letter = here.word("a", "p", glued=True)
        complete = letter and here.symbol(".") and here.tight("m") and here.symbol(".")
        return f"{letter}m" if complete else None

    return cursor.attempt(dotted)


def read_day_part(cursor: Cursor) -> Clock | None:
    """Take ``morning``, ``afternoon``, ``evening`` or ``night``."""
    part = cursor.word_of(DAY_PARTS)
    return None if part is None else Clock(DAY_PARTS[part])


def read_at_clock(cursor: Cursor) -> Clock | None:
    """Take ``[at] T``."""

    def rule(here: Cursor) -> Clock | None:
        return read_clock(here, after_at=here.word("at") is not None)

    return cursor.attempt(rule)
