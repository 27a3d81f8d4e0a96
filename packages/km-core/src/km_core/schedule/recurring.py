"""Recurring times: ``every 2 hours``, ``every day at 9am``, ``last friday of every month at 5pm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.schedule.clock import Clock, read_at_clock, read_day_part
from km_core.schedule.oneoff import Date, read_day_number, read_month_day
from km_core.schedule.words import (
    DAY_PARTS,
    NUMBERS,
    ORDINALS,
    PLURAL_WEEKDAYS,
    UNITS,
    WEEKDAYS,
    WEEKEND,
    WORKING_DAYS,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.schedule.tokens import Cursor

ALL_DAYS = (1, 2, 3, 4, 5, 6, 7)
_COUNTED = {f"{number}{suffix}": number for number, suffix in enumerate(("st", "nd", "rd", "th"), 1)}


@frozen
class Rate:
    """``every <count> <unit>``: elapsed time, whatever the clocks do."""

    count: int
    unit: str


@frozen
class Hourly:
    """Every hour at a minute."""

    minute: int


@frozen
class Skipping:
    """``every 2 days at 9am``: every so many days or weeks *at a time*, which no expression can say."""

    text: str
    clocks: tuple[Clock, ...]


@frozen
class DaysOfWeek:
    """Days by EventBridge's numbers, ascending; all seven are every day."""

    numbers: tuple[int, ...]


@frozen
class DayOfMonth:
    """A day of every month; None is the last."""

    day: int | None


@frozen
class NthWeekday:
    """The first to fourth weekday of every month; None is the last."""

    nth: int | None
    weekday: int


@frozen
class Vague:
    """A period without a day: ``weekly``, ``every month``."""

    text: str


Days = DaysOfWeek | DayOfMonth | NthWeekday | Date | Vague


@frozen
class Repeating:
    """Clock times on days; no clock time is one that was left out."""

    days: Days
    clocks: tuple[Clock, ...]


Recurring = Rate | Hourly | Skipping | Repeating


def read_recurring(cursor: Cursor) -> Recurring | None:
    """Take a recurring time."""
    return (
        cursor.whole(_rate)
        or cursor.whole(_hourly)
        or cursor.whole(_skipping)
        or cursor.whole(_day_part)
        or cursor.whole(_repeating)
    )


def _every(cursor: Cursor) -> bool:
    return cursor.word("every", "each") is not None


def _count(cursor: Cursor) -> int | None:
    digits = cursor.number()
    if digits is not None:
        return int(digits)
    word = cursor.word_of(NUMBERS)
    return None if word is None else NUMBERS[word]


def _rate(cursor: Cursor) -> Rate | None:
    if cursor.word("hourly"):
        return Rate(1, "hour")
    if not _every(cursor):
        return None
    count = _count(cursor)
    # "Every day", "every month" and so on lack a time instead; "every second" is finer than any schedule.
    unit = cursor.word("second", "minute", "hour") if count is None else cursor.word_of(UNITS, glued=True)
    return None if unit is None else Rate(1 if count is None else count, UNITS[unit])


def _hourly(cursor: Cursor) -> Hourly | None:
    if not (cursor.word("hourly") or (_every(cursor) and cursor.word("hour"))):
        return None
    if not (cursor.word("at") and cursor.symbol(":", glued=False)):
        return None
    minute = cursor.number(glued=True)
    return Hourly(int(minute)) if minute and len(minute) == 2 else None


def _skipping(cursor: Cursor) -> Skipping | None:
    if not _every(cursor):
        return None
    if cursor.word("other"):
        text = cursor.word_of(UNITS) or cursor.word_of(WEEKDAYS)
        what = f"every other {text}"
    else:
        count = _count(cursor)
        text = None if count is None else cursor.word_of(UNITS, glued=True)
        what = f"every {count} {text}"
    if text is None:
        return None
    if cursor.attempt(_past_the_hour):
        return Skipping(what, (Clock(0),))
    named = cursor.word("on") is None or _day_list(cursor, WEEKDAYS) is not None
    return Skipping(what, _clocks(cursor)) if named else None


def _past_the_hour(cursor: Cursor) -> bool | None:
    minute = cursor.word("at") and cursor.symbol(":", glued=False) and cursor.number(glued=True)
    return True if minute and len(minute) == 2 else None


def _day_part(cursor: Cursor) -> Repeating | None:
    part = cursor.word_of(DAY_PARTS) if _every(cursor) else None
    return None if part is None else Repeating(DaysOfWeek(ALL_DAYS), (Clock(DAY_PARTS[part]),))


