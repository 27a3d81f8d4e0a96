"""
Decisions that every control plane makes: pure functions of a record, a budget and the time.

kmd's tick and a cloud function call the same ones, so that a sandbox ends at the same moment whoever
looks after it.  Nothing here does I/O or reads a clock.
"""

from __future__ import annotations
