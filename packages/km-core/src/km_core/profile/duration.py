"""Durations as profile files spell them: one integer, one unit (spec/profile.md section 3)."""

from __future__ import annotations

import re

UNIT_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
MAX_DURATION_S = 3650 * 86400
"""Longest duration a file may hold: 3650 days."""

# ASCII digits only: \d and int() also take Arabic-Indic and full-width ones.
DURATION_PATTERN = r"[0-9]+[smhd]"
SHORT_DURATION_PATTERN = r"[0-9]+[smh]"
TTL_PATTERN = r"(?:0|[0-9]+[smhd])"

_DURATION = re.compile(DURATION_PATTERN)
_MAX_DIGITS = 12


def parse_duration(text: str) -> int:
    """
    Return the seconds of ``30m``, ``4h``, ``2d``.

    Raises:
        ValueError: *text* is no such duration, is 0 or longer than 3650 days.
    """
    if _DURATION.fullmatch(text) is None:
        raise ValueError(_why_not(text))
    digits = text[:-1].lstrip("0")
    if not digits:
        raise ValueError("must be longer than 0")
    seconds = int(digits) * UNIT_SECONDS[text[-1]] if len(digits) <= _MAX_DIGITS else MAX_DURATION_S + 1
    if seconds > MAX_DURATION_S:
        raise ValueError("must be at most 3650 days")
    return seconds


def parse_ttl(text: str) -> int | None:
    """
    Return the seconds of a time to live; None for ``"0"``, which never expires.

    Raises:
        ValueError: as `parse_duration`.
    """
    return None if text == "0" else parse_duration(text)


def _why_not(text: str) -> str:
    if re.fullmatch(r"(?:[0-9]+[smhd]){2,}", text):
        return "must be one number and one unit: 4h30m is written 270m"
    if re.fullmatch(r"[0-9]+", text):
        return "lacks its unit: s, m, h or d"
    return "must be a whole number and one of the units s, m, h, d, such as 30m or 4h"
