"""What the control plane remembers: SQLite in WAL mode, written by kmd alone."""

from __future__ import annotations

from km_embedded.store.database import Database
from km_embedded.store.journal import JournalStore
from km_embedded.store.outbox import Outbox, OutboxRow
from km_embedded.store.records import Records

__all__ = ["Database", "JournalStore", "Outbox", "OutboxRow", "Records"]
