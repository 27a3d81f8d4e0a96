"""
``cron(minutes hours day-of-month month day-of-week year)`` of EventBridge.

Source of the fields: spec/cli.md section 9.2 and the user guide of EventBridge Scheduler.  What the
guide leaves open is refused: wildcards of days (``L``, ``W``, ``#``) stand alone, ranges do not run
backwards, a step is not longer than the field.
"""

from __future__ import annotations

from calendar import monthrange
from datetime import date
from typing import NoReturn

from attrs import frozen

from km_core.schedule.model import TimeExpressionError
from km_core.schedule.words import DAY_NAMES, MONTH_NAMES, WORKING_DAYS

FIRST_YEAR, LAST_YEAR = 1970, 2199
"""The years that a cron expression may name."""

_MONTH_WORDS = {name[:3].upper(): number for number, name in enumerate(MONTH_NAMES, 1)}
_DAY_WORDS = {name[:3].upper(): number for number, name in enumerate(DAY_NAMES, 1)}
_SATURDAY, _SUNDAY = 6, 7  # as isoweekday() has them
_FORM = "cron(minutes hours day-of-month month day-of-week year)"


@frozen
class Cron:
    """
    When a cron expression fires, by wall time.

    Attributes:
        minutes: ascending.
        hours: ascending.
        months: 1 to 12, ascending.
        years: ascending.
        days: the one of the two day fields that is not ``?``.
    """

    minutes: tuple[int, ...]
    hours: tuple[int, ...]
    months: tuple[int, ...]
    years: tuple[int, ...]
    days: MonthDays | WeekDays

    def days_of(self, year: int, month: int) -> list[int]:
        """Return the days of a month on which it fires, ascending."""
        return self.days.of(year, month, monthrange(year, month)[1])

    def matches(self, year: int, month: int, day: int) -> bool:
        """Say whether it fires on a day."""
        return year in self.years and month in self.months and day in self.days_of(year, month)


@frozen
class MonthDays:
    """
    The field day-of-month.

    Attributes:
        numbers: days as given, ascending; empty with ``L`` and ``LW``.
        working: the working day nearest to that day, within the month (``15W``, ``LW``).
    """

    numbers: tuple[int, ...]
    working: bool = False

    def of(self, year: int, month: int, length: int) -> list[int]:
        """Return the days in a month of *length* days."""
        numbers = [day for day in self.numbers if day <= length] if self.numbers else [length]
        return [_nearest_working(year, month, day, length) for day in numbers] if self.working else numbers


@frozen
class WeekDays:
    """
    The field day-of-week.

    Attributes:
        numbers: SUN=1 … SAT=7, ascending.
        nth: only the first to fifth of them in a month (``2#1``); -1 is the last (``6L``); 0 all.
    """

    numbers: tuple[int, ...]
    nth: int = 0

    def of(self, year: int, month: int, length: int) -> list[int]:
        """Return the days in a month of *length* days."""
        first = date(year, month, 1).isoweekday() % 7 + 1
        days = [day for day in range(1, length + 1) if (first - 1 + day - 1) % 7 + 1 in self.numbers]
        if self.nth == 0:
            return days
        return days[-1:] if self.nth == -1 else days[self.nth - 1 : self.nth]


def parse_cron(expression: str) -> Cron:
    """
    Read ``cron(…)``.

    Raises:
        TimeExpressionError: ``invalid_cron``, naming the field.
    """
    if not (expression.startswith("cron(") and expression.endswith(")")):
        raise _refusal(f"{expression[:60]!r} is not of the form {_FORM}")
    inner = expression[len("cron(") : -1]
    if not all(" " <= character <= "~" for character in inner):
        raise _refusal("a cron expression is plain ASCII on one line")
    fields = inner.split()
    if len(fields) != 6:
        raise _refusal(f"a cron expression has six fields, not {len(fields)}", suggestion(fields))
    minutes, hours, month_day, month, week_day, year = fields
    if (month_day == "?") == (week_day == "?"):
        raise _refusal(
            "exactly one of day-of-month and day-of-week is ?",
            "write ? for the day that does not matter: cron(0 9 * * ? *), cron(0 9 ? * 2-6 *)",
        )
    return Cron(
        minutes=_Field("minutes", 0, 59).read(minutes),
        hours=_Field("hours", 0, 23).read(hours),
        months=_Field("month", 1, 12, _MONTH_WORDS).read(month),
        years=_Field("year", FIRST_YEAR, LAST_YEAR).read(year),
        days=_week_days(week_day) if month_day == "?" else _month_days(month_day),
    )


def suggestion(fields: list[str]) -> str:
    """Return the EventBridge form of a crontab's five fields, or of six without ``cron(…)``; else the form."""
    candidate = _translated(fields) if len(fields) == 5 else fields
    if len(candidate) == 6:
        expression = f"cron({' '.join(candidate)})"
        try:
            parse_cron(expression)
        except TimeExpressionError:
            return f"write {_FORM}"
        return f"write {expression}"
    return f"write {_FORM}"


