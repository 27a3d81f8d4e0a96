"""The operations on a sandbox's own socket; each acts on that sandbox, none takes an id."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from km_core.control.ops import Op, Peer, integer, mapping, number, text, texts
from km_core.errors import PolicyDenied, UsageError
from km_core.handlers.states import REPORTABLE, may_report
from km_core.types import SandboxState
from km_embedded.changes import reported
from km_embedded.credentials import stored_plan
from km_embedded.ledger import MAX_NUSD, CallUsage
from km_embedded.store.records import MAX_TIME

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_embedded.service import Service

CALL = text(longest=128)
MODEL = text(longest=256, empty=True)
MONEY = integer(0, MAX_NUSD)
WORD = r"[a-z][a-z0-9_]{0,40}"
MAX_DETAIL = 16 * 1024
"""Longest detail of an event or report in characters of JSON."""
ACTIVITY_STEP_S = 1.0

KMD_ONLY = frozenset(
    {
        "created", "started", "stopped", "paused", "resumed", "destroyed", "destroying", "changed",
        "create_requested", "token_issued", "budget_set", "budget_topup", "budget_warning",
        "policy_changed", "secret_set", "secret_deleted", "secret_rotated", "secret_released", "reservation_expired", "settlement_flagged",
    }
)  # fmt: skip
"""Kinds of events that only kmd itself records: a sandbox's credential cannot forge them."""


def sandbox_ops(service: Service, sandbox_id: str) -> Mapping[str, Op]:
    """Return the operations of one sandbox."""
    ops = SandboxOps(service, sandbox_id)
    return {
        "lease": Op(ops.lease, {"holder": text(longest=32, pattern=WORD)}),
        "policy.current": Op(ops.policy),
        "ledger.reserve": Op(
            ops.reserve, {"call_id": CALL, "model": MODEL, "provider": MODEL, "amount_nusd": MONEY}
        ),
        "ledger.settle": Op(
            ops.settle, {"call_id": CALL, "cost_nusd": MONEY, "usage": mapping}, frozenset({"usage"})
        ),
        "ledger.release": Op(ops.release, {"call_id": CALL}),
        "budget.get": Op(ops.budget_get),
        "secret.for": Op(ops.secret_for, {"names": texts(longest=64)}),
        "secret.stamp": Op(
            ops.secret_stamp, {"name": text(longest=64), "host": text(longest=253, empty=True)}
        ),
        "audit.head": Op(
            ops.audit_head,
            {
                "writer": text(longest=32, pattern=WORD),
                "seq": integer(0, 2**53),
                "hash": text(pattern="[0-9a-f]{64}"),
            },
        ),
        "event": Op(
            ops.event, {"kind": text(longest=41, pattern=WORD), "detail": mapping}, frozenset({"detail"})
        ),
        "activity": Op(ops.activity, {"at": number(0, MAX_TIME)}, frozenset({"at"})),
        "state": Op(
            ops.state,
            {"state": text(longest=16), "reason": text(longest=512, empty=True), "resources": mapping},
            frozenset({"reason", "resources"}),
        ),
    }


