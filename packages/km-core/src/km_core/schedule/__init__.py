"""
When something is to happen: the time grammar of ``km at`` and what its expressions mean.

Pure functions of a text, a moment and a zone; the time zone database is all that is read.  The
expressions are those of EventBridge Scheduler (``at(…)``, ``rate(…)``, ``cron(…)``), which the local
scheduler follows too.  Source of the grammar: spec/cli.md section 9.2; users read docs/reference/time.md.
"""

from __future__ import annotations

from km_core.schedule.model import MAX_TEXT, Schedule, TimeExpressionError
from km_core.schedule.occurrences import next_times, occurrences
from km_core.schedule.parse import parse
from km_core.schedule.zones import Zone, find_zone

__all__ = [
    "MAX_TEXT",
    "Schedule",
    "TimeExpressionError",
    "Zone",
    "find_zone",
    "next_times",
    "occurrences",
    "parse",
]