def _translated(fields: list[str]) -> list[str]:
    """Return six fields; none when a crontab says by both of its day fields what only two schedules can."""
    minute, hour, month_day, month, week_day = fields
    if week_day in {"*", "?"}:
        return [minute, hour, "*" if month_day == "?" else month_day, month, "?", "*"]
    numbered = _renumbered(week_day)
    if month_day not in {"*", "?"} or not numbered:
        return []
    return [minute, hour, "?", month, numbered, "*"]


def _renumbered(field: str) -> str:
    """Return a crontab's day-of-week (SUN=0 or 7) as EventBridge's (SUN=1); empty where it has no such days."""
    days: set[int] = set()
    for item in field.split(","):
        span, slash, step = item.partition("/")
        first, dash, last = ("0", "-", "6") if span == "*" else span.partition("-")
        start = _crontab_day(first)
        # With a step and no end, a crontab goes on to the last day.
        end = _crontab_day(last) if dash else (6 if slash else start)
        if start is None or end is None or end < start or (slash and not (_is_number(step) and int(step))):
            return ""
        days.update(day % 7 + 1 for day in range(start, end + 1, int(step) if slash else 1))
    if tuple(sorted(days)) == WORKING_DAYS:
        return "2-6"
    return ",".join(str(day) for day in sorted(days))


def _crontab_day(text: str) -> int | None:
    if text.upper() in _DAY_WORDS:
        return _DAY_WORDS[text.upper()] - 1
    return int(text) if _is_number(text) and int(text) <= 7 else None


@frozen
class _Field:
    """A field of numbers: ``*``, ``5``, ``1-5``, ``*/15``, ``MON,WED`` and lists of these."""

    name: str
    low: int
    high: int
    words: dict[str, int] | None = None

    def read(self, text: str) -> tuple[int, ...]:
        found: set[int] = set()
        for item in text.split(","):
            found |= self._item(item)
        return tuple(sorted(found))

    def value(self, text: str) -> int | None:
        named = (self.words or {}).get(text.upper())
        if named is not None:
            return named
        number = int(text) if _is_number(text) else -1
        return number if self.low <= number <= self.high else None

    def _item(self, item: str) -> set[int]:
        span, slash, step_text = item.partition("/")
        step = 1
        if slash:
            step = int(step_text) if _is_number(step_text) else 0
            longest = self.high - self.low if self.name == "year" else self.high
            if not 1 <= step <= longest:
                self._refuse(item, f"a step is a number from 1 to {longest}")
        if span == "*":
            return set(range(self.low, self.high + 1, step))
        first_text, dash, last_text = span.partition("-")
        first = self._known(first_text, item)
        last = self._known(last_text, item) if dash else (self.high if slash else first)
        if last < first:
            self._refuse(item, "a range does not run backwards: write a list")
        return set(range(first, last + 1, step))

    def _known(self, text: str, item: str) -> int:
        number = self.value(text)
        if number is None:
            names = f" or {next(iter(self.words))} to {list(self.words)[-1]}" if self.words else ""
            self._refuse(item, f"values are {self.low} to {self.high}{names}")
        return number

    def _refuse(self, item: str, why: str) -> NoReturn:
        raise _refusal(f"the field {self.name} cannot be {item[:40]!r}", why)


def _month_days(text: str) -> MonthDays:
    field = _Field("day-of-month", 1, 31)
    upper = text.upper()
    if upper in {"L", "LW"}:
        return MonthDays((), working=upper == "LW")
    if upper.endswith("W"):
        day = field.value(text[:-1])
        if day is not None:
            return MonthDays((day,), working=True)
    return MonthDays(field.read(text))


def _week_days(text: str) -> WeekDays:
    field = _Field("day-of-week", 1, 7, _DAY_WORDS)
    if text.upper() == "L":
        return WeekDays((7,))
    if text.upper().endswith("L"):
        day = field.value(text[:-1])
        if day is not None:
            return WeekDays((day,), nth=-1)
    name, sharp, nth = text.partition("#")
    if sharp:
        day = field.value(name)
        if day is not None and nth in {"1", "2", "3", "4", "5"}:
            return WeekDays((day,), nth=int(nth))
    return WeekDays(field.read(text))


def _nearest_working(year: int, month: int, day: int, length: int) -> int:
    weekday = date(year, month, day).isoweekday()
    if weekday == _SATURDAY:
        return day - 1 if day > 1 else day + 2
    if weekday == _SUNDAY:
        return day + 1 if day < length else day - 2
    return day


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 4


def _refusal(message: str, hint: str = "") -> TimeExpressionError:
    return TimeExpressionError("invalid_cron", message, hint)
