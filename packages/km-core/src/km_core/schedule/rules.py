"""From a recurring time to its ``rate(…)`` or ``cron(…)``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core.schedule.clock import clock_text
from km_core.schedule.model import Schedule, TimeExpressionError
from km_core.schedule.moments import check_date
from km_core.schedule.oneoff import Date
from km_core.schedule.recurring import (
    ALL_DAYS,
    DayOfMonth,
    DaysOfWeek,
    Hourly,
    NthWeekday,
    Rate,
    Repeating,
    Skipping,
    Vague,
)
from km_core.schedule.words import (
    DAY_NAMES,
    MONTH_NAMES,
    ORDINAL_NAMES,
    WORKING_DAYS,
    listing,
    ordinal,
)

if TYPE_CHECKING:
    from km_core.schedule.clock import Clock
    from km_core.schedule.recurring import Days, Recurring
    from km_core.schedule.zones import Zone

_TWO = "make one schedule for each"


def recurring_schedule(form: Recurring, zone: Zone, *, zone_written: bool) -> Schedule:
    """
    Return the schedule of *form* in *zone*.

    Args:
        form: what was read.
        zone: the zone that applies.
        zone_written: the text itself names the zone, which a rate has no use for.

    Raises:
        TimeExpressionError: with the first code in the order of precedence.
    """
    if isinstance(form, Rate):
        return _rate(form, zone_written=zone_written)
    if isinstance(form, Hourly):
        if form.minute > 59:
            raise TimeExpressionError("invalid_time", f"an hour has no minute {form.minute}")
        human = f"every hour at :{form.minute:02d} ({zone.name})"
        return Schedule(f"cron({form.minute} * * * ? *)", zone.name, recurring=True, human=human)
    if isinstance(form, Skipping):
        _check_clocks(form.clocks)
        raise TimeExpressionError(
            "unsupported",
            f"a schedule cannot say {form.text} at a time of day",
            f"write {form.text} without a time, or days such as every monday and thursday at 9am",
        )
    return _repeating(form, zone)


def rate_schedule(expression: str, count: int, unit: str) -> Schedule:
    """Return the schedule of a checked ``rate(…)``."""
    human = f"every {unit}" if count == 1 else f"every {count} {unit}s"
    return Schedule(expression, "UTC", recurring=True, human=human)


def _rate(form: Rate, *, zone_written: bool) -> Schedule:
    count, unit = form.count, form.unit
    if count == 0:
        raise TimeExpressionError("invalid_rate", f"every 0 {unit}s is no rate", "write 1 or more")
    if unit == "second":
        raise TimeExpressionError(
            "unsupported", "schedules have a precision of one minute", "write every minute"
        )
    if unit == "month":
        raise TimeExpressionError(
            "unsupported",
            "a rate counts minutes, hours or days: months differ in length",
            "write a day, such as every month on the 5th at 9am",
        )
    if zone_written:
        refuse_rate_zone()
    if unit == "week":
        count, unit = 7 * count, "day"
    return rate_schedule(f"rate({count} {unit if count == 1 else unit + 's'})", count, unit)


def refuse_rate_zone() -> None:
    """Raise ``unsupported``: a rate counts elapsed time, the same in every zone."""
    raise TimeExpressionError(
        "unsupported", "a rate counts elapsed time, which has no zone", "leave the zone out"
    )


def _repeating(form: Repeating, zone: Zone) -> Schedule:
    days = form.days
    if isinstance(days, Vague):
        raise TimeExpressionError(
            "ambiguous",
            f"once {days.text}, but on which day and when",
            "write weekly on monday at 9am, or monthly on the 5th at 9am",
        )
    _check_clocks(form.clocks)
    _check_day(days)
    times = sorted({clock.time for clock in form.clocks})
    minutes = {minute for _, minute in times}
    if len(minutes) > 1:
        raise TimeExpressionError(
            "unsupported", "times with different minutes do not fit into one schedule", _TWO
        )
    fields = f"{times[0][1]} {','.join(str(hour) for hour, _ in times)} {_day_fields(days)} *"
    at = listing([clock_text(time) for time in times])
    return Schedule(
        f"cron({fields})",
        zone.name,
        recurring=True,
        human=f"{_day_words(days)} at {at} ({zone.name})",
        notes=_day_notes(days),
    )


def _check_clocks(clocks: tuple[Clock, ...]) -> None:
    if not clocks:
        raise TimeExpressionError(
            "ambiguous", "days without a time", "add a time, for example every day at 9am"
        )
    for clock in clocks:
        clock.check_clear()
    for clock in clocks:
        clock.check_exists()


def _check_day(days: Days) -> None:
    if isinstance(days, DayOfMonth) and days.day is not None and not 1 <= days.day <= 31:
        raise TimeExpressionError("invalid_date", f"no month has a day {days.day}")
    if isinstance(days, Date):
        check_date(days)


def _day_fields(days: Days) -> str:
    """Return the fields day of month, month and day of week."""
    if isinstance(days, DaysOfWeek):
        if days.numbers == ALL_DAYS:
            return "* * ?"
        if days.numbers == WORKING_DAYS:
            return "? * 2-6"
        return f"? * {','.join(str(number) for number in days.numbers)}"
    if isinstance(days, DayOfMonth):
        return f"{'L' if days.day is None else days.day} * ?"
    if isinstance(days, NthWeekday):
        return f"? * {days.weekday}" + ("L" if days.nth is None else f"#{days.nth}")
    if isinstance(days, Date):
        return f"{days.day} {days.month} ?"
    raise AssertionError(days)


def _day_words(days: Days) -> str:
    if isinstance(days, DaysOfWeek):
        if days.numbers == ALL_DAYS:
            return "every day"
        if days.numbers == WORKING_DAYS:
            return "Monday to Friday"
        # People's weeks begin on Monday, EventBridge's on Sunday.
        ordered = sorted(days.numbers, key=lambda number: (number - 2) % 7)
        return "every " + listing([DAY_NAMES[number - 1] for number in ordered])
    if isinstance(days, DayOfMonth):
        which = "last day" if days.day is None else ordinal(days.day)
        return f"on the {which} of every month"
    if isinstance(days, NthWeekday):
        which = "last" if days.nth is None else ORDINAL_NAMES[days.nth]
        return f"on the {which} {DAY_NAMES[days.weekday - 1]} of every month"
    if isinstance(days, Date):
        return f"every year on {days.day} {MONTH_NAMES[days.month - 1]}"
    raise AssertionError(days)


def _day_notes(days: Days) -> tuple[str, ...]:
    if isinstance(days, DayOfMonth) and days.day is not None and days.day > 28:
        return (f"months without a {ordinal(days.day)} are skipped; the last day is written 'the last day'",)
    if isinstance(days, Date) and (days.month, days.day) == (2, 29):
        return ("only leap years have a 29 February",)
    return ()
