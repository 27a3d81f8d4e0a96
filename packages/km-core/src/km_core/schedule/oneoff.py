"""One-off times: ``in 2 hours``, ``tomorrow at 9am``, ``next tuesday at 2pm``, ``2026-04-11T22:00Z``."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.schedule.clock import Clock, read_at_clock, read_clock, read_day_part
from km_core.schedule.words import MONTHS, NUMBERS, ORDINAL_SUFFIXES, UNITS, WEEKDAYS

if TYPE_CHECKING:
    from km_core.schedule.tokens import Cursor


@frozen
class Relative:
    """
    So much from now.

    Attributes:
        terms: (number, unit) as written; half an hour is 30 minutes.
        ago: counted backwards.
    """

    terms: tuple[tuple[int, str], ...]
    ago: bool = False


@frozen
class Moment:
    """
    ``YYYY-MM-DDTHH:MM[:SS][Z|±HH:MM]``.

    Attributes:
        offset: east of Greenwich as (sign, hours, minutes); None reads the time in the zone that applies.
    """

    date: tuple[int, int, int]
    clock: Clock
    second: int
    offset: tuple[int, int, int] | None


@frozen
class InDays:
    """A number of calendar days from today; negative ones are over."""

    days: int


@frozen
class Evening:
    """The evening of today: ``tonight``."""


@frozen
class Weekday:
    """
    A day of the week.

    Attributes:
        number: EventBridge's, SUN=1.
        after_today: never today, not even later today.
        over: the last one.
    """

    number: int
    after_today: bool = False
    over: bool = False


@frozen
class Date:
    """A date; without year the next one."""

    month: int
    day: int
    year: int | None = None


@frozen
class SlashDate:
    """``5/6/2026``: a day in June for some, in May for others."""


Day = InDays | Evening | Weekday | Date | SlashDate


@frozen
class OnDay:
    """A clock time on a day; None where the text names none."""

    day: Day | None
    clock: Clock | None


OneOff = Relative | Moment | OnDay


def read_one_off(cursor: Cursor) -> OneOff | None:
    """Take a one-off time."""

    def led(here: Cursor) -> OneOff | None:
        led_by_at = here.word("at", "on") == "at"
        return (
            here.whole(_relative)
            or here.whole(_moment)
            or here.whole(partial(_day_first, with_year=True))
            or here.whole(partial(_day_first, with_year=False))
            or here.whole(partial(_clock_first, led_by_at=led_by_at))
        )

    return cursor.attempt(led)


def _relative(cursor: Cursor) -> Relative | None:
    if cursor.word("in"):
        terms = read_duration(cursor)
        return Relative(terms) if terms else None
    terms = read_duration(cursor)
    if not terms:
        return None
    if cursor.phrase("from", "now"):
        return Relative(terms)
    return Relative(terms, ago=True) if cursor.word("ago") else None


def read_duration(cursor: Cursor) -> tuple[tuple[int, str], ...] | None:
    """Take ``half an hour`` or one or two of ``<n> <unit>``, such as ``2 hours and 30 minutes``, ``2h30m``."""
    if cursor.phrase("half", "an", "hour"):
        return ((30, "minute"),)
    first = _term(cursor)
    if first is None:
        return None
    second = cursor.attempt(_second_term)
    return (first,) if second is None else (first, second)


def _second_term(cursor: Cursor) -> tuple[int, str] | None:
    cursor.word("and")
    return _term(cursor)


def _term(cursor: Cursor) -> tuple[int, str] | None:
    def rule(here: Cursor) -> tuple[int, str] | None:
        digits = here.number() or here.number(glued=True)
        if digits is not None:
            unit = here.word_of(UNITS, glued=True)
            return (int(digits), UNITS[unit]) if unit else None
        word = here.word("a", "an", *NUMBERS)
        unit = here.word_of(UNITS) if word else None
        return (NUMBERS.get(word, 1), UNITS[unit]) if word and unit else None

    return cursor.attempt(rule)


def _moment(cursor: Cursor) -> Moment | None:
    date = _iso_date(cursor)
    if date is None or not cursor.tight("t"):
        return None
    time = _iso_time(cursor)
    if time is None:
        return None
    seconds = "00"
    if cursor.symbol(":"):
        seconds = cursor.number(glued=True) or ""
        if len(seconds) != 2:
            return None
    clock = Clock(*time)
    if cursor.done:
        return Moment(date, clock, int(seconds), None)
    if cursor.tight("z"):
        return Moment(date, clock, int(seconds), (1, 0, 0))
    sign = cursor.symbol("+") or cursor.symbol("-")
    offset = _iso_time(cursor) if sign else None
    if offset is None:
        return None
    return Moment(date, clock, int(seconds), (-1 if sign == "-" else 1, *offset))


def _iso_date(cursor: Cursor) -> tuple[int, int, int] | None:
    def rule(here: Cursor) -> tuple[int, int, int] | None:
        year = here.number()
        month = here.number(glued=True) if year and here.symbol("-") else None
        day = here.number(glued=True) if month and here.symbol("-") else None
        if not (year and month and day) or (len(year), len(month), len(day)) != (4, 2, 2):
            return None
        return int(year), int(month), int(day)

    return cursor.attempt(rule)


def _iso_time(cursor: Cursor) -> tuple[int, int] | None:
    hour = cursor.number(glued=True)
    minute = cursor.number(glued=True) if hour and cursor.symbol(":") else None
    if not (hour and minute) or (len(hour), len(minute)) != (2, 2):
        return None
    return int(hour), int(minute)


def _day_first(cursor: Cursor, *, with_year: bool) -> OnDay | None:
    day, parts = _day(cursor, with_year=with_year)
    if day is None:
        return None
    if cursor.done:
        # "This" alone names no day.
        return OnDay(day, None) if parts != "only" else None
    clock = read_day_part(cursor) if parts else None
    if clock is None and parts != "only":
        clock = read_at_clock(cursor)
    return None if clock is None else OnDay(day, clock)


def _day(cursor: Cursor, *, with_year: bool) -> tuple[Day | None, str]:
    """Take a day; the text says whether a part of the day may follow: ``""``, ``"too"``, ``"only"``."""
    if cursor.word("today"):
        return InDays(0), ""
    if cursor.word("tonight"):
        return Evening(), ""
    if cursor.word("tomorrow"):
        return InDays(1), "too"
    if cursor.word("yesterday"):
        return InDays(-1), "too"
    if cursor.phrase("day", "after", "tomorrow") or cursor.phrase("the", "day", "after", "tomorrow"):
        return InDays(2), "too"
    weekday = cursor.attempt(_weekday)
    if weekday is not None:
        return weekday, "too"
    if cursor.word("this"):
        return InDays(0), "only"
    return cursor.attempt(partial(_date, with_year=with_year)), ""


def _weekday(cursor: Cursor) -> Weekday | None:
    which = cursor.word("this", "next", "last")
    name = cursor.word_of(WEEKDAYS)
    if name is None:
        return None
    return Weekday(WEEKDAYS[name], after_today=which == "next", over=which == "last")


def _date(cursor: Cursor, *, with_year: bool) -> Date | SlashDate | None:
    iso = _iso_date(cursor)
    if iso is not None:
        return Date(iso[1], iso[2], iso[0])
    if cursor.attempt(_slashes):
        return SlashDate()
    date = read_month_day(cursor)
    if date is None:
        return None
    if not with_year:
        return date
    year = cursor.number()
    return Date(date.month, date.day, int(year)) if year and len(year) == 4 else None


def _slashes(cursor: Cursor) -> bool | None:
    if not (cursor.number() and cursor.symbol("/") and cursor.number(glued=True)):
        return None
    return not cursor.symbol("/") or cursor.number(glued=True) is not None or None


def read_month_day(cursor: Cursor) -> Date | None:
    """Take ``april 12th`` or ``12th of april``."""
    return cursor.attempt(_month_first) or cursor.attempt(_day_of_month_first)


def _month_first(cursor: Cursor) -> Date | None:
    month = cursor.word_of(MONTHS)
    day = read_day_number(cursor) if month else None
    return Date(MONTHS[month], day) if month and day is not None else None


def _day_of_month_first(cursor: Cursor) -> Date | None:
    day = read_day_number(cursor)
    if day is None:
        return None
    cursor.word("of")
    month = cursor.word_of(MONTHS)
    return Date(MONTHS[month], day) if month else None


def read_day_number(cursor: Cursor) -> int | None:
    """Take a day of the month, ``5`` or ``5th``; whether the month has it is not asked."""

    def rule(here: Cursor) -> int | None:
        digits = here.number()
        if digits is None or len(digits) > 2:
            return None
        here.tight(*ORDINAL_SUFFIXES)
        return int(digits)

    return cursor.attempt(rule)


def _clock_first(cursor: Cursor, *, led_by_at: bool) -> OnDay | None:
    clock = read_clock(cursor, after_at=led_by_at)
    if clock is None:
        return None
    if cursor.done:
        return OnDay(None, clock)
    if cursor.word("today"):
        return OnDay(InDays(0), clock)
    if cursor.word("tonight"):
        return OnDay(Evening(), clock)
    if cursor.word("tomorrow"):
        return OnDay(InDays(1), clock)
    if cursor.word("yesterday"):
        return OnDay(InDays(-1), clock)
    cursor.word("on")
    weekday = cursor.attempt(_weekday)
    return None if weekday is None else OnDay(weekday, clock)
