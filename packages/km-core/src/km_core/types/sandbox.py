"""The record of a sandbox, as the control plane keeps it."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

from attrs import asdict, field, frozen


class SandboxState(StrEnum):
    """
    Where a sandbox is in its life.

    ``frozen`` is the state after enforcement was lost: nothing runs until the operator acts.
    """

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"
    FROZEN = "frozen"
    FAILED = "failed"
    DESTROYING = "destroying"


@frozen
class SandboxRecord:
    """
    One sandbox.

    Times are Unix seconds (float, UTC); 0 means never.  `boot_id` is the kernel boot in which the
    sandbox was last started: after a reboot a sandbox that was running is stopped.  While a sandbox is
    paused or stopped its TTL stands still: `expires_at` is 0 and `ttl_remaining_s` what was left of it.
    """

    id: str
    profile: str
    substrate: str
    state: SandboxState
    created_at: float
    number: int = 0
    alias: str = ""
    region: str = ""
    expires_at: float = 0.0
    max_expires_at: float = 0.0
    idle_timeout_s: int = 0
    last_activity_at: float = 0.0
    teardown: str = "destroy"
    reason: str = ""
    boot_id: str = ""
    restarts: int = 0
    labels: dict[str, str] = field(factory=dict)
    limits_status: str = ""
    redirect: str = ""
    resources: dict[str, Any] = field(factory=dict)
    plan_digest: str = ""
    version: int = 0
    ttl_remaining_s: float = 0.0

    def to_wire(self) -> dict[str, Any]:
        """Return plain JSON data."""
        data = asdict(self)
        data["state"] = str(self.state)
        return data

    @classmethod
    def from_wire(cls, data: dict[str, Any]) -> SandboxRecord:
        """Rebuild from `to_wire`; unknown keys are ignored so that versions can mix."""
        known = {a: data[a] for a in cls.__annotations__ if a in data}
        known["state"] = SandboxState(known["state"])
        return cls(**known)


def deadline(record: SandboxRecord) -> float:
    """Return when everything of the sandbox is cut, in Unix seconds; 0 means never."""
    ends = [at for at in (record.expires_at, record.max_expires_at) if at > 0]
    return min(ends, default=0.0)


def policy_at_end(record: SandboxRecord, cause: str) -> str:
    """
    Return what is done with a sandbox whose end is due: ``destroy``, ``stop`` or ``retain``.

    That is its teardown policy, but a sandbox without a TTL was to stay until somebody ends it: when it
    is idle, it is stopped with its files and not destroyed (spec/profile.md section 4.2).
    """
    if cause == "idle" and record.teardown == "destroy" and record.expires_at == 0:
        return "stop"
    return record.teardown
