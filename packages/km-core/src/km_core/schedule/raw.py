"""Expressions of the scheduler itself, taken as they are: ``cron(…)``, ``rate(…)``, ``at(…)``."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from km_core.schedule.cron import parse_cron, suggestion
from km_core.schedule.model import Schedule, TimeExpressionError
from km_core.schedule.moments import at_schedule, moment_text
from km_core.schedule.rules import rate_schedule, refuse_rate_zone

if TYPE_CHECKING:
    from km_core.schedule.zones import Zone

_UNITS = ("minute", "hour", "day")
_CRON_CHARACTERS = frozenset("0123456789*/-,?#")
_CRON_WORDS = frozenset(
    "JAN FEB MAR APR MAY JUN JUL AUG SEP OCT NOV DEC SUN MON TUE WED THU FRI SAT L W LW".split()  # noqa: SIM905 - as one reads them
)


def is_raw(text: str) -> bool:
    """Say whether *text* begins like one of the scheduler's expressions, well formed or not."""
    head, parenthesis, _ = text.partition("(")
    return bool(parenthesis) and head.strip().lower() in {"cron", "rate", "at"}


def split_zone(text: str) -> tuple[str, str]:
    """Return an expression and what follows its closing parenthesis."""
    end = text.rfind(")") + 1
    return (text[:end], text[end:].strip()) if end else (text, "")


def is_bare_cron(text: str) -> bool:
    """Say whether *text* is the five or six fields of a crontab's line."""
    fields = text.split()
    if len(fields) not in {5, 6} or not all(_is_cron_field(field) for field in fields):
        return False
    return not any(character.isalpha() for character in fields[0] + fields[1])


def refuse_bare_cron(text: str) -> TimeExpressionError:
    """Return the refusal of a crontab's line, with what to write instead."""
    return TimeExpressionError(
        "invalid_cron", f"{text!r} is a crontab's line, not an expression", suggestion(text.split())
    )


def raw_schedule(text: str, moment: datetime, zone: Zone, *, zone_written: bool) -> Schedule:
    """
    Return the schedule of an expression, which is kept byte for byte.

    Args:
        text: the expression without blanks around it.
        moment: now, UTC.
        zone: the zone that a cron expression is read in.
        zone_written: the text itself names the zone.

    Raises:
        TimeExpressionError: ``invalid_cron``, ``invalid_rate``, or what an ``at(…)`` lacks.
    """
    head = text.partition("(")[0].strip().lower()
    if head == "cron":
        parse_cron(text)
        return Schedule(text, zone.name, recurring=True, human=f"{text} ({zone.name})")
    if head == "rate":
        count, unit = parse_rate(text)
        if zone_written:
            refuse_rate_zone()
        return rate_schedule(text, count, unit)
    due = parse_at(text)
    if zone_written and zone.name != "UTC":
        raise TimeExpressionError(
            "unsupported", "at(…) is in UTC", f"leave {zone.name} out, or write the date and time alone"
        )
    if due <= moment:
        raise TimeExpressionError("past", f"{moment_text(due, zone)} is over")
    return at_schedule(due, zone)


def parse_rate(text: str) -> tuple[int, str]:
    """
    Return number and unit (singular) of ``rate(5 minutes)``.

    Raises:
        TimeExpressionError: ``invalid_rate``.
    """
    if text.startswith("rate(") and text.endswith(")"):
        number, _, unit = text[len("rate(") : -1].partition(" ")
        if number.isascii() and number.isdigit() and number[0] != "0":
            count = int(number)
            for single in _UNITS:
                if unit == (single if count == 1 else single + "s"):
                    return count, single
                if unit.strip().rstrip("s") == single:
                    right = f"rate({count} {single if count == 1 else single + 's'})"
                    raise TimeExpressionError("invalid_rate", f"{text[:60]!r} is no rate", f"write {right}")
    raise TimeExpressionError(
        "invalid_rate",
        f"{text[:60]!r} is no rate",
        "write rate(1 hour) or rate(5 minutes): a number from 1 and minutes, hours or days",
    )


def parse_at(text: str) -> datetime:
    """
    Return the UTC moment of ``at(YYYY-MM-DDTHH:MM:SS)``.

    Raises:
        TimeExpressionError: ``unparsed``, ``invalid_time``, ``invalid_date``.
    """
    inner = text[len("at(") : -1]
    shape = "".join("0" if "0" <= character <= "9" else character for character in inner)
    if not (text.startswith("at(") and text.endswith(")")) or shape != "0000-00-00T00:00:00":
        raise TimeExpressionError(
            "unparsed", f"{text[:60]!r} is no at expression", "write at(YYYY-MM-DDTHH:MM:SS), in UTC"
        )
    hour, minute, second = int(inner[11:13]), int(inner[14:16]), int(inner[17:])
    if hour > 23 or minute > 59 or second > 59:
        raise TimeExpressionError("invalid_time", f"no clock shows {inner[11:]}")
    try:
        return datetime(int(inner[:4]), int(inner[5:7]), int(inner[8:10]), hour, minute, second, tzinfo=UTC)
    except ValueError:
        raise TimeExpressionError("invalid_date", f"{inner[:10]} is not in the calendar") from None


def _is_cron_field(field: str) -> bool:
    word = ""
    for character in field.upper() + ",":
        if character in _CRON_CHARACTERS:
            # A number may be glued to a letter: 15W, 6L.
            if word and word not in _CRON_WORDS:
                return False
            word = ""
        else:
            word += character
    return True
