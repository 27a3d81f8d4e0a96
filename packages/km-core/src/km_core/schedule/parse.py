"""The entry to the grammar: from a text to a schedule, or to the one reason why not."""

from __future__ import annotations

import difflib
from datetime import UTC, datetime

from km_core.schedule.model import MAX_TEXT, Schedule, TimeExpressionError
from km_core.schedule.moments import one_off_schedule
from km_core.schedule.occurrences import with_gap_notes
from km_core.schedule.oneoff import OneOff, read_one_off
from km_core.schedule.raw import is_bare_cron, is_raw, raw_schedule, refuse_bare_cron, split_zone
from km_core.schedule.recurring import Recurring, read_recurring
from km_core.schedule.rules import recurring_schedule
from km_core.schedule.tokens import Cursor, tokenize
from km_core.schedule.words import SPELLINGS
from km_core.schedule.zones import Zone, find_zone, zone_shaped

_EXAMPLES = "write it like 'tomorrow at 9am', 'in 2 hours', 'every monday at 9am' or 'cron(0 9 * * ? *)'"


def parse(text: str, now: datetime, tz: str = "UTC") -> Schedule:
    """
    Read a time expression.

    Args:
        text: what the operator wrote; all of it must be understood.
        now: the moment that it is read at; aware.
        tz: the zone of wall times, unless the text ends with one.

    Raises:
        TimeExpressionError: the text is no schedule.  Of several reasons the first in the order of
            `RejectCode` is given.
        ValueError: *now* is naive.
    """
    if now.tzinfo is None:
        raise ValueError("now must be an aware datetime")
    moment = now.astimezone(UTC)
    text = text.strip()
    if not text:
        raise TimeExpressionError("empty", "there is no time", _EXAMPLES)
    zone = find_zone(tz)
    if len(text) > MAX_TEXT:
        raise TimeExpressionError("unparsed", f"a time has at most {MAX_TEXT} characters", _EXAMPLES)
    if is_raw(text):
        expression, rest = split_zone(text)
        schedule = raw_schedule(
            expression, moment, _zone_after(rest) if rest else zone, zone_written=bool(rest)
        )
    else:
        schedule = _natural(text, moment, zone)
    return with_gap_notes(schedule, moment)


def _zone_after(rest: str) -> Zone:
    """Return the zone that the only word after an expression names."""
    words = rest.split()
    if zone_shaped(words[-1]):
        zone = find_zone(words[-1])
        if len(words) == 1:
            return zone
    raise TimeExpressionError("unparsed", f"{rest[:40]!r} after the expression is not understood", _EXAMPLES)


def _natural(text: str, moment: datetime, zone: Zone) -> Schedule:
    form, stopper = _read(text)
    zone_written = False
    if form is None and not is_bare_cron(text):
        head, word = _last_word(text)
        if zone_shaped(word):
            zone = find_zone(word)
            zone_written = True
            text = head.strip()
            form, stopper = _read(text)
    if form is None:
        if is_bare_cron(text):
            raise refuse_bare_cron(text)
        raise _unparsed(text, stopper)
    if isinstance(form, OneOff):
        return one_off_schedule(form, moment, zone)
    return recurring_schedule(form, zone, zone_written=zone_written)


def _read(text: str) -> tuple[OneOff | Recurring | None, str]:
    """Return the form of *text*; where it has none, the first word that no rule got past."""
    cursor = Cursor(tokenize(text))
    form: OneOff | Recurring | None = cursor.whole(read_recurring)
    if form is None:
        form = cursor.whole(read_one_off)
    stopper = cursor.stopper()
    return form, "" if stopper is None else stopper.text


def _last_word(text: str) -> tuple[str, str]:
    words = text.replace(",", " ").split()
    return text[: text.rfind(words[-1])] if words else "", words[-1] if words else ""


def _unparsed(text: str, stopper: str) -> TimeExpressionError:
    near = difflib.get_close_matches(stopper[:20], SPELLINGS, n=1, cutoff=0.75) if len(stopper) > 2 else []
    if near and near[0] != stopper:
        return TimeExpressionError(
            "unparsed", f"{stopper[:40]!r} is not understood", f"did you mean {near[0]}?"
        )
    if not text:
        return TimeExpressionError("unparsed", "a zone alone is no time", _EXAMPLES)
    where = f" from {stopper[:40]!r} on" if stopper else ""
    return TimeExpressionError("unparsed", f"{text[:80]!r} is not understood{where}", _EXAMPLES)
