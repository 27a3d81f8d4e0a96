"""``km explain at`` and the operator's zone (DESIGN section 9, spec/cli.md section 9.2)."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from km_core.cli.main import main
from km_core.cli.timezone import resolve_timezone
from km_core.errors import UsageError
from km_core.schedule import TimeExpressionError

NOW = "2026-04-10T12:00:00Z"
REFERENCE = [
    ("10pm tomorrow", "at(2026-04-11T22:00:00)"),
    ("next tuesday at 2pm", "at(2026-04-14T14:00:00)"),
    ("in 30 minutes", "at(2026-04-10T12:30:00)"),
    ("tonight at 11pm", "at(2026-04-10T23:00:00)"),
    ("every thursday at 3pm", "cron(0 15 ? * 5 *)"),
    ("every monday at 8:30am", "cron(30 8 ? * 2 *)"),
    ("every 2 hours", "rate(2 hours)"),
    ("every wednesday at noon", "cron(0 12 ? * 4 *)"),
]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KM_HOME", str(tmp_path))
    monkeypatch.delenv("KM_TIMEZONE", raising=False)
    monkeypatch.delenv("KM_CONFIG_PATH", raising=False)
    return tmp_path


@pytest.fixture
def km(capsys):
    def run(*arguments):
        code = main(["explain", "at", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


@pytest.mark.parametrize(("text", "expression"), REFERENCE)
def test_the_reference_cases_hold(km, text, expression):
    code, out, _ = km(text, "--now", NOW, "--tz", "UTC", "--json")
    data = json.loads(out)
    times = [datetime.fromisoformat(item) for item in data["next"]]

    assert (0, expression, "UTC") == (code, data["expression"], data["timezone"])
    assert data["recurring"] is (not expression.startswith("at("))
    assert (5 if data["recurring"] else 1) == len(times)
    assert all(moment.tzinfo is not None for moment in times)


def test_a_refusal_is_one_document_and_exit_2(km):
    code, out, err = km("gibberish", "--now", NOW, "--tz", "UTC", "--json")

    assert (2, {"reject", "message"}) == (code, set(json.loads(out)))
    assert "unparsed" == json.loads(out)["reject"]
    assert "gibberish" in err


def test_people_get_a_sentence_and_a_hint(km):
    code, out, err = km("tomorrow", "--now", NOW, "--tz", "UTC")

    assert (2, "") == (code, out)
    assert "add a time" in err
    assert "[ambiguous]" in err


def test_people_see_local_time_and_utc(km):
    code, out, err = km(
        "every day at 2:30am", "--now", "2026-03-28T12:00:00Z", "--tz", "Europe/Berlin", "--count", "2"
    )

    assert (
        0,
        [
            "cron(30 2 * * ? *)  Europe/Berlin",
            "every day at 02:30 (Europe/Berlin)",
            "  2026-03-30 02:30:00+02:00  (2026-03-30 00:30:00 UTC)",
            "  2026-03-31 02:30:00+02:00  (2026-03-31 00:30:00 UTC)",
        ],
    ) == (code, out.splitlines())
    assert "skipped on 2026-03-29" in err


def test_next_times_carry_the_offset_of_their_zone(km):
    _, out, _ = km(
        "every day at 9am ET", "--now", "2026-10-31T20:00:00Z", "--tz", "UTC", "--count", "2", "--json"
    )
    data = json.loads(out)

    assert "America/New_York" == data["timezone"]
    assert ["2026-11-01T09:00:00-05:00", "2026-11-02T09:00:00-05:00"] == data["next"]


def test_a_schedule_that_never_fires_says_so(km):
    code, out, err = km("cron(0 0 31 2 ? *)", "--now", NOW, "--tz", "UTC")

    assert 0 == code
    assert "  never" in out
    assert "never fires" in err


def test_now_without_an_offset_is_in_the_zone(km):
    _, out, _ = km("in 30 minutes", "--now", "2026-04-10T14:00:00", "--tz", "Europe/Berlin", "--json")

    assert "at(2026-04-10T12:30:00)" == json.loads(out)["expression"]


@pytest.mark.parametrize(
    "now", ["yesterday", "", "2026-13-01", "0001-01-01T00:00:00+14:00", "9999-12-31", "1969-12-31"]
)
def test_a_now_that_is_none_is_a_usage_error(km, now):
    code, _, err = km("9am", "--now", now, "--tz", "UTC")

    assert 2 == code
    assert "--now" in err


def test_a_zone_that_is_none_is_a_rejection(km):
    code, out, _ = km("9am", "--now", NOW, "--tz", "Mars/Phobos", "--json")

    assert (2, "invalid_zone") == (code, json.loads(out)["reject"])


def test_a_terminal_gets_no_commands_from_the_text(km):
    _, _, err = km("\x1b[2J9am", "--now", NOW, "--tz", "UTC")

    assert "\x1b" not in err


def place(tmp_path, target):
    link = tmp_path / "localtime"
    link.symlink_to(target)
    return link


def test_the_zone_is_the_flags_then_the_configurations_then_tz_then_the_hosts(home):
    link = place(home, "/usr/share/zoneinfo/Asia/Tokyo")
    missing = home / "none"
    env = {"KM_HOME": str(home), "TZ": "America/Toronto"}

    def zone(given=None, **more):
        return resolve_timezone(given, {**env, **more}, localtime=link, name_file=missing)

    assert "UTC" == zone("utc")
    assert "America/Toronto" == zone()
    assert "Europe/Paris" == zone(KM_TIMEZONE="Europe/Paris")
    (home / "config.yaml").write_text("timezone: Europe/Berlin\n")
    assert "Europe/Berlin" == zone()
    (home / "config.yaml").write_text("timezone: Nowhere\n")
    with pytest.raises(TimeExpressionError, match="Nowhere"):
        zone()
    (home / "config.yaml").unlink()
    del env["TZ"]
    assert "Asia/Tokyo" == zone()


@pytest.mark.parametrize(
    ("value", "zone"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        (":/usr/share/zoneinfo/Europe/Berlin", "Europe/Berlin"),
        ("", "UTC"),
        (":", "UTC"),
        ("UTC", "UTC"),
        ("EST5EDT", "EST5EDT"),
    ],
)
def test_the_variable_tz_is_taken_as_the_c_library_takes_it(home, value, zone):
    assert zone == resolve_timezone(None, {"KM_HOME": str(home), "TZ": value})


@pytest.mark.parametrize("value", ["<+03>-3", "CET-1CEST,M3.5.0,M10.5.0/3", "Local", "/etc/passwd"])
def test_a_tz_without_an_iana_name_asks_for_one(home, value):
    with pytest.raises(TimeExpressionError) as caught:
        resolve_timezone(None, {"KM_HOME": str(home), "TZ": value})

    assert "invalid_zone" == caught.value.code
    assert isinstance(caught.value, UsageError)
    assert "--tz" in caught.value.hint


def test_the_hosts_zone_comes_from_its_link_its_name_file_or_is_utc(home):
    env = {"KM_HOME": str(home)}
    link = home / "link"
    names = home / "names"

    assert "UTC" == resolve_timezone(None, env, localtime=link, name_file=names)
    names.write_text("Europe/Vienna\n")
    assert "Europe/Vienna" == resolve_timezone(None, env, localtime=link, name_file=names)
    names.unlink()
    link.write_bytes(b"TZif2")
    with pytest.raises(TimeExpressionError, match="no IANA name"):
        resolve_timezone(None, env, localtime=link, name_file=names)
    link.unlink()
    (home / "middle").symlink_to("/usr/share/zoneinfo/posix/Europe/Berlin")
    link.symlink_to("middle")
    assert "Europe/Berlin" == resolve_timezone(None, env, localtime=link, name_file=names)


def test_the_default_is_now(km):
    _, out, _ = km("in 2 hours", "--json")
    due = datetime.fromisoformat(json.loads(out)["next"][0])

    assert 7100 < (due - datetime.now(UTC)).total_seconds() <= 7200
