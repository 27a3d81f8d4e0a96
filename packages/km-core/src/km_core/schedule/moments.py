"""From a one-off time to its moment: checks in the documented order, then calendar arithmetic."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, NoReturn

from attrs import frozen

from km_core.schedule.model import Schedule, TimeExpressionError
from km_core.schedule.oneoff import Date, Evening, InDays, Moment, OnDay, Relative, SlashDate, Weekday
from km_core.schedule.words import DAY_NAMES, MONTH_NAMES

if TYPE_CHECKING:
    from km_core.schedule.clock import Clock
    from km_core.schedule.oneoff import Day, OneOff
    from km_core.schedule.zones import Zone

_TONIGHT = range(17, 24)
_TONIGHT_ALONE = (23, 0)
# The longest wait for a 29 February: over a century that has no leap year, such as 2096 to 2104.
_LEAP_GAP_YEARS = 8
_LEAP_YEAR = 2000
_FAR = "the date is outside the calendar, which has the years 1 to 9999"


@frozen
class Now:
    """
    The moment that a text is read at.

    Attributes:
        moment: UTC, without fractions of a second.
        zone: the zone that applies.
    """

    moment: datetime
    zone: Zone

    @property
    def wall(self) -> datetime:
        """Naive wall time in the zone."""
        return self.zone.wall(self.moment).replace(tzinfo=None, fold=0)


def one_off_schedule(form: OneOff, moment: datetime, zone: Zone) -> Schedule:
    """
    Return the ``at(…)`` schedule of *form*, read at the UTC time *moment*.

    Raises:
        TimeExpressionError: with the first code in the order of precedence.
    """
    now = Now(moment.replace(microsecond=0), zone)
    try:
        due = _due(form, now)
    except OverflowError:
        raise TimeExpressionError("invalid_date", _FAR) from None
    # With the fraction of a second: what is to happen in this very second is not ahead any more.
    if due <= moment:
        _past(due, zone)
    return at_schedule(due, zone)


def at_schedule(due: datetime, zone: Zone) -> Schedule:
    """Return the schedule of one UTC moment; *zone* is the one to tell people the time in."""
    expression = f"at({due.replace(tzinfo=None).isoformat(timespec='seconds')})"
    return Schedule(expression, "UTC", recurring=False, human=f"once, on {moment_text(due, zone)}")


def moment_text(moment: datetime, zone: Zone) -> str:
    """Return ``Saturday 11 April 2026 at 22:00 (Europe/Berlin)``."""
    wall = zone.wall(moment)
    clock = wall.strftime("%H:%M:%S" if wall.second else "%H:%M")
    day = f"{DAY_NAMES[wall.isoweekday() % 7]} {wall.day} {MONTH_NAMES[wall.month - 1]} {wall.year}"
    return f"{day} at {clock} ({zone.name if wall.tzinfo is zone.info else 'UTC'})"


def _past(due: datetime, zone: Zone) -> NoReturn:
    raise TimeExpressionError("past", f"{moment_text(due, zone)} is over")


def _due(form: OneOff, now: Now) -> datetime:
    if isinstance(form, Relative):
        return _relative(form, now)
    if isinstance(form, Moment):
        return _absolute(form, now)
    return _on_day(form, now)


def _relative(form: Relative, now: Now) -> datetime:
    amounts = dict.fromkeys(("second", "minute", "hour", "day", "week", "month"), 0)
    for number, unit in form.terms:
        if number == 0:
            raise TimeExpressionError("invalid_time", f"0 {unit}s is no time from now", "write 1 or more")
        amounts[unit] += number
    if amounts["second"]:
        raise TimeExpressionError(
            "unsupported", "schedules have a precision of one minute", "write minutes, hours or days"
        )
    if form.ago:
        raise TimeExpressionError("past", "a time that is so long ago is over")
    due = now.moment
    if amounts["day"] or amounts["week"] or amounts["month"]:
        wall = _months_later(now.wall, amounts["month"]) + timedelta(
            days=amounts["day"] + 7 * amounts["week"]
        )
        due = _instant(wall, now)
    return due + timedelta(hours=amounts["hour"], minutes=amounts["minute"])


def _months_later(wall: datetime, months: int) -> datetime:
    if not months:
        return wall
    years, month = divmod(wall.month - 1 + months, 12)
    year = wall.year + years
    if year > date.max.year:
        raise OverflowError(_FAR)
    return wall.replace(year=year, month=month + 1, day=min(wall.day, monthrange(year, month + 1)[1]))


def _absolute(form: Moment, now: Now) -> datetime:
    form.clock.check_exists()
    if form.second > 59:
        raise TimeExpressionError("invalid_time", f"no clock shows {form.second} seconds")
    if form.offset is not None and (form.offset[1] > 23 or form.offset[2] > 59):
        raise TimeExpressionError("invalid_time", "an offset is at most 23:59 hours")
    day = _existing(*form.date)
    wall = datetime.combine(day, time(*form.clock.time, form.second))
    if form.offset is None:
        return _instant(wall, now)
    sign, hours, minutes = form.offset
    return wall.replace(tzinfo=UTC) - sign * timedelta(hours=hours, minutes=minutes)


def _on_day(form: OnDay, now: Now) -> datetime:
    day, clock = form.day, form.clock
    _check_clear(day, clock)
    if clock is not None:
        clock.check_exists()
    if isinstance(day, Date):
        check_date(day)
    if (isinstance(day, InDays) and day.days < 0) or (isinstance(day, Weekday) and day.over):
        raise TimeExpressionError("past", "that day is over", "write a day that is ahead, such as tomorrow")
    if isinstance(day, Evening):
        return _evening(clock, now)
    at = (0, 0) if clock is None else clock.time
    if day is None:
        return _first_ahead([now.wall.date() + timedelta(days=ahead) for ahead in (0, 1)], at, now)
    if isinstance(day, InDays):
        return _instant(datetime.combine(now.wall.date() + timedelta(days=day.days), time(*at)), now)
    if isinstance(day, Weekday):
        return _weekday(day, at, now)
    if isinstance(day, Date):
        return _date(day, at, now)
    raise AssertionError(day)


def _check_clear(day: Day | None, clock: Clock | None) -> None:
    if isinstance(day, SlashDate):
        raise TimeExpressionError(
            "ambiguous",
            "a date with slashes may have the day or the month first",
            "write 2026-06-05 or june 5",
        )
    if clock is not None:
        clock.check_clear()
        outside = clock.exists and not clock.midnight and clock.time[0] not in _TONIGHT
        if isinstance(day, Evening) and outside:
            raise TimeExpressionError(
                "ambiguous",
                f"tonight is from 17:00 to midnight, not at {clock.time[0]:02d}:{clock.time[1]:02d}",
                "write today or tomorrow with the time",
            )
        return
    over = (isinstance(day, InDays) and day.days < 0) or (isinstance(day, Weekday) and day.over)
    if not over and not isinstance(day, Evening):
        raise TimeExpressionError(
            "ambiguous", "a day without a time", "add a time, for example tomorrow at 9am"
        )


def _evening(clock: Clock | None, now: Now) -> datetime:
    today = now.wall.date()
    if clock is not None and clock.midnight:
        return _instant(datetime.combine(today + timedelta(days=1), time()), now)
    return _instant(datetime.combine(today, time(*(_TONIGHT_ALONE if clock is None else clock.time))), now)


def _weekday(day: Weekday, at: tuple[int, int], now: Now) -> datetime:
    today = now.wall.date()
    ahead = (day.number - 1 - today.isoweekday()) % 7
    if day.after_today:
        return _instant(datetime.combine(today + timedelta(days=ahead or 7), time(*at)), now)
    return _first_ahead([today + timedelta(days=ahead), today + timedelta(days=ahead + 7)], at, now)


def _date(day: Date, at: tuple[int, int], now: Now) -> datetime:
    if day.year is not None:
        return _instant(datetime.combine(date(day.year, day.month, day.day), time(*at)), now)
    first = now.wall.year
    years = [year for year in range(first, first + _LEAP_GAP_YEARS + 1) if year <= date.max.year]
    dates = [date(year, day.month, day.day) for year in years if day.day <= monthrange(year, day.month)[1]]
    return _first_ahead(dates, at, now)


def _first_ahead(dates: list[date], at: tuple[int, int], now: Now) -> datetime:
    """Return the first of the moments that is after now; a gap that is still ahead is none to skip."""
    for day in dates:
        wall = datetime.combine(day, time(*at))
        moment = now.zone.instant(wall)
        if moment is None:
            if wall > now.wall:
                return _instant(wall, now)
        elif moment > now.moment:
            return moment
    raise OverflowError(_FAR)


def _instant(wall: datetime, now: Now) -> datetime:
    moment = now.zone.instant(wall)
    if moment is None:
        raise TimeExpressionError(
            "nonexistent_time",
            f"{wall:%Y-%m-%d %H:%M} does not exist in {now.zone.name}: the clocks go forward over it",
            "write a time after the change",
        )
    return moment


def check_date(day: Date) -> None:
    """Raise ``invalid_date`` for a date that is in no calendar; a 29 February without year is."""
    if day.year is not None:
        _existing(day.year, day.month, day.day)
    elif not 1 <= day.day <= monthrange(_LEAP_YEAR, day.month)[1]:
        raise TimeExpressionError("invalid_date", f"{MONTH_NAMES[day.month - 1]} has no day {day.day}")


def _existing(year: int, month: int, day: int) -> date:
    try:
        return date(year, month, day)
    except ValueError:
        raise TimeExpressionError(
            "invalid_date", f"{year:04d}-{month:02d}-{day:02d} is not in the calendar"
        ) from None
