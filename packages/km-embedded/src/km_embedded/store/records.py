"""Sandbox records: made, found, changed under a condition, removed."""

from __future__ import annotations

import difflib
import json
import sqlite3
from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core.errors import GuardError, NotFoundError, UsageError
from km_core.types import SandboxRecord, SandboxState, is_alias, is_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_embedded.store.database import Database

_TEXT = frozenset(
    {"alias", "region", "reason", "boot_id", "limits_status", "redirect", "plan_digest", "profile"}
)
_TIME = frozenset({"expires_at", "max_expires_at", "last_activity_at", "ttl_remaining_s"})
_COUNT = frozenset({"idle_timeout_s", "restarts"})
_TEARDOWNS = frozenset({"destroy", "stop", "retain"})
MAX_TIME = 253402300799.0
"""Last second of the year 9999, so that every time can be printed."""
MAX_DATA = 256 * 1024
"""Longest record in bytes of JSON."""


class Records:
    """The table of sandboxes."""

    def __init__(self, db: Database) -> None:
        self._db = db

    def create(self, record: SandboxRecord, *, now: float, most: int) -> SandboxRecord:
        """
        Add a record and give it its number: never reused while any sandbox exists.

        Raises:
            GuardError: the id or alias is taken, or *most* (0 for no limit) sandboxes exist.
            UsageError: a field cannot be as it is.
        """
        if record.state is not SandboxState.CREATING:
            raise UsageError("a new sandbox is in state creating", where=record.id)
        if not is_sandbox_id(record.id):
            raise UsageError(f"{record.id[:64]!r} is not a sandbox id")
        checked(record)
        count = int(self._value("SELECT count(*) FROM sandboxes"))
        if most and count >= most:
            raise GuardError(
                f"sandbox limit reached ({count}/{most})",
                hint="destroy one, or raise max_sandboxes in config.yaml",
            )
        if self.find(record.id) is not None:
            raise GuardError("a sandbox with this id exists", where=record.id)
        self._free_alias(record.alias, record.id)
        last = int(self._value("SELECT coalesce(max(value), 0) FROM counters WHERE name = 'sandbox'"))
        number = last + 1 if count else 1
        self._db.run(
            "INSERT INTO counters VALUES ('sandbox', ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value",
            (number,),
        )
        stored = evolve(record, number=number, version=1)
        self._db.run(
            "INSERT INTO sandboxes VALUES (?, ?, ?, ?, 1, ?)",
            (stored.id, number, stored.alias, _dump(stored), now),
        )
        self._db.run("INSERT INTO budgets (sandbox_id) VALUES (?)", (stored.id,))
        return stored

    def find(self, sandbox_id: str) -> SandboxRecord | None:
        """Return a record or None."""
        row = self._db.one("SELECT data FROM sandboxes WHERE id = ?", (sandbox_id,))
        return None if row is None else SandboxRecord.from_wire(json.loads(row["data"]))

    def get(self, sandbox_id: str) -> SandboxRecord:
        """Return a record; raises `NotFoundError`."""
        record = self.find(sandbox_id)
        if record is None:
            raise NotFoundError(f"there is no sandbox {sandbox_id[:64]!r}", hint="km list shows all")
        return record

    def list(self) -> list[SandboxRecord]:
        """Return every record by number."""
        rows = self._db.all("SELECT data FROM sandboxes ORDER BY number")
        return [SandboxRecord.from_wire(json.loads(row["data"])) for row in rows]

    def count(self) -> int:
        """Return the number of records."""
        return int(self._value("SELECT count(*) FROM sandboxes"))

    def resolve(self, ref: str) -> SandboxRecord:
        """
        Find a record by id, alias, number (``3``, ``#3``) or unique id prefix of at least 4 characters.

        Raises:
            NotFoundError: nothing, or more than one, fits; the hint names what is near.
        """
        records = self.list()
        digits = ref.removeprefix("#")
        number = int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 10 else -1
        tests: tuple[Callable[[SandboxRecord], bool], ...] = (
            lambda record: record.id == ref,
            lambda record: record.alias == ref != "",
            lambda record: record.number == number,
            lambda record: len(ref) >= 4 and record.id.startswith(ref),
        )
        for test in tests:
            found = [record for record in records if test(record)]
            if len(found) == 1:
                return found[0]
            if found:
                raise NotFoundError(
                    f"{ref!r} is the beginning of more than one id",
                    hint="one of: " + ", ".join(record.id for record in found[:5]),
                )
        names = [name for record in records for name in (record.id, record.alias) if name]
        near = difflib.get_close_matches(ref, names, n=3)
        hint = f"did you mean {', '.join(near)}?" if near else "km list shows all"
        raise NotFoundError(f"there is no sandbox {ref[:64]!r}", hint=hint)

    def replace(self, old: SandboxRecord, new: SandboxRecord, *, now: float) -> SandboxRecord:
        """
        Store a changed record with the next version; raises as `create`.

        `state_version` follows the version when the state changes, so that a credential can be told to
        be older than the state.
        """
        checked(new)
        if new.alias != old.alias:
            self._free_alias(new.alias, new.id)
        stored = evolve(new, version=old.version + 1)
        try:
            self._db.run(
                "UPDATE sandboxes SET alias = ?, data = ?, updated_at = ?,"
                " state_version = CASE WHEN ? THEN ? ELSE state_version END WHERE id = ?",
                (
                    stored.alias,
                    _dump(stored),
                    now,
                    int(stored.state is not old.state),
                    stored.version,
                    stored.id,
                ),
            )
        except sqlite3.IntegrityError as error:  # pragma: no cover - _free_alias looked first
            raise GuardError("the alias is taken", where=new.id) from error
        return stored

    def touch(self, sandbox_id: str, at: float) -> None:
        """Move a sandbox's last activity forward to *at*; the record's version stays."""
        record = self.get(sandbox_id)
        if record.last_activity_at < at:
            # Not json_set: SQLite prints a number with 15 digits, which moves it.
            data = _dump(evolve(record, last_activity_at=at))
            self._db.run("UPDATE sandboxes SET data = ? WHERE id = ?", (data, sandbox_id))

    def state_version(self, sandbox_id: str) -> int:
        """Return the version at which the sandbox entered its state."""
        row = self._db.one("SELECT state_version FROM sandboxes WHERE id = ?", (sandbox_id,))
        return 0 if row is None else int(row["state_version"])

    def updated_at(self, sandbox_id: str) -> float:
        """Return when the record was last changed, in Unix seconds; 0 when there is none."""
        row = self._db.one("SELECT updated_at FROM sandboxes WHERE id = ?", (sandbox_id,))
        return 0.0 if row is None else float(row["updated_at"])

    def delete(self, sandbox_id: str) -> bool:
        """Remove a record and everything that belongs to it; False when there is none."""
        return self._db.run("DELETE FROM sandboxes WHERE id = ?", (sandbox_id,)) == 1

    def _free_alias(self, alias: str, sandbox_id: str) -> None:
        if not alias:
            return
        row = self._db.one(
            "SELECT id FROM sandboxes WHERE (alias = ? OR id = ?) AND id <> ?", (alias, alias, sandbox_id)
        )
        if row is not None:
            raise GuardError(f"the alias {alias!r} is taken by {row['id']}", hint="choose another alias")

    def _value(self, sql: str) -> Any:
        row = self._db.one(sql)
        return None if row is None else row[0]


