"""
Durations on the command line, and those of files (spec/profile.md sections 3 and 8).

One arithmetic, two grammars: files take one integer and one unit; the command line also takes
compounds (``1h30m``) and words (``16hr``, ``2hrs``, ``30min``, ``90 seconds``).
"""

from __future__ import annotations

import re

from km_core.profile.duration import MAX_DURATION_S, UNIT_SECONDS, parse_duration, parse_ttl

_WORD = re.compile(
    r"([0-9]{1,12}) ?(?:(d|days?)|(h|hrs?|hours?)|(m|mins?|minutes?)|(s|secs?|seconds?))(?![a-z])[ ,]*",
    re.IGNORECASE | re.ASCII,
)
_UNITS = ("d", "h", "m", "s")


def parse_command_duration(text: str) -> int:
    """
    Return the seconds of a duration as the command line takes it.

    Units go from long to short, each at most once: ``1d 2h``, ``1h30m``, ``16hr``, ``30min``.

    Raises:
        ValueError: *text* is no duration, is 0 or longer than 3650 days.
    """
    rest, total, last = text.strip(), 0, -1
    if not rest:
        raise ValueError("is empty")
    # "1h30m": a unit may be followed by a digit at once, which the word boundary above allows.
    while rest:
        match = _WORD.match(rest)
        if match is None:
            raise ValueError("is no duration: write 30m, 4h, 1h30m or 2 days")
        unit = next(index for index in range(4) if match[index + 2])
        if unit <= last:
            raise ValueError("has its units out of order or twice: write 1d2h30m")
        total += int(match[1]) * UNIT_SECONDS[_UNITS[unit]]
        last, rest = unit, rest[match.end() :]
    if total <= 0:
        raise ValueError("must be longer than 0")
    if total > MAX_DURATION_S:
        raise ValueError("must be at most 3650 days")
    return total


def parse_command_ttl(text: str) -> int | None:
    """
    Return the seconds of ``--ttl``; None for ``0``, which never expires.

    Raises:
        ValueError: as `parse_command_duration`.
    """
    return None if text.strip() == "0" else parse_command_duration(text)


def file_duration(seconds: int) -> str:
    """Return *seconds* in the grammar of files, in the longest unit that is exact (``5400`` is ``90m``)."""
    for unit in _UNITS:
        if seconds % UNIT_SECONDS[unit] == 0:
            return f"{seconds // UNIT_SECONDS[unit]}{unit}"
    raise ValueError("seconds must be a whole number")


__all__ = [
    "MAX_DURATION_S",
    "file_duration",
    "parse_command_duration",
    "parse_command_ttl",
    "parse_duration",
    "parse_ttl",
]