class SandboxOps:
    """One method per operation."""

    def __init__(self, service: Service, sandbox_id: str) -> None:
        self._service = service
        self._id = sandbox_id

    def lease(self, _peer: Peer, holder: str) -> dict[str, Any]:
        """Let traffic pass for a minute."""
        service = self._service
        service.evidence.require(self._id)
        record = service.records.get(self._id)
        return service.leases.renew(
            record,
            holder,
            fresh_token=self._fresh_token(),
            now=service.clock(),
            grants=service.policies.grants(self._id),
        )

    def policy(self, _peer: Peer) -> dict[str, Any]:
        """Return the policy of the plan that the record names, and that plan's digest."""
        return self._service.policies.current(self._id)

    def reserve(
        self, _peer: Peer, call_id: str, model: str, provider: str, amount_nusd: int
    ) -> dict[str, Any]:
        """Hold money for a call."""
        service = self._service
        service.evidence.require(self._id)
        record = service.records.get(self._id)
        service.leases.require_spending(record, fresh_token=self._fresh_token(), now=service.clock())
        with service.db.transaction():
            return service.ledger.reserve(
                self._id, call_id, provider=provider, model=model, amount=amount_nusd, now=service.clock()
            )

    def _fresh_token(self) -> bool:
        service = self._service
        return service.sockets.token_version(self._id) >= service.records.state_version(self._id)

    def settle(
        self, _peer: Peer, call_id: str, cost_nusd: int, usage: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Record what a call cost."""
        service = self._service
        figures = CallUsage.from_wire(usage or {})
        with service.act(self._id):
            service.ledger.settle(self._id, call_id, cost=cost_nusd, usage=figures, now=service.clock())
        return service.ledger.ai_summary(self._id)

    def release(self, _peer: Peer, call_id: str) -> dict[str, Any]:
        """Give a call's money back."""
        service = self._service
        with service.db.transaction():
            service.ledger.release(self._id, call_id, now=service.clock())
        return service.ledger.ai_summary(self._id)

    def budget_get(self, _peer: Peer) -> dict[str, Any]:
        """Return the sandbox's money."""
        return self._service.ledger.summary(self._id)

    async def secret_for(self, _peer: Peer, names: list[str]) -> dict[str, str]:
        """Return the values of those names that exist and that the plan's hosts call for."""
        service = self._service
        allowed = await self._called_for()
        found = await service.keeper.values(set(names) & allowed)
        if found:
            with service.act(self._id):
                detail = {"names": sorted(found)}
                service.evidence.emit(self._id, "secret_released", detail, tell=False)
        return found

    async def secret_stamp(self, _peer: Peer, name: str, host: str) -> dict[str, str]:
        """Return what changes with a secret's value, empty for one that is not handed out; notes the use."""
        service = self._service
        record = service.records.get(self._id)
        made_of = (record.plan_digest, service.live_config())
        known = service.secret_names.get(self._id)
        allowed = known[1] if known is not None and known[0] == made_of else await self._called_for()
        if name not in allowed:
            return {"stamp": ""}
        stamp = await service.keeper.stamp(name)
        if stamp:
            service.keeper.used(name, self._id, host)
        return {"stamp": stamp}

    async def _called_for(self) -> set[str]:
        service = self._service
        record = service.records.get(self._id)
        made_of = (record.plan_digest, service.live_config())

        def wanted() -> set[str]:
            return service.secrets_for(stored_plan(service.config, record))

        # Loading the meters' plugins takes a while the first time; other sandboxes do not wait for it.
        allowed = await asyncio.to_thread(wanted)
        if len(service.secret_names) > 4096:
            service.secret_names.clear()
        service.secret_names[self._id] = (made_of, allowed)
        return allowed

    def audit_head(self, _peer: Peer, writer: str, seq: int, hash: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Take the head of another writer's chain for the next checkpoint."""
        if writer == "kmd":
            raise PolicyDenied("kmd's own chain has its own head", where="audit.head")
        with self._service.db.transaction():
            self._service.evidence.head(self._id, writer, seq, hash)
        return {}

    def event(self, _peer: Peer, kind: str, detail: dict[str, Any] | None = None) -> dict[str, Any]:
        """Record an event and tell the notifiers."""
        if kind in KMD_ONLY:
            raise PolicyDenied(f"{kind} is recorded by the control plane itself", where="event")
        data = _bounded("event", detail or {})
        with self._service.act(self._id):
            self._service.evidence.emit(self._id, kind, {"detail": data, "by": "sandbox"})
        return {}

    def activity(self, _peer: Peer, at: float | None = None) -> dict[str, Any]:
        """Note that the sandbox is in use; a time in the future counts as now."""
        service = self._service
        now = service.clock()
        seen = now if at is None else min(at, now)
        if seen - service.records.get(self._id).last_activity_at >= ACTIVITY_STEP_S:
            with service.db.transaction():
                service.records.touch(self._id, seen)
        return {}

    def state(
        self, peer: Peer, state: str, reason: str = "", resources: dict[str, Any] | None = None
    ) -> dict[str, Any]:
        """Take the supervisor's report; only a process of the operator's own user may make one."""
        service = self._service
        if peer.uid not in {os.geteuid(), 0}:
            raise PolicyDenied("only the supervisor reports a state", where="state")
        if state not in REPORTABLE:
            raise UsageError(f"a supervisor does not report {state!r}", where="state")
        record = service.records.get(self._id)
        wanted = SandboxState(state)
        data = _bounded("state", resources or {})
        if may_report(record.state, wanted):
            service.update(self._id, reported(record, wanted, reason, data, service.clock()))
        elif data or reason:
            changes: dict[str, Any] = {"resources": {**record.resources, **data}}
            service.update(self._id, changes | ({"reason": reason} if reason else {}))
        return {}


def _bounded(op: str, data: dict[str, Any]) -> dict[str, Any]:
    try:
        size = len(json.dumps(data, allow_nan=False))
    except (ValueError, RecursionError) as error:
        raise UsageError("the data is not plain JSON", where=op, why=type(error).__name__) from error
    if size > MAX_DETAIL:
        raise UsageError(f"the data is longer than {MAX_DETAIL} characters", where=op)
    return data
