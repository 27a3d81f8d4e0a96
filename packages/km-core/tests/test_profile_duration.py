"""Durations: one arithmetic, two grammars."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.compile.duration import (
    MAX_DURATION_S,
    file_duration,
    parse_command_duration,
    parse_command_ttl,
    parse_duration,
    parse_ttl,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("30m", 1800), ("4h", 14400), ("1d", 86400), ("3650d", MAX_DURATION_S), ("007m", 420)],
)
def test_files_take_one_number_and_one_unit(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0",
        "0s",
        "00h",
        "1",
        "h",
        "1h30m",
        "1 h",
        "1h ",
        "1h\n",
        "+1h",
        "-1h",
        "1.5h",
        "1H",
        "1w",
        "１h",
        "٣h",
        "3651d",
        "9" * 5000 + "s",
    ],
)
def test_files_take_nothing_else(text):
    with pytest.raises(ValueError, match=r"."):
        parse_duration(text)


def test_a_time_to_live_of_0_never_ends():
    assert parse_ttl("0") is None
    assert parse_ttl("2h") == 7200
    assert parse_command_ttl(" 0 ") is None
    assert parse_command_ttl("2hrs") == 7200


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("16hr", 57600),
        ("2hrs", 7200),
        ("30min", 1800),
        ("90sec", 90),
        ("1h30m", 5400),
        ("1h 30m", 5400),
        ("1d2h3m4s", 93784),
        ("2 days", 172800),
        ("1 hour, 5 minutes", 3900),
        ("4H", 14400),
        ("5m", 300),
    ],
)
def test_the_command_line_also_takes_compounds_and_words(text, seconds):
    assert parse_command_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "0",
        "0h",
        "30m1h",
        "1h1h",
        "h",
        "1x",
        "1 month",
        "4000d",
        "1h foo",
        "-1h",
        "1.5h",
        "٣h",
        "1h30",
    ],
)
def test_the_command_line_takes_nothing_else(text):
    with pytest.raises(ValueError, match=r"."):
        parse_command_duration(text)


@given(st.integers(1, MAX_DURATION_S))
def test_a_duration_written_for_a_file_reads_as_itself(seconds):
    assert parse_duration(file_duration(seconds)) == seconds
    assert parse_command_duration(file_duration(seconds)) == seconds


@given(st.text(max_size=12))
def test_no_text_brings_another_exception_than_value_error(text):
    for parse in (parse_duration, parse_ttl, parse_command_duration, parse_command_ttl):
        try:
            parse(text)
        except ValueError:
            continue
