"""When schedules fire: clock changes, calendars, ends, and an independent walk minute by minute."""

from __future__ import annotations

from calendar import monthrange
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.schedule import Schedule, TimeExpressionError, find_zone, next_times, parse

NEW_YORK, BERLIN, LORD_HOWE = "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"


def cron(fields, zone="UTC"):
    return Schedule(f"cron({fields})", zone, recurring=True, human="")


def walls(fields, zone, now, count):
    """The next wall times with their offsets, as text."""
    return [f"{t:%Y-%m-%d %H:%M %z}" for t in next_times(cron(fields, zone), now, count)]


def code(text, now, tz):
    with pytest.raises(TimeExpressionError) as caught:
        parse(text, now, tz)
    return caught.value.code


# Clock changes of 2026: New York 8 March and 1 November at 2:00, Berlin 29 March and 25 October at 2:00
# and 3:00, Lord Howe 4 October (by 30 minutes, at 2:00) and 5 April (back, at 2:00).


@pytest.mark.parametrize(
    ("zone", "now", "time", "expected"),
    [
        (
            NEW_YORK,
            datetime(2026, 3, 7, 0, tzinfo=UTC),
            "30 2",
            ["2026-03-07 02:30 -0500", "2026-03-09 02:30 -0400", "2026-03-10 02:30 -0400"],
        ),
        (
            BERLIN,
            datetime(2026, 3, 28, 0, tzinfo=UTC),
            "0 2",
            ["2026-03-28 02:00 +0100", "2026-03-30 02:00 +0200", "2026-03-31 02:00 +0200"],
        ),
        (
            LORD_HOWE,
            datetime(2026, 10, 2, 0, tzinfo=UTC),
            "15 2",
            ["2026-10-03 02:15 +1030", "2026-10-05 02:15 +1100", "2026-10-06 02:15 +1100"],
        ),
        (
            LORD_HOWE,
            datetime(2026, 10, 2, 0, tzinfo=UTC),
            "30 2",
            ["2026-10-03 02:30 +1030", "2026-10-04 02:30 +1100", "2026-10-05 02:30 +1100"],
        ),
    ],
)
def test_a_cron_time_in_the_gap_is_skipped_that_day(zone, now, time, expected):
    assert expected == walls(f"{time} * * ? *", zone, now, 3)


@pytest.mark.parametrize(
    ("zone", "now", "time", "expected"),
    [
        (
            NEW_YORK,
            datetime(2026, 11, 1, 0, tzinfo=UTC),
            "30 1",
            ["2026-11-01 01:30 -0400", "2026-11-02 01:30 -0500"],
        ),
        (
            BERLIN,
            datetime(2026, 10, 24, 12, tzinfo=UTC),
            "30 2",
            ["2026-10-25 02:30 +0200", "2026-10-26 02:30 +0100"],
        ),
        (
            LORD_HOWE,
            datetime(2026, 4, 4, 0, tzinfo=UTC),
            "45 1",
            ["2026-04-05 01:45 +1100", "2026-04-06 01:45 +1030"],
        ),
        # Asked for between the two: the first was this day's.
        (
            BERLIN,
            datetime(2026, 10, 25, 0, 45, tzinfo=UTC),
            "30 2",
            ["2026-10-26 02:30 +0100", "2026-10-27 02:30 +0100"],
        ),
    ],
)
def test_a_cron_time_that_comes_twice_fires_the_first_time_only(zone, now, time, expected):
    assert expected == walls(f"{time} * * ? *", zone, now, 2)


@pytest.mark.parametrize(
    ("zone", "now", "text"),
    [
        (NEW_YORK, datetime(2026, 3, 7, 12, tzinfo=UTC), "tomorrow at 2:30am"),
        (NEW_YORK, datetime(2026, 3, 8, 6, tzinfo=UTC), "2:30am"),
        (NEW_YORK, datetime(2026, 3, 5, 12, tzinfo=UTC), "sunday at 2am"),
        (NEW_YORK, datetime(2026, 3, 7, 7, 30, tzinfo=UTC), "in 1 day"),
        (BERLIN, datetime(2026, 1, 1, tzinfo=UTC), "march 29 at 2:59"),
        (BERLIN, datetime(2027, 1, 1, tzinfo=UTC), "2026-03-29 02:30"),
        (LORD_HOWE, datetime(2026, 1, 1, tzinfo=UTC), "2026-10-04T02:29"),
    ],
)
def test_a_one_off_time_in_the_gap_does_not_exist(zone, now, text):
    assert "nonexistent_time" == code(text, now, zone)


