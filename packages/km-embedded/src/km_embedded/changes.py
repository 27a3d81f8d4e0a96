"""Changes of a record and what goes with them: suspended TTLs, events, checkpoints."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core.errors import GuardError
from km_core.handlers.lifetime import rearmed, suspended
from km_core.handlers.states import SUSPENDING, event_kind, may_change
from km_core.types import SandboxState
from km_embedded.liveness import boot_id
from km_embedded.store.records import changed

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.types import SandboxRecord
    from km_embedded.store import Records

_TELLING = frozenset({"expires_at", "max_expires_at", "idle_timeout_s", "teardown", "alias"})
_KEEPS_TTL = frozenset({"host restarted"})
"""Reasons of a stop that nobody asked for: the TTL runs on."""


def update(
    records: Records,
    emit: Callable[..., None],
    sandbox_id: str,
    changes: dict[str, Any],
    *,
    now: float,
    expect: dict[str, Any] | None = None,
) -> tuple[SandboxRecord, SandboxRecord]:
    """
    Change a record inside a transaction and record the event of it.

    Args:
        records: the table.
        emit: records an event in the same transaction.
        sandbox_id: which.
        changes: new values by field.
        now: Unix seconds.
        expect: values by field that must still hold.

    Returns:
        The record before and after.

    Raises:
        GuardError: *expect* does not hold, the change of state is not allowed, or the sandbox would
            live longer than its longest life.
    """
    old = records.get(sandbox_id)
    wire = old.to_wire()
    for name, value in (expect or {}).items():
        if name not in wire or wire[name] != value:
            raise GuardError(
                f"the sandbox has changed meanwhile: {name[:64]} is {str(wire.get(name))[:64]!r}",
                where=sandbox_id,
                hint="look at it with km status, then try again",
            )
    new = changed(old, changes)
    if not may_change(old.state, new.state):
        raise GuardError(f"a {old.state} sandbox cannot become {new.state}", where=sandbox_id)
    if "expires_at" in changes and 0 < new.max_expires_at < new.expires_at:
        raise GuardError(
            "the time to live would pass the sandbox's longest life",
            where=sandbox_id,
            why=f"{new.expires_at:.0f} is after {new.max_expires_at:.0f}",
        )
    new = _with_ttl(old, new, changes, now)
    stored = records.replace(old, new, now=now)
    if stored.state is not old.state:
        detail = {"from": str(old.state), "state": str(stored.state), "reason": stored.reason}
        emit(sandbox_id, event_kind(old.state, stored.state), detail)
    else:
        shown = {name: getattr(stored, name) for name in changes if name in _TELLING}
        if shown:
            emit(sandbox_id, "changed", shown, tell=False)
    return old, stored


def _with_ttl(old: SandboxRecord, new: SandboxRecord, changes: dict[str, Any], now: float) -> SandboxRecord:
    """Let the TTL stand still while nothing runs, unless the change itself sets it."""
    if "expires_at" in changes:
        return evolve(new, ttl_remaining_s=0.0)
    if new.state is old.state:
        return new
    if new.state in SUSPENDING and old.state not in SUSPENDING and new.reason not in _KEEPS_TTL:
        expires_at, remaining = suspended(new, now)
    elif new.state is SandboxState.RUNNING:
        expires_at, remaining = rearmed(new, now)
    else:
        return new
    return evolve(new, expires_at=expires_at, ttl_remaining_s=remaining)


def reported(
    record: SandboxRecord, state: SandboxState, reason: str, resources: dict[str, Any], now: float
) -> dict[str, Any]:
    """Return the changes that a supervisor's report of *state* makes."""
    changes: dict[str, Any] = {"state": str(state), "resources": {**record.resources, **resources}}
    if reason or state is not record.state:
        changes["reason"] = reason
    if state is SandboxState.RUNNING:
        changes["boot_id"] = boot_id()
        if record.state is not state:
            changes["last_activity_at"] = now
    return changes
