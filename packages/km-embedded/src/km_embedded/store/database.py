"""The connection, its settings, transactions and the schema's version."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, Any

from km_core.errors import ControlError
from km_embedded.store.schema import APPLICATION_ID, MIGRATIONS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path


class Database:
    """
    kmd's database; one connection, used from one thread.

    Commits reach the operating system before they are answered, so killing kmd loses nothing.  They are
    brought to the disk by `sync`, called every second: a loss of power can take back the last second,
    and a call whose reservation is older than that stays counted, because a reservation that is never
    settled is settled at its full amount.

    Raises:
        ControlError: the file is damaged, is another program's or was written by a newer km.
    """

    def __init__(self, path: Path, *, migrations: Sequence[Sequence[str]] = MIGRATIONS) -> None:
        self.path = path
        self._dirty = False
        self._depth = 0
        self._wal: int | None = None
        try:
            self._connection = sqlite3.connect(path, isolation_level=None, cached_statements=256)
        except sqlite3.Error as error:
            raise self._error("the database cannot be opened", str(error)) from error
        try:
            self._connection.row_factory = sqlite3.Row
            self._configure()
            self._migrate(migrations)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            raise self._error("the database cannot be used", str(error)) from error
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Close the connection; SQLite writes the log into the file."""
        self._connection.close()
        if self._wal is not None:
            os.close(self._wal)
            self._wal = None

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """
        Run the block in one write transaction; an exception takes everything back.

        Raises:
            ControlError: the database cannot be written (locked, full, damaged).
        """
        if self._depth:
            raise RuntimeError("transactions do not nest")
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._depth = 1
            try:
                yield
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")
            self._dirty = True
        except sqlite3.OperationalError as error:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise self._error("the database cannot be written", str(error)) from error
        finally:
            self._depth = 0

    def run(self, sql: str, parameters: Sequence[Any] = ()) -> int:
        """Execute a change inside a transaction; returns the number of rows it touched."""
        if not self._depth:
            raise RuntimeError("changes need a transaction")
        return self._connection.execute(sql, parameters).rowcount

    def one(self, sql: str, parameters: Sequence[Any] = ()) -> sqlite3.Row | None:
        """Return the first row of a query or None."""
        row: sqlite3.Row | None = self._connection.execute(sql, parameters).fetchone()
        return row

    def all(self, sql: str, parameters: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Return every row of a query."""
        return self._connection.execute(sql, parameters).fetchall()

    def pending_sync(self) -> int | None:
        """Return a descriptor to ``fdatasync`` when commits have not reached the disk, else None."""
        if not self._dirty:
            return None
        if self._wal is None:
            # Never open the database file itself a second time: closing such a descriptor would drop
            # SQLite's POSIX locks on it (sqlite.org, "How To Corrupt", section 2.2).
            try:
                self._wal = os.open(f"{self.path}-wal", os.O_RDWR | os.O_CLOEXEC)
            except OSError:
                return None
        self._dirty = False
        return self._wal

    def _configure(self) -> None:
        for pragma in (
            "busy_timeout = 5000",
            "journal_mode = WAL",
            "synchronous = NORMAL",
            "foreign_keys = ON",
            "trusted_schema = OFF",
            "secure_delete = ON",
            # Less often than the default: a checkpoint writes and syncs the file while callers wait.
            "wal_autocheckpoint = 4000",
        ):
            self._connection.execute(f"PRAGMA {pragma}")
        os.chmod(self.path, 0o600)  # noqa: PTH101 - a str or a Path, as sqlite3 takes it

    def _migrate(self, migrations: Sequence[Sequence[str]]) -> None:
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        owner = int(self._connection.execute("PRAGMA application_id").fetchone()[0])
        if version > len(migrations):
            raise self._error(
                f"the database has schema {version}, this km knows {len(migrations)}",
                "it was written by a newer km",
                "upgrade km, or use another KM_HOME",
            )
        if (version or self._tables()) and owner != APPLICATION_ID:
            raise self._error("the file is not a database of km", f"application id {owner:#x}")
        found = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if found != "ok":
            raise self._error("the database is damaged", str(found), "restore KM_HOME from a backup")
        for number, statements in enumerate(migrations[version:], start=version + 1):
            with self.transaction():
                for statement in statements:
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {number}")

    def _tables(self) -> int:
        return int(self._connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])

    def _error(self, what: str, why: str, hint: str = "") -> ControlError:
        return ControlError(what, where=str(self.path), why=why, hint=hint or "km doctor looks into it")