@pytest.mark.parametrize(
    ("zone", "now", "text", "due"),
    [
        (NEW_YORK, datetime(2026, 3, 8, 6, tzinfo=UTC), "3am", "2026-03-08T07:00:00"),
        (NEW_YORK, datetime(2026, 3, 8, 7, 30, tzinfo=UTC), "2:30am", "2026-03-09T06:30:00"),
        (NEW_YORK, datetime(2026, 3, 7, 12, tzinfo=UTC), "in 24 hours", "2026-03-08T12:00:00"),
        (NEW_YORK, datetime(2026, 3, 7, 12, tzinfo=UTC), "in 1 day", "2026-03-08T11:00:00"),
        (NEW_YORK, datetime(2026, 11, 1, 4, tzinfo=UTC), "1:30am", "2026-11-01T05:30:00"),
        (NEW_YORK, datetime(2026, 11, 1, 6, tzinfo=UTC), "1:30am", "2026-11-02T06:30:00"),
        (NEW_YORK, datetime(2026, 10, 31, 12, tzinfo=UTC), "in 1 day and 1 hour", "2026-11-01T14:00:00"),
        (BERLIN, datetime(2026, 3, 28, 12, tzinfo=UTC), "tomorrow at 3am", "2026-03-29T01:00:00"),
        (LORD_HOWE, datetime(2026, 10, 3, 0, tzinfo=UTC), "tomorrow at 2:30", "2026-10-03T15:30:00"),
        (LORD_HOWE, datetime(2026, 4, 4, 0, tzinfo=UTC), "tomorrow at 1:45", "2026-04-04T14:45:00"),
    ],
)
def test_one_off_times_around_clock_changes(zone, now, text, due):
    assert f"at({due})" == parse(text, now, zone).expression


def test_a_day_that_a_zone_skipped_has_no_times():
    # Samoa went over the date line: no 30 December 2011.
    now = datetime(2011, 12, 29, 20, tzinfo=UTC)

    assert ["2011-12-29 12:00 -1000", "2011-12-31 12:00 +1400"] == walls(
        "0 12 * * ? *", "Pacific/Apia", now, 2
    )
    assert "nonexistent_time" == code("tomorrow at noon", now, "Pacific/Apia")


def test_rates_count_elapsed_time_over_clock_changes():
    now = datetime(2026, 3, 7, 12, 0, 30, tzinfo=UTC)
    schedule = parse("every 1 day", now, NEW_YORK)

    assert [now + timedelta(days=n) for n in (1, 2, 3)] == next_times(schedule, now, 3)


def test_a_one_off_time_comes_once():
    now = datetime(2026, 4, 10, 12, tzinfo=UTC)
    schedule = parse("in 30 minutes", now)
    due = datetime(2026, 4, 10, 12, 30, tzinfo=UTC)

    assert [due] == next_times(schedule, now, 5)
    assert [] == next_times(schedule, due, 5)


@pytest.mark.parametrize(
    ("fields", "days"),
    [
        ("0 9 L * ? *", ["2027-01-31", "2027-02-28", "2027-03-31", "2027-04-30"]),
        ("0 9 LW * ? *", ["2027-01-29", "2027-02-26", "2027-03-31", "2027-04-30"]),
        # 1 May 2027 is a Saturday, 1 August a Sunday.
        ("0 9 1W 5,8 ? *", ["2027-05-03", "2027-08-02", "2028-05-01", "2028-08-01"]),
        # 31 January 2027 is a Sunday; months without a 31st are left out.
        ("0 9 31W * ? *", ["2027-01-29", "2027-03-31", "2027-05-31", "2027-07-30"]),
        ("0 9 16W 1 ? *", ["2027-01-15", "2028-01-17", "2029-01-16", "2030-01-16"]),
        ("0 9 ? * 6L *", ["2027-01-29", "2027-02-26", "2027-03-26", "2027-04-30"]),
        ("0 9 ? * L *", ["2027-01-02", "2027-01-09", "2027-01-16", "2027-01-23"]),
        ("0 9 ? * 2#1 *", ["2027-01-04", "2027-02-01", "2027-03-01", "2027-04-05"]),
        ("0 9 ? * 2#5 *", ["2027-03-29", "2027-05-31", "2027-08-30", "2027-11-29"]),
        ("0 9 29 2 ? *", ["2028-02-29", "2032-02-29", "2036-02-29", "2040-02-29"]),
        ("0 9 31 * ? *", ["2027-01-31", "2027-03-31", "2027-05-31", "2027-07-31"]),
        ("0 9 1 1 ? 2030/50", ["2030-01-01", "2080-01-01", "2130-01-01", "2180-01-01"]),
        ("0 9 1 1 ? 2029,2027", ["2027-01-01", "2029-01-01"]),
    ],
)
def test_calendars(fields, days):
    now = datetime(2026, 12, 31, 12, tzinfo=UTC)

    assert days == [f"{t:%Y-%m-%d}" for t in next_times(cron(fields), now, 4)]


