"""
Events on their way to the audit chain and to the notifiers.

An event is written in the transaction of the change it tells of, so that neither can exist without the
other; it leaves afterwards and is removed when both have it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from km_embedded.store.database import Database


@frozen
class OutboxRow:
    """One event; *done* names the notifiers that have had it."""

    number: int
    sandbox_id: str
    kind: str
    at: float
    detail: dict[str, Any]
    done: tuple[str, ...] = ()
    attempts: int = 0


class Outbox:
    """The table of events; *told* and *chained* say who has had one."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def add(self, sandbox_id: str, kind: str, at: float, detail: dict[str, Any], *, tell: bool) -> None:
        """Add an event in the running transaction; *tell* sends it to notifiers too."""
        self._db.run(
            "INSERT INTO outbox (sandbox_id, kind, at, detail, chained, told) VALUES (?, ?, ?, ?, 0, ?)",
            (sandbox_id, kind, at, json.dumps(detail, sort_keys=True), 0 if tell else 1),
        )

    def unchained(self) -> list[OutboxRow]:
        """Return events that are not in their audit chain yet, oldest first."""
        return [_row(row) for row in self._db.all("SELECT * FROM outbox WHERE chained = 0 ORDER BY number")]

    def chained(self, numbers: Sequence[int]) -> None:
        """Note that events are in their audit chain."""
        for number in numbers:
            self._db.run("UPDATE outbox SET chained = 1 WHERE number = ?", (number,))
        self._tidy()

    def untold(self, now: float, *, most: int = 64) -> list[OutboxRow]:
        """Return events whose delivery is due, oldest first."""
        rows = self._db.all(
            "SELECT * FROM outbox WHERE told = 0 AND next_at <= ? ORDER BY number LIMIT ?",
            (now, most),
        )
        return [_row(row) for row in rows]

    def told(self, number: int) -> None:
        """Note that every notifier has had an event, or that it is given up."""
        self._db.run("UPDATE outbox SET told = 1 WHERE number = ?", (number,))
        self._tidy()

    def retry(self, number: int, done: Sequence[str], next_at: float) -> None:
        """Note who has had an event and when the others are tried again."""
        self._db.run(
            "UPDATE outbox SET done = ?, attempts = attempts + 1, next_at = ? WHERE number = ?",
            (json.dumps(sorted(done)), next_at, number),
        )

    def _tidy(self) -> None:
        self._db.run("DELETE FROM outbox WHERE chained = 1 AND told = 1")


def _row(row: sqlite3.Row) -> OutboxRow:
    return OutboxRow(
        row["number"],
        row["sandbox_id"],
        row["kind"],
        row["at"],
        json.loads(row["detail"]),
        tuple(json.loads(row["done"])),
        row["attempts"],
    )
