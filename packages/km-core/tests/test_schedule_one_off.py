"""One-off times: every documented form, and every refusal (spec/cli.md section 9.2)."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from km_core.schedule import Schedule, TimeExpressionError, parse

NOW = datetime(2026, 4, 10, 12, 0, tzinfo=UTC)  # a Friday


def at(text, now=NOW, tz="UTC"):
    schedule = parse(text, now, tz)
    assert ("UTC", False) == (schedule.timezone, schedule.recurring)
    assert schedule.expression.startswith("at(")
    return schedule.expression[3:-1]


def code(text, now=NOW, tz="UTC"):
    with pytest.raises(TimeExpressionError) as caught:
        parse(text, now, tz)
    assert caught.value.message
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "due"),
    [
        # Clock times, 12-hour
        ("9pm", "2026-04-10T21:00:00"),
        ("9 pm", "2026-04-10T21:00:00"),
        ("9a.m.", "2026-04-11T09:00:00"),
        ("9 p.m.", "2026-04-10T21:00:00"),
        ("9:05am", "2026-04-11T09:05:00"),
        ("9:05 PM", "2026-04-10T21:05:00"),
        ("09:05pm", "2026-04-10T21:05:00"),
        ("12am", "2026-04-11T00:00:00"),
        ("12pm", "2026-04-11T12:00:00"),
        ("12:30 am", "2026-04-11T00:30:00"),
        # compact
        ("845am", "2026-04-11T08:45:00"),
        ("1030PM", "2026-04-10T22:30:00"),
        ("1030 PM", "2026-04-10T22:30:00"),
        ("845 p.m.", "2026-04-10T20:45:00"),
        # 24-hour
        ("14:00", "2026-04-10T14:00:00"),
        ("9:05", "2026-04-11T09:05:00"),
        ("09:05", "2026-04-11T09:05:00"),
        ("00:30", "2026-04-11T00:30:00"),
        ("23:59", "2026-04-10T23:59:00"),
        ("at 15", "2026-04-10T15:00:00"),
        ("at 23", "2026-04-10T23:00:00"),
        ("tomorrow at 15", "2026-04-11T15:00:00"),
        ("at 15 tomorrow", "2026-04-11T15:00:00"),
        # words
        ("noon", "2026-04-11T12:00:00"),
        ("midnight", "2026-04-11T00:00:00"),
        ("tomorrow at midnight", "2026-04-11T00:00:00"),
        ("midnight tomorrow", "2026-04-11T00:00:00"),
        ("monday at midnight", "2026-04-13T00:00:00"),
        ("tonight", "2026-04-10T23:00:00"),
        ("tonight at midnight", "2026-04-11T00:00:00"),
        ("tonight midnight", "2026-04-11T00:00:00"),
    ],
)
def test_clock_times(text, due):
    assert due == at(text)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("in 30 minutes", "2026-04-10T12:30:00"),
        ("in 1 minute", "2026-04-10T12:01:00"),
        ("in 5 min", "2026-04-10T12:05:00"),
        ("in 5 mins", "2026-04-10T12:05:00"),
        ("in 90m", "2026-04-10T13:30:00"),
        ("in a minute", "2026-04-10T12:01:00"),
        ("in an hour", "2026-04-10T13:00:00"),
        ("in one hour", "2026-04-10T13:00:00"),
        ("in twelve hours", "2026-04-11T00:00:00"),
        ("in 2 hrs", "2026-04-10T14:00:00"),
        ("in 1 hr", "2026-04-10T13:00:00"),
        ("in 3h", "2026-04-10T15:00:00"),
        ("in 3 h", "2026-04-10T15:00:00"),
        ("in 2h30m", "2026-04-10T14:30:00"),
        ("in 2h 30m", "2026-04-10T14:30:00"),
        ("in 2 hours 30 minutes", "2026-04-10T14:30:00"),
        ("in 2 hours and 30 minutes", "2026-04-10T14:30:00"),
        ("in 2 hours, 30 minutes", "2026-04-10T14:30:00"),
        ("in half an hour", "2026-04-10T12:30:00"),
        ("2 hours from now", "2026-04-10T14:00:00"),
        ("an hour from now", "2026-04-10T13:00:00"),
        ("in 2 days", "2026-04-12T12:00:00"),
        ("in 2d", "2026-04-12T12:00:00"),
        ("in 1 week", "2026-04-17T12:00:00"),
        ("in 2 wk", "2026-04-24T12:00:00"),
        ("in 2 wks", "2026-04-24T12:00:00"),
        ("in 2w", "2026-04-24T12:00:00"),
        ("in 1 month", "2026-05-10T12:00:00"),
        ("in 9 months", "2027-01-10T12:00:00"),
        ("in 1 day and 2 hours", "2026-04-11T14:00:00"),
        ("a week from now", "2026-04-17T12:00:00"),
    ],
)
def test_relative_times(text, due):
    assert due == at(text)


def test_relative_times_keep_the_seconds_of_now_and_drop_its_fraction():
    now = datetime(2026, 4, 10, 12, 0, 42, 999_999, tzinfo=UTC)

    assert "2026-04-10T12:30:42" == at("in 30 minutes", now)
    assert "2026-04-11T12:00:42" == at("in 1 day", now)
    assert "2026-04-10T13:00:00" == at("1pm", now)


@pytest.mark.parametrize(
    ("now", "text", "due"),
    [
        (datetime(2027, 1, 31, 8, tzinfo=UTC), "in 1 month", "2027-02-28T08:00:00"),
        (datetime(2028, 1, 31, 8, tzinfo=UTC), "in 1 month", "2028-02-29T08:00:00"),
        (datetime(2027, 1, 30, 8, tzinfo=UTC), "in 1 month and 2 days", "2027-03-02T08:00:00"),
        (datetime(2026, 12, 31, 8, tzinfo=UTC), "in 2 months", "2027-02-28T08:00:00"),
        (datetime(2026, 11, 30, 8, tzinfo=UTC), "in 1 month", "2026-12-30T08:00:00"),
        (datetime(2026, 12, 15, 8, tzinfo=UTC), "in 12 months", "2027-12-15T08:00:00"),
    ],
)
def test_months_move_the_date_and_clamp_to_the_last_day(now, text, due):
    assert due == at(text, now)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("today at 3pm", "2026-04-10T15:00:00"),
        ("today 3pm", "2026-04-10T15:00:00"),
        ("3pm today", "2026-04-10T15:00:00"),
        ("tonight at 11pm", "2026-04-10T23:00:00"),
        ("tonight 8pm", "2026-04-10T20:00:00"),
        ("tonight at 17:00", "2026-04-10T17:00:00"),
        ("8pm tonight", "2026-04-10T20:00:00"),
        ("10pm tomorrow", "2026-04-11T22:00:00"),
        ("tomorrow at 9am", "2026-04-11T09:00:00"),
        ("tomorrow 9am", "2026-04-11T09:00:00"),
        ("at 9am tomorrow", "2026-04-11T09:00:00"),
        ("day after tomorrow at 9am", "2026-04-12T09:00:00"),
        ("the day after tomorrow at 9am", "2026-04-12T09:00:00"),
        ("tomorrow morning", "2026-04-11T08:00:00"),
        ("tomorrow afternoon", "2026-04-11T15:00:00"),
        ("tomorrow evening", "2026-04-11T18:00:00"),
        ("tomorrow night", "2026-04-11T23:00:00"),
        ("this afternoon", "2026-04-10T15:00:00"),
        ("this evening", "2026-04-10T18:00:00"),
        ("monday at 9am", "2026-04-13T09:00:00"),
        ("Monday 9am", "2026-04-13T09:00:00"),
        ("on monday at 9am", "2026-04-13T09:00:00"),
        ("this monday at 9am", "2026-04-13T09:00:00"),
        ("9am monday", "2026-04-13T09:00:00"),
        ("9am on monday", "2026-04-13T09:00:00"),
        ("monday morning", "2026-04-13T08:00:00"),
        ("friday at 3pm", "2026-04-10T15:00:00"),
        ("friday at 11am", "2026-04-17T11:00:00"),
        ("friday at noon", "2026-04-17T12:00:00"),
        ("next friday at 3pm", "2026-04-17T15:00:00"),
        ("next tuesday at 2pm", "2026-04-14T14:00:00"),
        ("2pm next tuesday", "2026-04-14T14:00:00"),
        ("next saturday morning", "2026-04-11T08:00:00"),
        ("sun at 9am", "2026-04-12T09:00:00"),
        ("tues at 9am", "2026-04-14T09:00:00"),
        ("wed at 9am", "2026-04-15T09:00:00"),
        ("thur at 9am", "2026-04-16T09:00:00"),
        ("thurs at 9am", "2026-04-16T09:00:00"),
        ("sat at 9am", "2026-04-11T09:00:00"),
    ],
)
def test_days(text, due):
    assert due == at(text)


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("2026-04-11 9am", "2026-04-11T09:00:00"),
        ("2026-04-11 at 9am", "2026-04-11T09:00:00"),
        ("on 2026-04-11 at 09:00", "2026-04-11T09:00:00"),
        ("2026-04-11T22:00", "2026-04-11T22:00:00"),
        ("2026-04-11t22:00:07", "2026-04-11T22:00:07"),
        ("2026-04-11T22:00Z", "2026-04-11T22:00:00"),
        ("2026-04-11T22:00:30z", "2026-04-11T22:00:30"),
        ("2026-04-11T22:00+02:00", "2026-04-11T20:00:00"),
        ("2026-04-11T22:00:30-05:30", "2026-04-12T03:30:30"),
        ("april 12 at 9am", "2026-04-12T09:00:00"),
        ("April 12th, 9am", "2026-04-12T09:00:00"),
        ("april 12 2027 at 9am", "2027-04-12T09:00:00"),
        ("april 12, 2027, 9am", "2027-04-12T09:00:00"),
        ("april 12 1030pm", "2026-04-12T22:30:00"),
        ("april 12 10:30", "2026-04-12T10:30:00"),
        ("12 april at 9am", "2026-04-12T09:00:00"),
        ("12th of april at 9am", "2026-04-12T09:00:00"),
        ("12th april 2027 at 9am", "2027-04-12T09:00:00"),
        ("1st may at 9am", "2026-05-01T09:00:00"),
        ("2nd of may at 9am", "2026-05-02T09:00:00"),
        ("sept 3rd at 9am", "2026-09-03T09:00:00"),
        ("sep 3 at 9am", "2026-09-03T09:00:00"),
        ("april 10 at 3pm", "2026-04-10T15:00:00"),
        ("april 10 at 11am", "2027-04-10T11:00:00"),
        ("january 2 at 9am", "2027-01-02T09:00:00"),
        ("february 29 at 9am", "2028-02-29T09:00:00"),
        ("29 february 2028 at 9am", "2028-02-29T09:00:00"),
        ("may 1 at noon", "2026-05-01T12:00:00"),
        ("on may 1 at midnight", "2026-05-01T00:00:00"),
    ],
)
def test_dates(text, due):
    assert due == at(text)


def test_a_29_february_without_year_waits_for_the_next_leap_year_over_a_century():
    now = datetime(2096, 3, 1, tzinfo=UTC)

    assert "2104-02-29T09:00:00" == at("february 29 at 9am", now)


@pytest.mark.parametrize(
    "text",
    [
        "  tomorrow   at  9am ",
        "TOMORROW AT 9AM",
        "tomorrow, at 9am",
        "\ttomorrow\nat 9 am",
        "tomorrow at 9 am",
    ],
)
def test_case_blanks_and_commas_do_not_matter(text):
    assert "2026-04-11T09:00:00" == at(text)


@pytest.mark.parametrize(
    ("text", "tz", "due"),
    [
        ("9am", "America/New_York", "2026-04-10T13:00:00"),
        ("9am", "Asia/Tokyo", "2026-04-11T00:00:00"),
        ("today at 11pm", "Asia/Tokyo", "2026-04-10T14:00:00"),
        ("tomorrow at 9am Europe/Berlin", "UTC", "2026-04-11T07:00:00"),
        ("tomorrow at 9am europe/berlin", "UTC", "2026-04-11T07:00:00"),
        ("9am EST", "UTC", "2026-04-10T13:00:00"),
        ("9am pdt", "UTC", "2026-04-10T16:00:00"),
        ("9 MT", "UTC", "ambiguous"),
        ("tomorrow at 9am UTC", "Asia/Tokyo", "2026-04-11T09:00:00"),
        ("tomorrow at 9am gmt", "Asia/Tokyo", "2026-04-11T09:00:00"),
        ("tomorrow at 9am Z", "Asia/Tokyo", "2026-04-11T09:00:00"),
        ("2026-04-11T22:00 Z", "Asia/Tokyo", "2026-04-11T22:00:00"),
        ("2026-04-11 22:00 America/Toronto", "Asia/Tokyo", "2026-04-12T02:00:00"),
        ("2026-04-11T22:00+02:00", "Asia/Tokyo", "2026-04-11T20:00:00"),
        ("in 2 hours CT", "UTC", "2026-04-10T14:00:00"),
        ("tomorrow at 9am Japan", "UTC", "2026-04-11T00:00:00"),
        ("in 5 D", "UTC", "2026-04-15T12:00:00"),
        ("9 AM", "UTC", "2026-04-11T09:00:00"),
        ("9am MON", "UTC", "2026-04-13T09:00:00"),
    ],
)
def test_the_zone_at_the_end_decides_over_the_one_given(text, tz, due):
    if due == "ambiguous":
        assert due == code(text, tz=tz)
    else:
        assert due == at(text, tz=tz)


def test_today_and_weekdays_are_those_of_the_zone_that_applies():
    late = datetime(2026, 4, 10, 23, 30, tzinfo=UTC)  # a Saturday in Berlin

    assert "2026-04-11T07:00:00" == at("today at 9am Europe/Berlin", late)
    assert "2026-04-18T07:00:00" == at("next saturday at 9am", late, "Europe/Berlin")
    assert "2026-04-11T09:00:00" == at("next saturday at 9am", late)


def test_the_offset_of_now_does_not_matter():
    elsewhere = NOW.astimezone(timezone(timedelta(hours=9)))

    assert parse("today at 3pm", NOW) == parse("today at 3pm", elsewhere)


REFUSED = [
    ("", "empty"),
    ("  \t\n ", "empty"),
    # not in the grammar
    ("gibberish", "unparsed"),
    ("tommorow at 9am", "unparsed"),
    ("9am 10am", "unparsed"),
    ("9am or 10am", "unparsed"),
    ("tomorrow at 9am please", "unparsed"),
    ("tomorrow-ish at 9am", "unparsed"),
    ("tomorrowat9am", "unparsed"),
    ("9: 05", "unparsed"),
    ("9:5", "unparsed"),
    ("9:5am", "unparsed"),
    ("9.30", "unparsed"),
    ("9a.m", "unparsed"),
    ("100:00", "unparsed"),
    ("12345am", "unparsed"),
    ("1430", "unparsed"),
    ("at 1430", "unparsed"),
    ("15", "unparsed"),
    ("on 15", "unparsed"),
    ("14:00:00", "unparsed"),
    ("in 1.5 hours", "unparsed"),
    ("in -5 minutes", "unparsed"),
    ("in 5", "unparsed"),
    ("in minutes", "unparsed"),
    ("5 minutes", "unparsed"),
    ("in 5 fortnights", "unparsed"),
    ("in 1 hour 2 minutes 3 days", "unparsed"),
    ("in thirteen hours", "unparsed"),
    ("in", "unparsed"),
    ("at", "unparsed"),
    ("on", "unparsed"),
    ("at at 9am", "unparsed"),
    ("this", "unparsed"),
    ("next", "unparsed"),
    ("next week", "unparsed"),
    ("this at 9am", "unparsed"),
    ("today morning", "unparsed"),
    ("morning", "unparsed"),
    ("2026-4-11 9am", "unparsed"),
    ("2026-04-11T9am", "unparsed"),
    ("2026-04-11T22:00.5", "unparsed"),
    ("2026-04-11T22:00 +02:00", "unparsed"),
    ("2026-04-11T22:00+0200", "unparsed"),
    ("2026-04-11T22", "unparsed"),
    ("april at 9am", "unparsed"),
    ("april 123 at 9am", "unparsed"),
    ("９am", "unparsed"),
    ("tomorrow at ٩am", "unparsed"),
    ("in 5 \u212ainutes", "unparsed"),
    ("9am foo", "unparsed"),
    ("9am foobar", "unparsed"),
    ("UTC", "unparsed"),
    ("\x00", "unparsed"),
    ("a" * 257, "unparsed"),
    ("in " + "9" * 254 + " days", "unparsed"),
    # more than one meaning
    ("9", "ambiguous"),
    ("0", "ambiguous"),
    ("12", "ambiguous"),
    ("at 8", "ambiguous"),
    ("at 09", "ambiguous"),
    ("tomorrow at 9", "ambiguous"),
    ("tomorrow 9", "ambiguous"),
    ("tonight at 9", "ambiguous"),
    ("tonight at 3am", "ambiguous"),
    ("tonight at noon", "ambiguous"),
    ("tonight at 16:59", "ambiguous"),
    ("yesterday at 9", "ambiguous"),
    ("5/6/2026 at 9am", "ambiguous"),
    ("5/6/2026", "ambiguous"),
    ("5/6 9am", "ambiguous"),
    ("2026/05/06 9am", "ambiguous"),
    ("tomorrow", "ambiguous"),
    ("today", "ambiguous"),
    ("monday", "ambiguous"),
    ("on monday", "ambiguous"),
    ("next monday", "ambiguous"),
    ("2026-04-12", "ambiguous"),
    ("april 12", "ambiguous"),
    ("april 12 2027", "ambiguous"),
    ("12th of april", "ambiguous"),
    ("day after tomorrow", "ambiguous"),
    ("february 30", "ambiguous"),
    # no clock shows it
    ("13pm", "invalid_time"),
    ("0am", "invalid_time"),
    ("9:60", "invalid_time"),
    ("24:00", "invalid_time"),
    ("25:00", "invalid_time"),
    ("13:00pm", "invalid_time"),
    ("1360am", "invalid_time"),
    ("860am", "invalid_time"),
    ("0030am", "invalid_time"),
    ("at 24", "invalid_time"),
    ("at 99", "invalid_time"),
    ("tonight at 25:00", "invalid_time"),
    ("yesterday at 25:00", "invalid_time"),
    ("february 30 at 25:00", "invalid_time"),
    ("in 0 minutes", "invalid_time"),
    ("in 0 seconds", "invalid_time"),
    ("0 days ago", "invalid_time"),
    ("2026-04-11T24:00", "invalid_time"),
    ("2026-04-11T22:00:60", "invalid_time"),
    ("2026-04-11T22:00+24:00", "invalid_time"),
    ("2026-02-30T25:00", "invalid_time"),
    # no calendar has it
    ("february 30 at 9am", "invalid_date"),
    ("29 february 2027 at 9am", "invalid_date"),
    ("april 31 at 9am", "invalid_date"),
    ("april 0 at 9am", "invalid_date"),
    ("april 99 at 9am", "invalid_date"),
    ("2026-02-30 9am", "invalid_date"),
    ("2026-13-01 9am", "invalid_date"),
    ("2026-00-01 9am", "invalid_date"),
    ("0000-01-01 9am", "invalid_date"),
    ("2025-02-29T09:00", "invalid_date"),
    ("in 999999999999 days", "invalid_date"),
    ("in 999999999999999999999999 hours", "invalid_date"),
    ("in 99999999999999999999 months", "invalid_date"),
    # finer than a schedule
    ("in 30 seconds", "unsupported"),
    ("in 1 minute and 30 seconds", "unsupported"),
    ("30 sec from now", "unsupported"),
    ("30 seconds ago", "unsupported"),
    # over
    ("yesterday", "past"),
    ("yesterday at 9am", "past"),
    ("9am yesterday", "past"),
    ("yesterday morning", "past"),
    ("last monday", "past"),
    ("last monday at 9am", "past"),
    ("9am last monday", "past"),
    ("2 hours ago", "past"),
    ("half an hour ago", "past"),
    ("today at 9am", "past"),
    ("today at noon", "past"),
    ("today at midnight", "past"),
    ("this morning", "past"),
    ("2026-04-10 11:59", "past"),
    ("2026-04-10T12:00", "past"),
    ("2026-04-10T13:00+02:00", "past"),
    ("april 9 2026 at 9am", "past"),
    ("1999-12-31T23:59:59Z", "past"),
    # zones
    ("9am XYZ", "invalid_zone"),
    ("gibberish XYZ", "invalid_zone"),
    ("tomorrow at 9am Mars/Phobos", "invalid_zone"),
    ("tomorrow at 9am America/Tornto", "invalid_zone"),
    ("25:00 ABCDE", "invalid_zone"),
    ("9am ../../etc/passwd", "unparsed"),
    ("9am a/../b", "unparsed"),
]


@pytest.mark.parametrize(("text", "reject"), REFUSED)
def test_what_is_no_one_off_time_is_refused_with_its_code(text, reject):
    assert reject == code(text)


@pytest.mark.parametrize(
    "tz", ["", "Mars/Phobos", "../../etc/passwd", "/etc/localtime", "Local", "right/UTC", "Factory"]
)
def test_a_zone_that_the_database_does_not_know_is_refused_before_the_text(tz):
    assert "invalid_zone" == code("gibberish", tz=tz)
    assert "empty" == code(" ", tz=tz)


def test_tonight_alone_is_over_at_23():
    late = datetime(2026, 4, 10, 23, 0, tzinfo=UTC)

    assert "past" == code("tonight", late)
    assert "2026-04-11T00:00:00" == at("tonight at midnight", late)


def test_a_time_that_is_now_is_tomorrow_s():
    assert "2026-04-11T12:00:00" == at("12:00")
    assert "2026-04-11T12:00:00" == at("12:00", NOW + timedelta(milliseconds=1))
    assert "2026-04-10T12:00:00" == at("12:00", NOW - timedelta(milliseconds=1))


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("tommorow at 9am", "did you mean tomorrow?"),
        ("every mondy at 9am", "did you mean monday?"),
        ("tomorrow", "add a time, for example tomorrow at 9am"),
        ("at 8", "write 8am, 8pm or 08:00"),
        ("9am America/Tornto", "did you mean America/Toronto?"),
        ("0 9 * * 1-5", "write cron(0 9 ? * 2-6 *)"),
    ],
)
def test_a_refusal_says_what_to_write(text, hint):
    with pytest.raises(TimeExpressionError) as caught:
        parse(text, NOW)

    assert hint == caught.value.hint


def test_now_without_a_zone_is_the_callers_mistake():
    with pytest.raises(ValueError, match="aware"):
        parse("9am", NOW.replace(tzinfo=None))


def test_the_schedule_is_told_in_the_operators_zone():
    assert parse("tomorrow at 9am", NOW, "Europe/Berlin") == Schedule(
        expression="at(2026-04-11T07:00:00)",
        timezone="UTC",
        recurring=False,
        human="once, on Saturday 11 April 2026 at 09:00 (Europe/Berlin)",
    )