@pytest.mark.parametrize("zone", ["UTC", NEW_YORK, "Pacific/Kiritimati"])
def test_cron_ends_with_the_year_2199(zone):
    now = datetime(2199, 12, 30, 18, tzinfo=UTC)
    last = next_times(cron("59 23 * * ? *", zone), now, 10)

    assert 2199 == last[-1].year
    assert (12, 31, 23, 59) == (last[-1].month, last[-1].day, last[-1].hour, last[-1].minute)
    assert [] == next_times(cron("59 23 * * ? *", zone), last[-1], 10)


@pytest.mark.parametrize("fields", ["0 0 30 2 ? *", "0 0 31 4,6,9,11 ? *", "0 0 31W 2 ? *", "0 9 1 1 ? 2020"])
def test_a_cron_that_never_fires_ends(fields):
    assert [] == next_times(cron(fields), datetime(2026, 4, 10, tzinfo=UTC), 5)


def test_a_count_of_nothing_is_nothing():
    assert [] == next_times(cron("* * * * ? *"), datetime(2026, 4, 10, tzinfo=UTC), 0)
    assert [] == next_times(cron("* * * * ? *"), datetime(2026, 4, 10, tzinfo=UTC), -1)


# The oracle: one field at a time, by string, over a walk in UTC; nothing of it is the product's.

MONTHS = ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"]
DAYS = ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"]


def plain(item, value, low, high, names=()):
    item, _, step = item.partition("/")
    first, dash, last = item.partition("-")
    if item == "*":
        first, dash, last = str(low), "-", str(high)
    first, last = (str(names.index(x) + 1) if x in names else x for x in (first, last))
    end = int(last) if dash else (high if step else int(first))
    return int(first) <= value <= end and (value - int(first)) % int(step or 1) == 0


def field(text, value, low, high, names=()):
    return any(plain(item, value, low, high, names) for item in text.split(","))


def fires(fields, wall):
    """Whether a cron fires at a wall time."""
    minute, hour, dom, month, dow, year = fields.split()
    length = monthrange(wall.year, wall.month)[1]
    weekday = wall.isoweekday() % 7 + 1
    if not (
        field(minute, wall.minute, 0, 59)
        and field(hour, wall.hour, 0, 23)
        and field(month, wall.month, 1, 12, MONTHS)
        and field(year, wall.year, 1970, 2199)
    ):
        return False
    if dow == "?":
        if dom == "L":
            return wall.day == length
        if dom.endswith("W"):
            wanted = length if dom == "LW" else int(dom[:-1])
            if wanted > length or weekday in {1, 7}:
                return False
            # The nearest working day: wanted itself, or this one beside a weekend within the month.
            target = wall.replace(day=wanted)
            if target.isoweekday() < 6:
                return wall.day == wanted
            candidates = [
                target.replace(day=d)
                for d in range(max(1, wanted - 2), min(length, wanted + 2) + 1)
                if target.replace(day=d).isoweekday() < 6
            ]
            return wall.day == min(candidates, key=lambda d: abs(d.day - wanted)).day
        return field(dom, wall.day, 1, 31)
    if dow == "L":
        return weekday == 7
    if dow.endswith("L"):
        return weekday == int(dow[:-1]) and wall.day + 7 > length
    if "#" in dow:
        number, nth = dow.split("#")
        return weekday == int(number) and (wall.day - 1) // 7 + 1 == int(nth)
    return field(dow, weekday, 1, 7, DAYS)


def walk(fields, zone, now, minutes):
    """Each minute of UTC after now at which the zone's clock shows a time of the cron for the first time."""
    info = ZoneInfo(zone)
    start = now.replace(second=0, microsecond=0)
    for number in range(minutes + 1):
        moment = start + timedelta(minutes=number)
        wall = moment.astimezone(info)
        if moment > now and wall.fold == 0 and fires(fields, wall):
            yield moment


def moments(first_year, last_year):
    first, last = (int(datetime(year, 1, 1, tzinfo=UTC).timestamp()) for year in (first_year, last_year))
    return st.integers(first, last).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))


