"""Leases: a gate may let traffic pass for a minute at a time (DESIGN section 5)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.errors import GuardError
from km_core.types import SandboxState, deadline

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.plan import Grant
    from km_core.types import SandboxRecord

VALID_S = 60
SUPERVISOR = "pod"
_ALWAYS = frozenset({SandboxState.CREATING, SandboxState.RUNNING, SandboxState.PAUSED})
_STARTING = frozenset({SandboxState.STOPPED, SandboxState.FROZEN, SandboxState.FAILED})


class Leases:
    """Gives leases and remembers, while kmd lives, when each holder last asked."""

    def __init__(self) -> None:
        self._asked: dict[tuple[str, str], float] = {}

    def renew(
        self,
        record: SandboxRecord,
        holder: str,
        *,
        fresh_token: bool,
        now: float,
        grants: Sequence[Grant] = (),
    ) -> dict[str, Any]:
        """
        Return a lease.

        Args:
            record: the sandbox.
            holder: who asks: ``gate``, or ``pod``, whose lease is a sign of life and lets no traffic
                pass, so it is answered in every state.
            fresh_token: whether the asker's token is younger than the sandbox's state.  A stopped,
                frozen or failed sandbox that got a new token is being started again; one with an old
                token was left behind.
            now: Unix seconds.
            grants: what is open beside the plan; a gate lets nothing pass before it knows of it.

        Raises:
            GuardError: the sandbox may not have traffic.
        """
        if holder != SUPERVISOR and not _may_pass(record, fresh_token=fresh_token):
            raise GuardError(f"a {record.state} sandbox gets no lease", where=record.id)
        self._asked[record.id, holder] = now
        return {
            "valid_s": VALID_S,
            "deadline": deadline(record),
            "state": str(record.state),
            "policy_version": record.plan_digest,
            "grants": [grant.to_data() for grant in grants],
        }

    def require_spending(self, record: SandboxRecord, *, fresh_token: bool, now: float) -> None:
        """
        Raise unless a sandbox may spend money at *now*: it may have traffic, and its time has not passed.

        The gate sees to both by itself; this holds for one that does not.

        Raises:
            GuardError: it may not.
        """
        ends = deadline(record)
        if not _may_pass(record, fresh_token=fresh_token) or 0 < ends <= now:
            raise GuardError(
                "the sandbox may not spend",
                where=record.id,
                why=f"it is {record.state}" if not 0 < ends <= now else "its time to live has passed",
            )

    def asked_at(self, sandbox_id: str, holder: str) -> float:
        """Return when *holder* last got a lease, 0 for never."""
        return self._asked.get((sandbox_id, holder), 0.0)

    def forget(self, sandbox_id: str) -> None:
        """Forget a sandbox's holders."""
        for key in [key for key in self._asked if key[0] == sandbox_id]:
            del self._asked[key]


def _may_pass(record: SandboxRecord, *, fresh_token: bool) -> bool:
    return record.state in _ALWAYS or (record.state in _STARTING and fresh_token)