def _repeating(cursor: Cursor) -> Repeating | None:
    days = next((found for rule in _DAYS if (found := cursor.attempt(rule)) is not None), None)
    if days is None:
        return None
    part = read_day_part(cursor) if isinstance(days, DaysOfWeek) and days.numbers != ALL_DAYS else None
    return Repeating(days, _clocks(cursor) if part is None else (part,))


def _clocks(cursor: Cursor) -> tuple[Clock, ...]:
    """Take ``[at] T [and T]…``; none where there is none."""
    clocks: list[Clock] = []
    while (clock := cursor.attempt(_next_clock if clocks else read_at_clock)) is not None:
        clocks.append(clock)
    return tuple(clocks)


def _next_clock(cursor: Cursor) -> Clock | None:
    cursor.word("and")
    return read_at_clock(cursor)


def _every_day(cursor: Cursor) -> Days | None:
    named = cursor.word("daily", "everyday") or (_every(cursor) and cursor.word("day"))
    return DaysOfWeek(ALL_DAYS) if named else None


def _weekdays(cursor: Cursor) -> Days | None:
    group = cursor.word("weekdays", "weekends")
    if group is None and _every(cursor):
        group = cursor.word("weekday", "weekend")
    if group is None:
        return None
    return DaysOfWeek(WORKING_DAYS if group.startswith("weekday") else WEEKEND)


def _named_days(cursor: Cursor) -> Days | None:
    numbers = _day_list(cursor, WEEKDAYS if _every(cursor) else PLURAL_WEEKDAYS)
    return None if numbers is None else DaysOfWeek(numbers)


def _week(cursor: Cursor) -> Days | None:
    if not (cursor.word("weekly") or (_every(cursor) and cursor.word("week"))):
        return None
    if not cursor.word("on"):
        return Vague("a week")
    numbers = _day_list(cursor, WEEKDAYS)
    return None if numbers is None else DaysOfWeek(numbers)


def _month(cursor: Cursor) -> Days | None:
    if not (cursor.word("monthly") or (_every(cursor) and cursor.word("month"))):
        return None
    if not cursor.word("on"):
        return Vague("a month")
    cursor.word("the")
    if cursor.phrase("last", "day"):
        return DayOfMonth(None)
    day = read_day_number(cursor)
    return None if day is None else DayOfMonth(day)


def _nth(cursor: Cursor) -> Days | None:
    cursor.word("the")
    nth = 0
    word = cursor.word("last", *ORDINALS)
    if word is None:
        digit = cursor.number()
        suffix = cursor.tight("st", "nd", "rd", "th") if digit else None
        nth = _COUNTED.get(f"{digit}{suffix}", 0)
    else:
        nth = ORDINALS.get(word, 0)
    if word is None and not nth:
        return None
    if word == "last" and cursor.word("day"):
        return DayOfMonth(None) if _of_every_month(cursor) else None
    name = cursor.word_of(WEEKDAYS)
    if name is None or not _of_every_month(cursor):
        return None
    return NthWeekday(nth or None, WEEKDAYS[name])


def _of_every_month(cursor: Cursor) -> bool:
    return bool(cursor.word("of") and _every(cursor) and cursor.word("month"))


def _year(cursor: Cursor) -> Days | None:
    if not (cursor.word("yearly") or (_every(cursor) and cursor.word("year"))):
        return None
    return read_month_day(cursor) if cursor.word("on") else Vague("a year")


_DAYS: tuple[Callable[[Cursor], Days | None], ...] = (
    _every_day,
    _weekdays,
    _named_days,
    _week,
    _month,
    _nth,
    _year,
)


def _day_list(cursor: Cursor, names: dict[str, int]) -> tuple[int, ...] | None:
    """Take days and ranges of days; returns their numbers, ascending."""
    numbers = cursor.attempt(lambda here: _days_or_range(here, names))
    if numbers is None:
        return None
    while (more := cursor.attempt(lambda here: _and_days(here, names))) is not None:
        numbers |= more
    return tuple(sorted(numbers))


def _and_days(cursor: Cursor, names: dict[str, int]) -> set[int] | None:
    cursor.word("and")
    return _days_or_range(cursor, names)


def _days_or_range(cursor: Cursor, names: dict[str, int]) -> set[int] | None:
    name = cursor.word_of(names)
    if name is None:
        return None
    first = names[name]
    if cursor.symbol("-") or cursor.symbol("-", glued=False):
        end = cursor.word_of(names, glued=True)
    elif cursor.word("to", "through"):
        end = cursor.word_of(names)
    else:
        return {first}
    if end is None:
        return None
    return {(first - 1 + step) % 7 + 1 for step in range((names[end] - first) % 7 + 1)}