def numbers(low, high):
    single = st.integers(low, high).map(str)
    ranges = st.tuples(st.integers(low, high), st.integers(low, high)).map(lambda p: f"{min(p)}-{max(p)}")
    steps = st.tuples(st.one_of(st.just("*"), single, ranges), st.integers(1, high)).map(
        lambda p: f"{p[0]}/{p[1]}"
    )
    return st.one_of(
        st.just("*"), st.lists(st.one_of(single, ranges, steps), min_size=1, max_size=3).map(",".join)
    )


def named(names):
    return st.one_of(
        numbers(1, len(names)), st.lists(st.sampled_from(names), min_size=1, max_size=3).map(",".join)
    )


doms = st.one_of(numbers(1, 31), st.sampled_from(["L", "LW"]), st.integers(1, 31).map(lambda n: f"{n}W"))
dows = st.one_of(
    named(DAYS),
    st.just("L"),
    st.integers(1, 7).map(lambda n: f"{n}L"),
    st.tuples(st.integers(1, 7), st.integers(1, 5)).map(lambda p: f"{p[0]}#{p[1]}"),
)
day_fields = st.one_of(
    st.tuples(doms, named(MONTHS)).map(lambda p: f"{p[0]} {p[1]} ?"),
    st.tuples(dows, named(MONTHS)).map(lambda p: f"? {p[1]} {p[0]}"),
)
crons = st.tuples(numbers(0, 59), numbers(0, 23), day_fields).map(lambda p: f"{p[0]} {p[1]} {p[2]} *")
frequent = st.tuples(
    numbers(0, 59), numbers(0, 6), st.sampled_from(["* * ?", "? * *", "? * 1", "? * 2-6", "L * ?", "1W * ?"])
).map(lambda p: f"{p[0]} {p[1]} {p[2]} *")
ZONES = [
    NEW_YORK,
    BERLIN,
    LORD_HOWE,
    "UTC",
    "Asia/Kathmandu",
    "America/Havana",
    "Africa/Casablanca",
    "Pacific/Apia",
]
CHANGES = [
    datetime(2026, 3, 7, 20, tzinfo=UTC),
    datetime(2026, 3, 28, 20, tzinfo=UTC),
    datetime(2026, 4, 4, 3, tzinfo=UTC),
    datetime(2026, 10, 3, 3, tzinfo=UTC),
    datetime(2026, 10, 24, 20, tzinfo=UTC),
    datetime(2026, 10, 31, 20, tzinfo=UTC),
    datetime(2026, 2, 27, 20, tzinfo=UTC),
    datetime(2011, 12, 28, 20, tzinfo=UTC),
]


@settings(max_examples=60, deadline=None)
@given(
    st.one_of(crons, frequent),
    st.sampled_from(ZONES),
    st.sampled_from(CHANGES),
    st.integers(0, 36 * 60),
    st.integers(0, 59),
)
def test_times_are_those_of_a_walk_minute_by_minute(fields, zone, start, minutes, second):
    now = start + timedelta(minutes=minutes, seconds=second)
    window = 3 * 24 * 60
    expected = list(walk(fields, zone, now, window))
    found = next_times(cron(fields, zone), now, len(expected) + 1)
    horizon = now + timedelta(minutes=window) - timedelta(seconds=second)

    assert expected == [t.astimezone(UTC) for t in found if t.astimezone(UTC) <= horizon]


@settings(max_examples=150, deadline=None)
@given(crons, st.sampled_from(ZONES), moments(1971, 2198))
def test_times_ascend_and_are_those_of_the_expression(fields, zone, now):
    times = [t.astimezone(UTC) for t in next_times(cron(fields, zone), now, 12)]

    assert all(earlier < later for earlier, later in pairwise([now, *times]))
    for moment in times:
        wall = moment.astimezone(ZoneInfo(zone))
        assert (0, 0) == (wall.second, wall.fold)
        assert fires(fields, wall)


@settings(max_examples=100, deadline=None)
@given(crons, st.sampled_from(ZONES), moments(2020, 2040), st.integers(1, 6))
def test_asking_again_after_the_last_answer_goes_on_where_it_ended(fields, zone, now, first):
    schedule = cron(fields, zone)
    times = next_times(schedule, now, first + 3)
    head = next_times(schedule, now, first)

    assert times[: len(head)] == head
    if len(head) == first:
        assert times[first:] == next_times(schedule, head[-1], 3)


def test_every_zone_of_the_database_is_found_by_its_name_in_any_case():
    # These are read as the region that people mean by them, and as UTC.
    other = {"EST", "MST", "GMT", "Etc/UTC"}
    names = sorted(available_timezones() - {"Factory", "localtime"} - other)

    assert names == [find_zone(name.swapcase()).name for name in names]
