"""Services of the inside API, ``http://km.internal/NAME`` (DESIGN section 7)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping


GATE_SERVICES = frozenset({"budget"})
"""Names that the gate answers itself; no plugin can offer them."""

RELAYED = frozenset({"activity", "budget.get", "event"})
"""Operations that a `Relay` carries out.  The sandbox's socket has more, but those are the gate's and the
supervisor's own: leases, the ledger, credentials that must not come inside, heads of the audit chain."""

PLATFORM_EVENTS = frozenset(
    {
        "audit_broken", "budget_exhausted", "creating", "enforcement_lost", "expired", "failed",
        "gate_restarted", "pod_lost", "retained", "step_failed", "step_not_undone", "steps_not_known", "ttl_warning",
    }
)  # fmt: skip
"""Kinds of events that say what became of the sandbox; gate, supervisor and control plane raise them, and
what a process inside asked for must not look like one.  The control plane refuses its own kinds itself."""


class Relay(Protocol):
    """
    Carries out an operation of the sandbox's own control socket.

    It acts for the sandbox whose gate it is and for no other.  Raises `KmError`: a `GuardError` for an
    operation that is not one of `RELAYED` or an event of `PLATFORM_EVENTS`, a `UsageError` for arguments
    that are no plain JSON, or more of it than 64 KiB or 16 levels, a `ControlError` when the control plane
    refuses or is away.
    """

    def __call__(self, op: str, /, **args: Any) -> Any:
        """Return the operation's result (``docs/internals.md`` lists them)."""


@frozen
class InsideRequest:
    """
    What a process inside the sandbox asked; nothing in it is to be trusted.

    Attributes:
        method: ``GET`` or ``POST``.
        path: what follows ``/NAME``, percent-decoding left to the service; empty or with a leading
            slash.
        query: the raw query, without the question mark.
        body: at most 1 MiB.
        sandbox_id: whose gate was asked; this one can be trusted.
    """

    method: str
    path: str
    query: str
    body: bytes
    sandbox_id: str
    headers: Mapping[str, str] = field(factory=dict)


@frozen
class InsideResponse:
    """What goes back: *data* becomes a JSON document."""

    data: Mapping[str, Any]
    status: int = 200


@frozen
class InsideService:
    """
    A service that the gate answers itself.

    Attributes:
        name: first segment of the path, ``[a-z][a-z0-9-]*``.
        target: ``module:function`` called with `InsideRequest` and `Relay`, returning `InsideResponse`;
            imported in the gate only, run in a thread, ended as unavailable after 10 seconds.
        summary: one line for the service list at ``http://km.internal/``.
        writes: whether it takes ``POST``.
    """

    name: str
    target: str
    summary: str = ""
    writes: bool = False
