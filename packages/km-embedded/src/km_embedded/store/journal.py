"""The steps of operations under way, written before each acts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from km_embedded.store.database import Database


class JournalStore:
    """Steps by sandbox; removed with the sandbox's record."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def begin(self, sandbox_id: str, step: str, index: int) -> None:
        """Note that a step is about to act; a step that is begun again is begun anew."""
        self._db.run(
            "INSERT INTO journal VALUES (?, ?, ?, 'begun') ON CONFLICT (sandbox_id, step)"
            " DO UPDATE SET position = excluded.position, state = 'begun'",
            (sandbox_id, step, index),
        )

    def done(self, sandbox_id: str, step: str) -> bool:
        """Note that a step has acted; False when it was never begun."""
        sql = "UPDATE journal SET state = 'done' WHERE sandbox_id = ? AND step = ?"
        return self._db.run(sql, (sandbox_id, step)) == 1

    def undone(self, sandbox_id: str, step: str) -> None:
        """Forget a step that was undone."""
        self._db.run("DELETE FROM journal WHERE sandbox_id = ? AND step = ?", (sandbox_id, step))

    def steps(self, sandbox_id: str) -> list[dict[str, Any]]:
        """Return ``{step, index, state}`` in the order the steps act."""
        rows = self._db.all(
            "SELECT step, position, state FROM journal WHERE sandbox_id = ? ORDER BY position, rowid",
            (sandbox_id,),
        )
        return [{"step": row["step"], "index": row["position"], "state": row["state"]} for row in rows]
