"""Which changes of state are allowed, and what they are called (spec/control-plane.md section 4)."""

from __future__ import annotations

from km_core.types import SandboxState

REPORTABLE = frozenset({SandboxState.RUNNING, SandboxState.STOPPED, SandboxState.FROZEN, SandboxState.FAILED})
"""States that a sandbox's own supervisor may report."""
SUSPENDING = frozenset({SandboxState.PAUSED, SandboxState.STOPPED})
"""States in which the TTL stands still."""

_EVENTS = {
    SandboxState.PAUSED: "paused",
    SandboxState.STOPPED: "stopped",
    SandboxState.FROZEN: "enforcement_lost",
    SandboxState.FAILED: "failed",
    SandboxState.DESTROYING: "destroying",
    SandboxState.CREATING: "creating",
}


def may_report(current: SandboxState, reported: SandboxState) -> bool:
    """
    Say whether a supervisor's report changes the record.

    A create is finished by its creator and a destroy by its destroyer: what the supervisor sees
    meanwhile is noted without changing the state.
    """
    return reported in REPORTABLE and current not in {SandboxState.CREATING, SandboxState.DESTROYING}


def may_change(current: SandboxState, wanted: SandboxState) -> bool:
    """
    Say whether the operator's side may change a state.

    A sandbox being destroyed only ends or fails; none becomes ``creating`` again.
    """
    if current is wanted:
        return True
    if wanted is SandboxState.CREATING:
        return False
    return current is not SandboxState.DESTROYING or wanted is SandboxState.FAILED


def event_kind(old: SandboxState, new: SandboxState) -> str:
    """Return the kind of `km_core.types.Event` that a change of state is."""
    if new is SandboxState.RUNNING:
        return "created" if old is SandboxState.CREATING else "resumed"
    return _EVENTS[new]
