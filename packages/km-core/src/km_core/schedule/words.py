"""The words of the grammar and what they stand for; all lower case."""

from __future__ import annotations

DAY_NAMES = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
"""In EventBridge's order: its number of a day is the position here plus one (SUN=1 … SAT=7)."""

MONTH_NAMES = (
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
)

WEEKDAYS: dict[str, int] = {
    **{name.lower(): number for number, name in enumerate(DAY_NAMES, 1)},
    **{name[:3].lower(): number for number, name in enumerate(DAY_NAMES, 1)},
    "tues": 3,
    "thur": 5,
    "thurs": 5,
}
PLURAL_WEEKDAYS: dict[str, int] = {name.lower() + "s": number for number, name in enumerate(DAY_NAMES, 1)}

MONTHS: dict[str, int] = {
    **{name.lower(): number for number, name in enumerate(MONTH_NAMES, 1)},
    **{name[:3].lower(): number for number, name in enumerate(MONTH_NAMES, 1)},
    "sept": 9,
}

NUMBERS: dict[str, int] = {
    name: number
    for number, name in enumerate(
        (
            "one",
            "two",
            "three",
            "four",
            "five",
            "six",
            "seven",
            "eight",
            "nine",
            "ten",
            "eleven",
            "twelve",
        ),
        1,
    )
}

UNITS: dict[str, str] = {
    spelling: unit
    for unit, spellings in {
        "second": ("second", "seconds", "sec", "secs", "s"),
        "minute": ("minute", "minutes", "min", "mins", "m"),
        "hour": ("hour", "hours", "hr", "hrs", "h"),
        "day": ("day", "days", "d"),
        "week": ("week", "weeks", "wk", "wks", "w"),
        "month": ("month", "months"),
    }.items()
    for spelling in spellings
}

DAY_PARTS: dict[str, int] = {"morning": 8, "afternoon": 15, "evening": 18, "night": 23}
"""Part of a day to the hour it stands for."""

ORDINALS: dict[str, int] = {"first": 1, "second": 2, "third": 3, "fourth": 4}
ORDINAL_NAMES = ("", "first", "second", "third", "fourth")
ORDINAL_SUFFIXES = ("st", "nd", "rd", "th")

WORKING_DAYS = (2, 3, 4, 5, 6)
WEEKEND = (1, 7)

SPELLINGS: tuple[str, ...] = tuple(
    dict.fromkeys(
        (
            *(name.lower() for name in DAY_NAMES),
            *PLURAL_WEEKDAYS,
            *(name.lower() for name in MONTH_NAMES),
            *NUMBERS,
            *(word for word in UNITS if len(word) > 3),
            *DAY_PARTS,
            *ORDINALS,
            "after",
            "daily",
            "each",
            "every",
            "everyday",
            "hourly",
            "last",
            "midnight",
            "monthly",
            "next",
            "noon",
            "this",
            "today",
            "tomorrow",
            "tonight",
            "weekday",
            "weekdays",
            "weekend",
            "weekends",
            "weekly",
            "yesterday",
        )
    )
)
"""Words worth suggesting for a misspelt one."""


def listing(items: list[str]) -> str:
    """Return ``a``, ``a and b`` or ``a, b and c``."""
    if len(items) < 2:
        return "".join(items)
    return f"{', '.join(items[:-1])} and {items[-1]}"


def ordinal(number: int) -> str:
    """Return ``1st``, ``2nd``, ``11th``, ``23rd``."""
    suffix = "th" if number % 100 in {11, 12, 13} else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{suffix}"
