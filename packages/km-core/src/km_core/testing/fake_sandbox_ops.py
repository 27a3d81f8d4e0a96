"""Operations on a sandbox's own socket of `km_core.testing.fake_control`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from attrs import evolve

from km_core.control.ops import Op, Peer, integer, mapping, number, text, texts
from km_core.errors import GuardError, PolicyDenied, UsageError
from km_core.handlers.states import REPORTABLE, may_report
from km_core.testing import fake_ledger as ledger
from km_core.types import SandboxState, deadline

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.testing.fake_control import FakeControlPlane

VALID_S = 60
_CALL = text(longest=128)
_WORD = r"[a-z][a-z0-9_]{0,40}"
_MONEY = integer(0, 2**62)
_OWN = frozenset(
    {"created", "started", "stopped", "paused", "resumed", "destroyed", "destroying", "changed"}
    | {"create_requested", "token_issued", "budget_set", "budget_topup", "budget_warning"}
    | {"policy_changed"}
)
"""Kinds of events that only the control plane records: a sandbox cannot forge them."""


def sandbox_table(plane: FakeControlPlane, sandbox_id: str) -> dict[str, Op]:
    """Return the operations of one sandbox; each acts on that sandbox, none takes an id."""
    ops = _SandboxOps(plane, sandbox_id)

    def op(run: Callable[..., Any], args: dict[str, Any] | None = None, optional: tuple[str, ...] = ()) -> Op:
        return Op(ops.saved(run), args or {}, frozenset(optional))

    reserved = {
        "call_id": _CALL,
        "model": text(empty=True),
        "provider": text(empty=True),
        "amount_nusd": _MONEY,
    }
    head = {
        "writer": text(longest=32, pattern=_WORD),
        "seq": integer(0, 2**53),
        "hash": text(pattern="[0-9a-f]{64}"),
    }
    state = {"state": text(longest=16), "reason": text(longest=512, empty=True), "resources": mapping}
    return {
        "lease": op(ops.lease, {"holder": text(longest=32, pattern=_WORD)}),
        "policy.current": op(ops.policy),
        "ledger.reserve": op(ops.reserve, reserved),
        "ledger.settle": op(
            ops.settle, {"call_id": _CALL, "cost_nusd": _MONEY, "usage": mapping}, ("usage",)
        ),
        "ledger.release": op(ops.release, {"call_id": _CALL}),
        "budget.get": op(ops.budget),
        "secret.for": op(ops.secrets, {"names": texts(longest=64)}),
        "secret.stamp": op(ops.stamp, {"name": text(longest=64), "host": text(longest=253, empty=True)}),
        "audit.head": op(ops.head, head),
        "event": op(ops.event, {"kind": text(longest=41, pattern=_WORD), "detail": mapping}, ("detail",)),
        "activity": op(ops.activity, {"at": number(0, 2**40)}, ("at",)),
        "state": op(ops.state, state, ("reason", "resources")),
    }


class _SandboxOps:
    """One method per operation."""

    def __init__(self, plane: FakeControlPlane, sandbox_id: str) -> None:
        self._plane = plane
        self._id = sandbox_id

    def saved(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """Return *run* under the plane's lock, with its state saved before the answer."""

        def locked(peer: Peer, **args: Any) -> Any:
            with self._plane.lock:
                result = run(peer, **args)
                self._plane.save()
                return result

        return locked

    def lease(self, _peer: Peer, holder: str) -> dict[str, Any]:
        record = self._plane.record(self._id)
        if holder != "pod" and record.state is SandboxState.DESTROYING:
            raise GuardError("a sandbox that is being destroyed gets no lease", where=self._id)
        return {
            "valid_s": VALID_S,
            "deadline": deadline(record),
            "state": str(record.state),
            "policy_version": record.plan_digest,
            "grants": [grant.to_data() for grant in self._plane.policies.grants(self._id)],
        }

    def policy(self, _peer: Peer) -> dict[str, Any]:
        return self._plane.policies.current(self._id)

    def reserve(
        self, _peer: Peer, call_id: str, model: str, provider: str, amount_nusd: int
    ) -> dict[str, Any]:
        record = self._plane.record(self._id)
        if record.state is SandboxState.DESTROYING or 0 < deadline(record) <= self._plane.clock():
            raise GuardError("the sandbox may not spend", where=self._id)
        return ledger.reserve(self._budget(), call_id, amount_nusd, model, provider)

    def settle(
        self, _peer: Peer, call_id: str, cost_nusd: int, usage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        ledger.settle(self._budget(), call_id, cost_nusd, usage or {})
        return ledger.ai_summary(self._budget())

    def release(self, _peer: Peer, call_id: str) -> dict[str, Any]:
        ledger.release(self._budget(), call_id)
        return ledger.ai_summary(self._budget())

    def budget(self, _peer: Peer) -> dict[str, Any]:
        return ledger.summary(self._budget())

    def secrets(self, _peer: Peer, names: list[str]) -> dict[str, str]:
        """Give the secrets that the plan's hosts call for; without meters these are none."""
        del names
        return {}

    def stamp(self, _peer: Peer, name: str, host: str) -> dict[str, str]:
        """Say that no secret is handed out, as `secrets` does."""
        del name, host
        return {"stamp": ""}

    def head(self, _peer: Peer, writer: str, seq: int, hash: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        if writer == "kmd":
            raise PolicyDenied("this chain has its own head", where="audit.head")
        self._plane.entry(self._id).setdefault("heads", {})[writer] = {"seq": seq, "hash": hash}
        return {}

    def event(self, _peer: Peer, kind: str, detail: dict[str, Any] | None = None) -> dict[str, Any]:
        if kind in _OWN:
            raise PolicyDenied(f"{kind} is recorded by the control plane itself", where="event")
        self._plane.emit(self._id, kind, detail or {})
        return {}

    def activity(self, _peer: Peer, at: float | None = None) -> dict[str, Any]:
        record = self._plane.record(self._id)
        now = self._plane.clock()
        seen = max(record.last_activity_at, min(at if at is not None else now, now))
        self._plane.entry(self._id)["record"] = evolve(record, last_activity_at=seen).to_wire()
        return {}

    def state(
        self, _peer: Peer, state: str, reason: str = "", resources: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        if state not in REPORTABLE:
            raise UsageError(f"a supervisor does not report {state!r}", where="state")
        record = self._plane.record(self._id)
        wanted = SandboxState(state)
        merged = {**record.resources, **(resources or {})}
        changes: dict[str, Any] = {"resources": merged, "reason": reason or record.reason}
        if may_report(record.state, wanted):
            changes["state"] = wanted
        self._plane.store(record, evolve(record, **changes))
        return {}

    def _budget(self) -> dict[str, Any]:
        budget: dict[str, Any] = self._plane.entry(self._id)["budget"]
        return budget
