"""Recurring times and the scheduler's own expressions (spec/cli.md section 9.2)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from km_core.schedule import TimeExpressionError, parse

NOW = datetime(2026, 4, 10, 12, 0, tzinfo=UTC)  # a Friday


def code(text, tz="UTC"):
    with pytest.raises(TimeExpressionError) as caught:
        parse(text, NOW, tz)
    return caught.value.code


@pytest.mark.parametrize(
    ("text", "expression"),
    [
        ("every 5 minutes", "rate(5 minutes)"),
        ("every 1 minute", "rate(1 minute)"),
        ("every 1 minutes", "rate(1 minute)"),
        ("every 30 min", "rate(30 minutes)"),
        ("every 30m", "rate(30 minutes)"),
        ("every 2 hours", "rate(2 hours)"),
        ("every two hours", "rate(2 hours)"),
        ("each 2 hours", "rate(2 hours)"),
        ("every 1 hour", "rate(1 hour)"),
        ("every 3 days", "rate(3 days)"),
        ("every 1 day", "rate(1 day)"),
        ("every minute", "rate(1 minute)"),
        ("every hour", "rate(1 hour)"),
        ("each hour", "rate(1 hour)"),
        ("hourly", "rate(1 hour)"),
        ("every 2 weeks", "rate(14 days)"),
        ("every 1 week", "rate(7 days)"),
        ("EVERY  2   HOURS", "rate(2 hours)"),
    ],
)
def test_rates_are_in_utc_with_the_singular_for_1_only(text, expression):
    schedule = parse(text, NOW, "Europe/Berlin")

    assert (expression, "UTC", True) == (schedule.expression, schedule.timezone, schedule.recurring)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        # every day
        ("every day at 9am", "0 9 * * ? *"),
        ("every day at 09:05", "5 9 * * ? *"),
        ("every day 9am", "0 9 * * ? *"),
        ("every day at 15", "0 15 * * ? *"),
        ("everyday at 9am", "0 9 * * ? *"),
        ("daily at 9am", "0 9 * * ? *"),
        ("each day at 9am", "0 9 * * ? *"),
        ("every day at noon", "0 12 * * ? *"),
        ("every day at midnight", "0 0 * * ? *"),
        ("every morning", "0 8 * * ? *"),
        ("every afternoon", "0 15 * * ? *"),
        ("every evening", "0 18 * * ? *"),
        ("every night", "0 23 * * ? *"),
        ("every day at 9am and 5pm", "0 9,17 * * ? *"),
        ("every day at 5pm and 9am", "0 9,17 * * ? *"),
        ("every day at 9:30am, 1:30pm and 5:30pm", "30 9,13,17 * * ? *"),
        ("every day at 9am and at 5pm", "0 9,17 * * ? *"),
        ("every day at 9am and 9am", "0 9 * * ? *"),
        # weekdays
        ("every thursday at 3pm", "0 15 ? * 5 *"),
        ("every monday at 8:30am", "30 8 ? * 2 *"),
        ("every wednesday at noon", "0 12 ? * 4 *"),
        ("each tue at 9am", "0 9 ? * 3 *"),
        ("sundays at 9am", "0 9 ? * 1 *"),
        ("mondays and thursdays at 9am", "0 9 ? * 2,5 *"),
        ("weekly on saturday at 9am", "0 9 ? * 7 *"),
        ("every week on saturday at 9am", "0 9 ? * 7 *"),
        ("weekly on mon and fri at 9am", "0 9 ? * 2,6 *"),
        ("every friday evening", "0 18 ? * 6 *"),
        ("every mon, wed and fri at 9am", "0 9 ? * 2,4,6 *"),
        ("every mon wed fri at 9am", "0 9 ? * 2,4,6 *"),
        ("every fri and mon and fri at 9am", "0 9 ? * 2,6 *"),
        ("every mon-fri at 9am", "0 9 ? * 2-6 *"),
        ("every monday to friday at 9am", "0 9 ? * 2-6 *"),
        ("every monday through friday at 9am", "0 9 ? * 2-6 *"),
        ("every mon - fri at 9am", "0 9 ? * 2-6 *"),
        ("every mon tue wed thu fri at 9am", "0 9 ? * 2-6 *"),
        ("every mon-thu at 9am", "0 9 ? * 2,3,4,5 *"),
        ("every sat-mon at 9am", "0 9 ? * 1,2,7 *"),
        ("every fri to mon at 9am", "0 9 ? * 1,2,6,7 *"),
        ("every mon-wed and fri at 9am", "0 9 ? * 2,3,4,6 *"),
        ("every mon-sun at 9am", "0 9 * * ? *"),
        ("every sun-sat at 9am", "0 9 * * ? *"),
        ("every sat and sun at 9am", "0 9 ? * 1,7 *"),
        ("every weekday at 11pm", "0 23 ? * 2-6 *"),
        ("each weekday at 9am", "0 9 ? * 2-6 *"),
        ("weekdays at 9am", "0 9 ? * 2-6 *"),
        ("every weekday morning", "0 8 ? * 2-6 *"),
        ("every weekend at 10am", "0 10 ? * 1,7 *"),
        ("weekends at 10am", "0 10 ? * 1,7 *"),
        ("every weekday at 9am and 5pm", "0 9,17 ? * 2-6 *"),
        # hours
        ("every hour at :15", "15 * * * ? *"),
        ("hourly at :05", "5 * * * ? *"),
        ("every hour at :00", "0 * * * ? *"),
        # months
        ("every month on the 5th at 9am", "0 9 5 * ? *"),
        ("every month on the 5 at 9am", "0 9 5 * ? *"),
        ("every month on 5th at 9am", "0 9 5 * ? *"),
        ("monthly on the 31st at 9am", "0 9 31 * ? *"),
        ("every month on the last day at 9am", "0 9 L * ? *"),
        ("monthly on the last day at 9am", "0 9 L * ? *"),
        ("last day of every month at 9am", "0 9 L * ? *"),
        ("first monday of every month at 9am", "0 9 ? * 2#1 *"),
        ("second tue of every month at 9am", "0 9 ? * 3#2 *"),
        ("third sunday of every month at 9am", "0 9 ? * 1#3 *"),
        ("fourth saturday of every month at 9am", "0 9 ? * 7#4 *"),
        ("the 1st monday of each month at 9am", "0 9 ? * 2#1 *"),
        ("last friday of every month at 5pm", "0 17 ? * 6L *"),
        # years
        ("every year on april 12 at 9am", "0 9 12 4 ? *"),
        ("every year on april 12th at 9am", "0 9 12 4 ? *"),
        ("every year on february 29 at 9am", "0 9 29 2 ? *"),
    ],
)
def test_recurring_forms(text, fields):
    schedule = parse(text, NOW, "Europe/Berlin")

    assert (f"cron({fields})", "Europe/Berlin", True) == (
        schedule.expression,
        schedule.timezone,
        schedule.recurring,
    )


@pytest.mark.parametrize(
    ("text", "zone"),
    [
        ("every day at 9am ET", "America/New_York"),
        ("every day at 9am cst", "America/Chicago"),
        ("every day at 9am America/Toronto", "America/Toronto"),
        ("every day at 9am america/toronto", "America/Toronto"),
        ("every day at 9am GMT", "UTC"),
        ("every day at 9am z", "UTC"),
        ("every hour at :15 Asia/Kolkata", "Asia/Kolkata"),
        ("cron(0 9 * * ? *) America/Toronto", "America/Toronto"),
        ("cron(0 9 * * ? *)", "Europe/Berlin"),
    ],
)
def test_the_zone_at_the_end_decides_the_zone_of_cron(text, zone):
    assert zone == parse(text, NOW, "Europe/Berlin").timezone


@pytest.mark.parametrize(
    ("text", "reject"),
    [
        # not in the grammar
        ("every", "unparsed"),
        ("every blue moon", "unparsed"),
        ("every day at", "unparsed"),
        ("every day at 9am maybe", "unparsed"),
        ("everyday9am", "unparsed"),
        ("every monday-", "unparsed"),
        ("every monday to", "unparsed"),
        ("on every monday at 9am", "unparsed"),
        ("at every day at 9am", "unparsed"),
        ("every hour at :5", "unparsed"),
        ("every hour at : 05", "unparsed"),
        ("every hour at 9am", "unparsed"),
        ("every day at 15 17", "unparsed"),
        ("every a hour", "unparsed"),
        ("everyone at 9am", "unparsed"),
        ("monthly report", "unparsed"),
        ("daily standup at 9am", "unparsed"),
        ("everything weekly", "unparsed"),
        ("mon-fri at 9am", "unparsed"),
        ("5th monday of every month at 9am", "unparsed"),
        ("2th monday of every month at 9am", "unparsed"),
        # a day or a time is missing, or has two meanings
        ("every day", "ambiguous"),
        ("daily", "ambiguous"),
        ("everyday", "ambiguous"),
        ("every monday", "ambiguous"),
        ("every mon-fri", "ambiguous"),
        ("mondays", "ambiguous"),
        ("weekdays", "ambiguous"),
        ("every weekday", "ambiguous"),
        ("every weekend", "ambiguous"),
        ("every week", "ambiguous"),
        ("weekly", "ambiguous"),
        ("weekly at 9am", "ambiguous"),
        ("weekly on monday", "ambiguous"),
        ("every month", "ambiguous"),
        ("monthly", "ambiguous"),
        ("monthly at 9am", "ambiguous"),
        ("every month on the 5th", "ambiguous"),
        ("every month on the 32nd", "ambiguous"),
        ("last day of every month", "ambiguous"),
        ("last friday of every month", "ambiguous"),
        ("every year", "ambiguous"),
        ("every year on april 12", "ambiguous"),
        ("every other day", "ambiguous"),
        ("every day at 8", "ambiguous"),
        ("every day at 8 pm and 9", "ambiguous"),
        ("every 2 days at 9", "ambiguous"),
        ("every other monday", "ambiguous"),
        # no clock, no calendar
        ("every day at 25:00", "invalid_time"),
        ("every day at 9am and 13pm", "invalid_time"),
        ("every hour at :60", "invalid_time"),
        ("every month on the 32nd at 25:00", "invalid_time"),
        ("every month on the 32nd at 9am", "invalid_date"),
        ("every month on the 0th at 9am", "invalid_date"),
        ("every year on february 30 at 9am", "invalid_date"),
        # no expression says it
        ("every day at 9am and 5:30pm", "unsupported"),
        ("every 2 days at 9am", "unsupported"),
        ("every other day at 9am", "unsupported"),
        ("every other monday at 9am", "unsupported"),
        ("every 2 weeks on monday at 9am", "unsupported"),
        ("every other week on monday at 9am", "unsupported"),
        ("every 3 months", "unsupported"),
        ("every 30 seconds", "unsupported"),
        ("every second", "unsupported"),
        ("every 2 hours at :15", "unsupported"),
        ("every 2 hours UTC", "unsupported"),
        ("hourly EST", "unsupported"),
        ("rate(2 hours) UTC", "unsupported"),
        # rates
        ("every 0 minutes", "invalid_rate"),
        ("every 0 weeks", "invalid_rate"),
        ("rate(0 minutes)", "invalid_rate"),
        ("rate(1 hours)", "invalid_rate"),
        ("rate(2 hour)", "invalid_rate"),
        ("rate(-1 hours)", "invalid_rate"),
        ("rate(2 weeks)", "invalid_rate"),
        ("rate(30 seconds)", "invalid_rate"),
        ("rate(2hours)", "invalid_rate"),
        ("rate(02 hours)", "invalid_rate"),
        ("rate(2  hours)", "invalid_rate"),
        ("rate(1.5 hours)", "invalid_rate"),
        ("rate(٢ hours)", "invalid_rate"),
        ("rate()", "invalid_rate"),
        ("rate(2 hours", "invalid_rate"),
        ("Rate(2 hours)", "invalid_rate"),
        ("rate (2 hours)", "invalid_rate"),
        # zones
        ("every day at 9am XYZ", "invalid_zone"),
        ("every day at 25:00 Mars/Phobos", "invalid_zone"),
        ("cron(0 9 * * ? *) XYZ", "invalid_zone"),
        ("cron(bad) no XYZ", "invalid_zone"),
        ("cron(0 9 * * ? *) nowhere", "unparsed"),
        ("cron(0 9 * * ? *) at noon", "unparsed"),
    ],
)
def test_what_is_no_recurring_time_is_refused_with_its_code(text, reject):
    assert reject == code(text)


CRONS = [
    "cron(0 9 * * ? *)",
    "cron(0 9 ? * 2-6 *)",
    "cron(0 9 ? * MON-FRI *)",
    "cron(0 9 ? * mon,Wed,FRI *)",
    "cron(*/15 * * * ? *)",
    "cron(0/15 8-18/2 * * ? *)",
    "cron(0 9 L * ? *)",
    "cron(0 9 LW * ? *)",
    "cron(0 9 15W * ? *)",
    "cron(0 9 ? * L *)",
    "cron(0 9 ? * 6L *)",
    "cron(0 9 ? * FRIL *)",
    "cron(0 9 ? * 2#1 *)",
    "cron(0 9 ? * MON#5 *)",
    "cron(0 9 1,15 JAN-JUN ? 2026-2030)",
    "cron(0 9 1 1 ? 2199)",
    "cron(0 9 1 1 ? 1970)",
    "cron(00 09 01 01 ? *)",
    "cron(0  9  *  *  ?  *)",
    "cron(0 0 31 2 ? *)",
    "cron(0 9 ? * */2 */2)",
]


@pytest.mark.parametrize("text", CRONS)
def test_a_cron_expression_is_kept_byte_for_byte(text):
    assert text == parse(f"  {text} ", NOW).expression


@pytest.mark.parametrize(
    "text",
    [
        "cron()",
        "cron(0 9 * * ?)",
        "cron(0 9 * * ? * *)",
        "cron(0 9 * * * *)",
        "cron(0 9 ? * ? *)",
        "cron(60 9 * * ? *)",
        "cron(0 24 * * ? *)",
        "cron(0 9 0 * ? *)",
        "cron(0 9 32 * ? *)",
        "cron(0 9 * 0 ? *)",
        "cron(0 9 * 13 ? *)",
        "cron(0 9 * FOO ? *)",
        "cron(0 9 ? * 0 *)",
        "cron(0 9 ? * 8 *)",
        "cron(0 9 ? * FOO *)",
        "cron(0 9 ? * 2#6 *)",
        "cron(0 9 ? * 2#0 *)",
        "cron(0 9 ? * 2#1,3#2 *)",
        "cron(0 9 ? * 8L *)",
        "cron(0 9 1,L * ? *)",
        "cron(0 9 32W * ? *)",
        "cron(0 9 W * ? *)",
        "cron(0 9 * * ? 1969)",
        "cron(0 9 * * ? 2200)",
        "cron(0 9 ? * ? 2026)",
        "cron(? 9 * * ? *)",
        "cron(0 9 * ? ? *)",
        "cron(-5 9 * * ? *)",
        "cron(1-2-3 9 * * ? *)",
        "cron(, 9 * * ? *)",
        "cron(1, 9 * * ? *)",
        "cron(*/0 9 * * ? *)",
        "cron(*/ 9 * * ? *)",
        "cron(*/60 9 * * ? *)",
        "cron(5/5/5 9 * * ? *)",
        "cron(30-10 9 * * ? *)",
        "cron(0 9 ? * FRI-MON *)",
        "cron(0 9 * * ? *",
        "cron(0 ٩ * * ? *)",
        "cron(0 9\n* * ? *)",
        "CRON(0 9 * * ? *)",
        "cron (0 9 * * ? *)",
        "cron(99999999999999999999 9 * * ? *)",
    ],
)
def test_what_is_no_cron_expression_is_refused(text):
    assert "invalid_cron" == code(text)


@pytest.mark.parametrize(
    ("text", "better"),
    [
        ("0 9 * * 1-5", "cron(0 9 ? * 2-6 *)"),
        ("0 9 * * MON-FRI", "cron(0 9 ? * 2-6 *)"),
        ("0 9 * * *", "cron(0 9 * * ? *)"),
        ("0 9 * * 0", "cron(0 9 ? * 1 *)"),
        ("0 9 * * 7", "cron(0 9 ? * 1 *)"),
        ("0 9 * * 5-7", "cron(0 9 ? * 1,6,7 *)"),
        ("0 9 * * 1,3", "cron(0 9 ? * 2,4 *)"),
        ("0 9 * * */2", "cron(0 9 ? * 1,3,5,7 *)"),
        ("0 9 * * 2/2", "cron(0 9 ? * 3,5,7 *)"),
        ("*/15 * 1 * *", "cron(*/15 * 1 * ? *)"),
        ("0 9 * * ? *", "cron(0 9 * * ? *)"),
        ("0 9 * * MON", "cron(0 9 ? * 2 *)"),
        ("0 9 1 * MON", ""),
        ("0 9 * * 5-1", ""),
        ("0 9 * * 1#2", ""),
        ("61 9 * * 1", ""),
    ],
)
def test_a_crontabs_line_is_refused_with_its_translation(text, better):
    for written in (text, f"{text} Europe/Berlin"):
        with pytest.raises(TimeExpressionError) as caught:
            parse(written, NOW)

        assert "invalid_cron" == caught.value.code
        suggested = caught.value.hint.removeprefix("write ")
        if better:
            assert better == suggested
            assert better == parse(suggested, NOW).expression
        else:
            assert suggested.startswith("cron(minutes")


@pytest.mark.parametrize("fields", ["0 9 * * 1-5", "0 9 * * *"])
def test_five_fields_in_parentheses_are_translated_too(fields):
    with pytest.raises(TimeExpressionError) as caught:
        parse(f"cron({fields})", NOW)

    assert caught.value.hint.startswith("write cron(0 9 ")


@pytest.mark.parametrize(
    ("text", "reject"),
    [
        ("at(2026-04-10T12:00:00)", "past"),
        ("at(2026-04-11T24:00:00)", "invalid_time"),
        ("at(2026-02-30T09:00:00)", "invalid_date"),
        ("at(2026-04-11T09:00)", "unparsed"),
        ("at(2026-04-11 09:00:00)", "unparsed"),
        ("at(tomorrow)", "unparsed"),
        ("at()", "unparsed"),
        ("at(", "unparsed"),
        ("AT(2026-04-11T09:00:00)", "unparsed"),
        ("at(2026-04-11T09:00:00) Europe/Berlin", "unsupported"),
    ],
)
def test_a_raw_at_that_cannot_be_is_refused(text, reject):
    assert reject == code(text)


def test_a_raw_at_is_read_in_utc_whatever_the_zone():
    schedule = parse("at(2026-04-11T09:00:00)", NOW, "Asia/Tokyo")

    assert ("at(2026-04-11T09:00:00)", "UTC", False) == (
        schedule.expression,
        schedule.timezone,
        schedule.recurring,
    )
    assert schedule == parse("at(2026-04-11T09:00:00)", NOW, "Asia/Tokyo")


@pytest.mark.parametrize(
    ("text", "human"),
    [
        ("every 2 hours", "every 2 hours"),
        ("hourly", "every hour"),
        ("every hour at :05", "every hour at :05 (UTC)"),
        ("every day at 9am and 5pm", "every day at 09:00 and 17:00 (UTC)"),
        ("every weekday at 9am", "Monday to Friday at 09:00 (UTC)"),
        ("every sun, mon and wed at 9am", "every Monday, Wednesday and Sunday at 09:00 (UTC)"),
        ("every month on the 22nd at 9am", "on the 22nd of every month at 09:00 (UTC)"),
        ("monthly on the 11th at 9am", "on the 11th of every month at 09:00 (UTC)"),
        ("last day of every month at 9am", "on the last day of every month at 09:00 (UTC)"),
        ("second tuesday of every month at 9am", "on the second Tuesday of every month at 09:00 (UTC)"),
        ("last friday of every month at 9am", "on the last Friday of every month at 09:00 (UTC)"),
        ("every year on april 12 at 9am", "every year on 12 April at 09:00 (UTC)"),
    ],
)
def test_people_are_told_what_was_understood(text, human):
    assert human == parse(text, NOW).human


@pytest.mark.parametrize(
    ("text", "tz", "remark"),
    [
        ("monthly on the 31st at 9am", "UTC", "months without a 31st are skipped"),
        ("every year on february 29 at 9am", "UTC", "only leap years"),
        ("every day at 2:30am", "America/New_York", "skipped on 2027-03-14"),
        ("every sunday at 2:30am", "Europe/Berlin", "skipped on 2027-03-28"),
        ("cron(0 0 31 2 ? *)", "UTC", "never fires"),
        ("cron(0 9 1 1 ? 2020)", "UTC", "never fires"),
    ],
)
def test_what_may_surprise_is_noted(text, tz, remark):
    notes = parse(text, NOW, tz).notes

    assert any(remark in note for note in notes), notes


@pytest.mark.parametrize(
    ("text", "tz"),
    [
        ("every day at 9am", "America/New_York"),
        ("every monday at 2:30am", "America/New_York"),
        ("every day at 2:30am", "UTC"),
        ("every hour at :30", "America/New_York"),
        ("monthly on the 28th at 9am", "UTC"),
    ],
)
def test_what_surprises_nobody_is_not_noted(text, tz):
    assert () == parse(text, NOW, tz).notes
