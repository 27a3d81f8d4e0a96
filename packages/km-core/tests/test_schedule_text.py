"""Any text ends in a schedule or in the one error; every schedule is one that the scheduler takes."""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from km_core.schedule import TimeExpressionError, next_times, parse
from km_core.schedule.words import DAY_PARTS, MONTHS, NUMBERS, ORDINALS, PLURAL_WEEKDAYS, UNITS, WEEKDAYS

NOW = datetime(2026, 4, 10, 12, 0, 30, tzinfo=UTC)
CODES = {
    "empty",
    "invalid_zone",
    "unparsed",
    "ambiguous",
    "invalid_time",
    "invalid_date",
    "unsupported",
    "invalid_rate",
    "invalid_cron",
    "nonexistent_time",
    "past",
}
WORDS = """
at on in and the of to through from now ago this next last other every each day daily everyday week month year
weekly monthly yearly hourly weekday weekdays weekend weekends today tonight tomorrow yesterday after half an a
noon midnight am pm a.m. p.m. 9am 9:05 14:00 845am 9 15 25:00 0 1 2 31 2026 2026-04-12 2026-04-12T09:00Z
2028-02-29T09:00:00+05:30 5/6/2026 1st 2nd 31st :15 - , UTC ET Europe/Berlin XYZ cron( rate( at( ) ? * 1-5 2#1 L
hours) ) (
""".split()  # noqa: SIM905 - as one reads them
PIECES = [
    *WEEKDAYS,
    *PLURAL_WEEKDAYS,
    *MONTHS,
    *NUMBERS,
    *UNITS,
    *DAY_PARTS,
    *ORDINALS,
    *WORDS,
]
texts = st.one_of(
    st.text(max_size=300),
    st.text("0123456789:-/+amptzT ,.()*?#LW", max_size=40),
    st.lists(st.sampled_from(PIECES), max_size=9).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=9).map("".join),
)
moments = st.integers(946_684_800, 4_102_444_800).map(lambda seconds: datetime.fromtimestamp(seconds, UTC))
zones = st.one_of(
    st.sampled_from(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]), st.text(max_size=20)
)


@settings(max_examples=1500, deadline=None)
@given(texts, zones)
@example("in 9999 months", "UTC")
@example("in 95000 months", "Pacific/Apia")
@example("9999-12-31T23:59", "America/New_York")
@example("at(9999-12-31T23:59:59)", "Europe/Berlin")
@example("at(0001-01-01T00:00:00)", "America/New_York")
@example("0001-01-01T00:00", "Asia/Tokyo")
@example("0001-01-01T00:00+23:59", "UTC")
@example("in 2912000 days", "Pacific/Kiritimati")
@example("rate(" + "9" * 200 + " days)", "UTC")
@example("every " + "9" * 200 + " weeks", "UTC")
def test_any_text_ends_in_a_schedule_or_in_the_one_error(text, tz):
    try:
        schedule = parse(text, NOW, tz)
    except TimeExpressionError as error:
        assert error.code in CODES
        assert error.message.isprintable()
        return

    times = [moment.astimezone(UTC) for moment in next_times(schedule, NOW, 3)]
    assert times == sorted(set(times))
    assert all(moment > NOW for moment in times)
    assert len(times) == 1 if not schedule.recurring else len(times) <= 3
    assert schedule.human.isprintable()
    # What was made is a text of the grammar itself, and means the same.
    again = parse(schedule.expression, NOW, schedule.timezone)
    assert (again.expression, again.timezone, again.recurring) == (
        schedule.expression,
        schedule.timezone,
        schedule.recurring,
    )


words = st.sampled_from(
    [
        "tomorrow at 9am",
        "in 2 hours and 30 minutes",
        "every mon, wed and fri at 9am",
        "next tuesday at 2pm",
        "12th of april 2027 at 9:05 pm",
        "every month on the 5th at 9am",
        "last friday of every month at 5pm",
        "every day at 9am and 5pm",
        "tonight at 11pm",
    ]
)


@settings(max_examples=200, deadline=None)
@given(words, st.data())
def test_blanks_case_and_commas_between_words_change_nothing(text, data):
    parts = text.replace(",", "").split()
    separators = data.draw(
        st.lists(
            st.sampled_from([" ", "  ", ", ", "\t", " ,"]), min_size=len(parts) - 1, max_size=len(parts) - 1
        )
    )
    cased = [data.draw(st.sampled_from([part, part.upper(), part.title()])) for part in parts]
    written = "".join(part + separator for part, separator in zip(cased, [*separators, ""], strict=True))

    assert parse(text, NOW) == parse(written, NOW)


@settings(max_examples=200, deadline=None)
@given(words, st.text("abcdefghijklmnopqrstuvwxyz", min_size=6, max_size=12))
def test_a_word_too_many_is_never_ignored(text, word):
    if word in {*WEEKDAYS, *MONTHS, *UNITS, "tomorrow"}:
        return
    for written in (f"{text} {word}", f"{word} {text}"):
        with pytest.raises(TimeExpressionError) as caught:
            parse(written, NOW)
        assert caught.value.code in {"unparsed", "ambiguous"}


@given(st.integers(0, 23), st.integers(0, 59), moments)
def test_a_time_alone_is_the_next_one(hour, minute, now):
    (due,) = next_times(parse(f"{hour}:{minute:02d}", now), now, 1)

    assert (hour, minute, 0) == (due.hour, due.minute, due.second)
    assert timedelta(0) < due - now <= timedelta(days=1)


@given(
    st.sampled_from(sorted(WEEKDAYS)),
    st.integers(0, 23),
    moments,
)
def test_a_weekday_is_the_next_one_and_next_is_never_today(name, hour, now):
    (due,) = next_times(parse(f"{name} at {hour}:00", now), now, 1)
    (later,) = next_times(parse(f"next {name} at {hour}:00", now), now, 1)

    assert WEEKDAYS[name] == due.isoweekday() % 7 + 1 == later.isoweekday() % 7 + 1
    assert timedelta(0) < due - now <= timedelta(days=7)
    assert 1 <= (later.date() - now.date()).days <= 7


@pytest.mark.parametrize(
    "text",
    [
        "and " * 64,
        "every mon " + "and mon " * 30,
        "every day at 9am " + "and 9am " * 30,
        "9" * 256,
        ":" * 256,
        "1-" * 128,
        "in " + "2h" * 126,
        "a.m." * 64,
        "cron(" + "1," * 120 + "1 * * * ? *)",
        "cron(" + "*/1," * 60 + "1 * * * ? *)",
        "the " * 64,
    ],
)
def test_hostile_texts_are_read_in_milliseconds(text):
    parse("9am", NOW)  # what is loaded once
    started = time.perf_counter()
    for _ in range(20):
        with suppress(TimeExpressionError):
            parse(text, NOW)

    assert (time.perf_counter() - started) / 20 < 0.05
