"""When a sandbox has to end, and when its owner is warned (spec/control-plane.md section 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.types import SandboxState, deadline

if TYPE_CHECKING:
    from km_core.types import SandboxRecord

WARN_BEFORE_S = (900, 300)
"""Seconds before the end at which the owner is warned, longest first."""
IDLE_GRACE_S = 60.0
"""How long an observer watches before silence counts as idleness: gates report within it."""

ENDING = frozenset({SandboxState.DESTROYING})
AT_REST = frozenset({SandboxState.STOPPED, SandboxState.FAILED})


@frozen
class Expiry:
    """
    A sandbox's end is due.

    Attributes:
        cause: ``ttl``, ``max_lifetime`` or ``idle``; what ``km _internal expire --cause`` takes.
        act: whether the teardown policy must be carried out; False when the policy leaves the sandbox
            as it is and only its owner is told.
    """

    cause: str
    act: bool = True


def expiry(record: SandboxRecord, now: float, *, observed_since: float) -> Expiry | None:
    """
    Decide whether *record* has to end at *now*.

    Args:
        record: the sandbox.
        now: Unix seconds.
        observed_since: since when the caller has been taking activity reports; before that, silence
            means that nobody listened, not that the sandbox was idle.

    Returns:
        What is due, or None.  The TTL comes before the idle timeout.
    """
    if record.state in ENDING:
        return None
    cause = _cause(record, now, observed_since)
    if cause is None:
        return None
    if record.teardown == "stop" and record.state in AT_REST:
        return None
    # A retained sandbox past its TTL is recorded once (its TTL is taken off); the other causes stay
    # true for ever and have no act that would end them.
    return Expiry(cause, act=record.teardown != "retain" or cause == "ttl")


def _cause(record: SandboxRecord, now: float, observed_since: float) -> str | None:
    if 0 < record.max_expires_at <= now:
        return "max_lifetime"
    if 0 < record.expires_at <= now:
        return "ttl"
    if record.idle_timeout_s > 0 and record.state is SandboxState.RUNNING:
        grace = min(IDLE_GRACE_S, float(record.idle_timeout_s))
        last = max(record.last_activity_at, record.created_at)
        if now - observed_since >= grace and now - last >= record.idle_timeout_s:
            return "idle"
    return None


def due_warning(record: SandboxRecord, now: float) -> int:
    """
    Return the smallest of `WARN_BEFORE_S` that has been reached, 0 for none.

    A sandbox whose whole life is shorter than a warning's time is not warned that early.
    """
    ends = deadline(record)
    if ends <= now or record.state is not SandboxState.RUNNING:
        return 0
    left = ends - now
    whole = ends - record.created_at
    reached = [seconds for seconds in WARN_BEFORE_S if left <= seconds < whole]
    return min(reached, default=0)


def suspended(record: SandboxRecord, now: float) -> tuple[float, float]:
    """
    Return ``(expires_at, ttl_remaining_s)`` of a sandbox that stops or pauses at *now*.

    Its TTL stands still meanwhile.  One that has already passed stays as it is, so that the sandbox
    cannot come back without a new one.
    """
    if record.expires_at <= now:
        return record.expires_at, record.ttl_remaining_s
    return 0.0, record.expires_at - now


def rearmed(record: SandboxRecord, now: float) -> tuple[float, float]:
    """
    Return ``(expires_at, ttl_remaining_s)`` of a sandbox that runs again at *now*.

    What was left of its TTL counts from now, never past its longest life.
    """
    if record.ttl_remaining_s <= 0:
        return record.expires_at, 0.0
    ends = now + record.ttl_remaining_s
    return (min(ends, record.max_expires_at) if record.max_expires_at > 0 else ends), 0.0