def changed(record: SandboxRecord, changes: dict[str, Any]) -> SandboxRecord:
    """
    Return *record* with *changes* applied.

    Raises:
        UsageError: a field is unknown, may not change, or has a value of the wrong type.
    """
    values: dict[str, Any] = {}
    for name, value in changes.items():
        if name == "state":
            try:
                values[name] = SandboxState(value)
            except ValueError as error:
                raise UsageError(f"{str(value)[:64]!r} is not a state", where=record.id) from error
        elif name in _TEXT | _TIME | _COUNT or name in {"teardown", "labels", "resources"}:
            values[name] = value
        else:
            raise UsageError(f"the field {name[:64]!r} cannot be changed", where=record.id)
    result = evolve(record, **values)
    checked(result)
    return result


def checked(record: SandboxRecord) -> None:
    """Raise `UsageError` unless every field of *record* has a value of its type and range."""

    def require(holds: bool, name: str) -> None:
        if not holds:
            raise UsageError(f"the field {name!r} has no valid value", where=str(record.id)[:64])

    for name in sorted(_TEXT | {"substrate", "teardown"}):
        value = getattr(record, name)
        require(isinstance(value, str) and len(value) <= 4096, name)
    for name in sorted(_TIME | {"created_at"}):
        value = getattr(record, name)
        require(
            isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_TIME, name
        )
    for name in sorted(_COUNT):
        value = getattr(record, name)
        require(isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 2**31, name)
    require(record.teardown in _TEARDOWNS, "teardown")
    require(record.alias == "" or is_alias(record.alias), "alias")
    # What came over the wire may be anything, whatever the type says.
    labels: Any = record.labels
    resources: Any = record.resources
    require(isinstance(resources, dict), "resources")
    require(isinstance(labels, dict) and all(isinstance(value, str) for value in labels.values()), "labels")
    require(len(_dump(record)) <= MAX_DATA, "resources")


def _dump(record: SandboxRecord) -> str:
    return json.dumps(record.to_wire(), sort_keys=True, separators=(",", ":"))
