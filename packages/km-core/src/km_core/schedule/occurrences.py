"""When a schedule fires: the same answer for ``km explain at``, ``km at`` and the local scheduler."""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, date, datetime, time, timedelta
from itertools import islice
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.schedule.cron import parse_cron
from km_core.schedule.raw import parse_at, parse_rate
from km_core.schedule.zones import Zone, find_zone

if TYPE_CHECKING:
    from collections.abc import Iterator

    from km_core.schedule.cron import Cron
    from km_core.schedule.model import Schedule

_YEAR_DAYS = 366
_MANY_HOURS = 24


def next_times(schedule: Schedule, now: datetime, count: int) -> list[datetime]:
    """
    Return the next *count* times after *now*, fewer where the schedule ends.

    As `occurrences`.
    """
    return list(islice(occurrences(schedule, now), max(count, 0)))


def occurrences(schedule: Schedule, now: datetime) -> Iterator[datetime]:
    """
    Yield the times strictly after *now*, ascending, aware in the schedule's zone.

    Wall times of a cron expression that a clock change skips do not come; those that come twice come
    once, the first time.  A rate is counted from *now*, in elapsed time.  Cron ends with the year 2199.

    Args:
        schedule: one that `km_core.schedule.parse` made.
        now: aware; when a rate's schedule was made or last fired.

    Raises:
        TimeExpressionError: the schedule's expression or zone is none.
    """
    moment = now.astimezone(UTC)
    kind = schedule.expression.partition("(")[0]
    if kind == "cron":
        yield from _cron(parse_cron(schedule.expression), find_zone(schedule.timezone), moment)
    elif kind == "rate":
        count, unit = parse_rate(schedule.expression)
        yield from _rate(moment, count, unit)
    else:
        due = parse_at(schedule.expression)
        if due > moment:
            yield due


def _rate(moment: datetime, count: int, unit: str) -> Iterator[datetime]:
    try:
        period = timedelta(**{f"{unit}s": count})
        while True:
            moment += period
            yield moment
    except OverflowError:
        return


def _cron(cron: Cron, zone: Zone, moment: datetime) -> Iterator[datetime]:
    # Wall times that come once, or the first time of two, ascend together with their moments.
    for day in _days(cron, zone.wall(moment).date()):
        for hour in cron.hours:
            for minute in cron.minutes:
                due = zone.instant(datetime.combine(day, time(hour, minute)))
                if due is not None and due > moment:
                    yield zone.wall(due)


def _days(cron: Cron, first: date) -> Iterator[date]:
    for year in cron.years[bisect_left(cron.years, first.year) :]:
        for month in cron.months:
            if (year, month) < (first.year, first.month):
                continue
            for number in cron.days_of(year, month):
                day = date(year, month, number)
                if day >= first:
                    yield day


def with_gap_notes(schedule: Schedule, now: datetime) -> Schedule:
    """
    Return *schedule* with what people should know before they rely on it.

    That is: it never fires, or one of its times is skipped by a clock change within a year of *now*.
    """
    if not schedule.expression.startswith("cron("):
        return schedule
    notes = list(schedule.notes)
    if not next_times(schedule, now, 1):
        notes.append("it never fires: no such day is left")
    skipped = _first_skipped(parse_cron(schedule.expression), find_zone(schedule.timezone), now)
    if skipped is not None:
        notes.append(f"skipped on {skipped:%Y-%m-%d}: the clocks go forward over {skipped:%H:%M}")
    return evolve(schedule, notes=tuple(notes))


def _first_skipped(cron: Cron, zone: Zone, now: datetime) -> datetime | None:
    """Return the first wall time of *cron* in a gap of the next year; none for what fires every hour."""
    if len(cron.hours) == _MANY_HOURS:
        return None
    start = now.astimezone(UTC).replace(second=0, microsecond=0)
    for before in (start + timedelta(days=number) for number in range(_YEAR_DAYS)):
        after = before + timedelta(days=1)
        if _offset(zone, after) <= _offset(zone, before):
            continue
        for wall in _gap(zone, before, after):
            if cron.matches(wall.year, wall.month, wall.day) and (
                wall.hour in cron.hours and wall.minute in cron.minutes
            ):
                return wall
    return None


def _gap(zone: Zone, before: datetime, after: datetime) -> list[datetime]:
    """Return the wall minutes that the change between two moments skips."""
    ahead = _offset(zone, after)
    while after - before > timedelta(minutes=1):
        middle = before + timedelta(minutes=(after - before) // timedelta(minutes=2))
        if _offset(zone, middle) == ahead:
            after = middle
        else:
            before = middle
    first = (after + _offset(zone, before)).replace(tzinfo=None)
    minutes = (ahead - _offset(zone, before)) // timedelta(minutes=1)
    return [first + timedelta(minutes=number) for number in range(minutes)]


def _offset(zone: Zone, moment: datetime) -> timedelta:
    return zone.wall(moment).utcoffset() or timedelta(0)
