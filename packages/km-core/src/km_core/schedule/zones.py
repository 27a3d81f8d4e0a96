"""Zones, by IANA name or by the few other words that people write, and wall times in them."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo
from functools import cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError, available_timezones

from attrs import frozen

from km_core.schedule.model import TimeExpressionError

_UTC_NAMES = frozenset({"utc", "gmt", "z", "etc/utc"})
_REGIONS = {
    word: region
    for region, words in {
        "America/New_York": ("et", "est", "edt"),
        "America/Chicago": ("ct", "cst", "cdt"),
        "America/Denver": ("mt", "mst", "mdt"),
        "America/Los_Angeles": ("pt", "pst", "pdt"),
    }.items()
    for word in words
}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_+-/")
# Entries of the database that name no place: a marker for "not set" and the host's own choices.
_NO_PLACE = frozenset({"factory", "localtime", "posixrules"})


@frozen
class Zone:
    """
    A time zone.

    Attributes:
        name: IANA name; ``UTC`` for UTC, GMT and Z.
        info: its rules.
    """

    name: str
    info: tzinfo

    def wall(self, moment: datetime) -> datetime:
        """Return the wall time of an aware *moment*, aware in this zone; in UTC at the calendar's very ends."""
        try:
            return moment.astimezone(self.info)
        except OverflowError:
            return moment.astimezone(UTC)

    def instant(self, wall: datetime) -> datetime | None:
        """
        Return the UTC moment of a naive wall time.

        Returns:
            The first moment where a clock change makes the time occur twice; None in the gap that a
            clock change leaves.

        Raises:
            OverflowError: the moment is outside the years 1 to 9999.
        """
        moment = wall.replace(tzinfo=self.info, fold=0).astimezone(UTC)
        return moment if moment.astimezone(self.info).replace(tzinfo=None, fold=0) == wall else None


UTC_ZONE = Zone("UTC", UTC)


def find_zone(name: str) -> Zone:
    """
    Return the zone that *name* stands for, in any case: an IANA name, ``UTC``, ``GMT``, ``Z``, ``EST``….

    Raises:
        TimeExpressionError: ``invalid_zone``.
    """
    zone = _find(name)
    if zone is not None:
        return zone
    if _load("Europe/London") is None:
        raise TimeExpressionError(
            "invalid_zone",
            f"the zone {name[:40]!r} cannot be looked up: this host has no time zone database",
            "install the tzdata package of the system or of Python, or use UTC",
        )
    near = _near(name)
    raise TimeExpressionError(
        "invalid_zone",
        f"{name[:40]!r} is no time zone that the zone database knows",
        f"did you mean {near}?" if near else "write an IANA name such as Europe/Berlin, or UTC",
    )


def zone_shaped(word: str) -> bool:
    """Say whether a last word is meant as a zone: a known name, ``Area/City``, or 2 to 5 capital letters."""
    if 2 <= len(word) <= 5 and word.isascii() and word.isalpha() and word.isupper():
        return True
    parts = word.split("/")
    if len(parts) > 1 and set(word) <= _NAME and all(part[:1].isalpha() for part in parts):
        return True
    return _find(word) is not None


def _find(name: str) -> Zone | None:
    lower = name.lower()
    if lower in _UTC_NAMES:
        return UTC_ZONE
    if lower in _REGIONS:
        name = _REGIONS[lower]
    # Letters and digits only: a name is a path below the database's directory.
    if not name or not set(name) <= _NAME or lower in _NO_PLACE or lower.startswith(("posix/", "right/")):
        return None
    info = _load(name)
    if info is None:
        canonical = _by_lower_name().get(lower)
        info = None if canonical is None else _load(canonical)
    return None if info is None else Zone(info.key, info)


def _load(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return None


@cache
def _by_lower_name() -> dict[str, str]:
    return {name.lower(): name for name in sorted(available_timezones())}


def _near(name: str) -> str:
    import difflib

    known = _by_lower_name()
    cities: dict[str, str] = {}
    for lower, full in known.items():
        cities.setdefault(lower.rpartition("/")[2], full)
    lower = name.lower()[:40]
    found = difflib.get_close_matches(lower, known, n=1, cutoff=0.8)
    if found:
        return known[found[0]]
    found = difflib.get_close_matches(lower.rpartition("/")[2], cities, n=1, cutoff=0.8)
    return cities[found[0]] if found else ""
