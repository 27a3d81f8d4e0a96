"""The operations on the operator's socket, as tabled in ``docs/internals.md``."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from km_core import __version__
from km_core.config import load_config
from km_core.control.ops import Op, Peer, boolean, integer, mapping, nullable, number, text
from km_core.errors import ConfigError, GuardError, NotFoundError, UsageError
from km_core.handlers.budget import PPM
from km_core.types import SandboxRecord, is_sandbox_id
from km_embedded.evidence import HOST
from km_embedded.ledger import MAX_NUSD
from km_embedded.policies import MAX_GRANT_S
from km_embedded.reconcile import reconcile
from km_embedded.secrets import MAX_VALUE, NAME_PATTERN
from km_embedded.tick import tick

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_embedded.service import Service

SANDBOX = text(longest=64)
STEP = text(longest=128)
MONEY = integer(0, MAX_NUSD)
MAX_PROFILE = 1024 * 1024
"""Longest effective profile in characters."""


def operator_ops(service: Service) -> Mapping[str, Op]:
    """Return the operator's operations on a service."""
    ops = OperatorOps(service)
    return {
        "ping": Op(ops.ping),
        "sandbox.create": Op(ops.create, {"record": mapping}),
        "sandbox.get": Op(ops.get, {"id": SANDBOX}),
        "sandbox.list": Op(ops.list),
        "sandbox.resolve": Op(ops.resolve, {"ref": text(longest=64)}),
        "sandbox.update": Op(
            ops.update,
            {"id": SANDBOX, "changes": mapping, "expect": nullable(mapping)},
            frozenset({"expect"}),
        ),
        "sandbox.delete": Op(ops.delete, {"id": SANDBOX}),
        "sandbox.open": Op(ops.open, {"id": SANDBOX}),
        "journal.begin": Op(ops.journal_begin, {"id": SANDBOX, "step": STEP, "index": integer(0, 10_000)}),
        "journal.done": Op(ops.journal_done, {"id": SANDBOX, "step": STEP}),
        "journal.list": Op(ops.journal_list, {"id": SANDBOX}),
        "journal.undone": Op(ops.journal_undone, {"id": SANDBOX, "step": STEP}),
        "budget.set": Op(
            ops.budget_set,
            {
                "id": SANDBOX,
                "ai_limit_nusd": nullable(MONEY),
                "compute_limit_nusd": nullable(MONEY),
                "warning_threshold": number(0, 1),
            },
            frozenset({"warning_threshold"}),
        ),
        "budget.add": Op(
            ops.budget_add,
            {"id": SANDBOX, "ai_nusd": MONEY, "compute_nusd": MONEY},
            frozenset({"ai_nusd", "compute_nusd"}),
        ),
        "budget.get": Op(ops.budget_get, {"id": SANDBOX}),
        "policy.get": Op(ops.policy_get, {"id": SANDBOX}),
        "policy.apply": Op(
            ops.policy_apply,
            {
                "id": SANDBOX,
                "policy": mapping,
                "profile": text(longest=MAX_PROFILE),
                "expect": text(pattern="[0-9a-f]{64}"),
            },
        ),
        "policy.allow": Op(
            ops.policy_allow, {"id": SANDBOX, "entry": text(longest=512), "seconds": number(1, MAX_GRANT_S)}
        ),
        "policy.deny": Op(ops.policy_deny, {"id": SANDBOX, "entry": text(longest=512)}),
        "secret.set": Op(
            ops.secret_set, {"name": text(pattern=NAME_PATTERN), "value": text(longest=MAX_VALUE)}
        ),
        "secret.rotate": Op(
            ops.secret_rotate,
            {"name": text(pattern=NAME_PATTERN), "value": text(longest=MAX_VALUE)},
            frozenset({"value"}),
        ),
        "secret.list": Op(ops.secret_list),
        "secret.show": Op(ops.secret_show, {"name": text(pattern=NAME_PATTERN)}),
        "secret.delete": Op(ops.secret_delete, {"name": text(pattern=NAME_PATTERN)}),
        "audit.append": Op(ops.audit_append, {"id": SANDBOX, "event": mapping}),
        "audit.checkpoint": Op(ops.audit_checkpoint, {"id": SANDBOX}),
        "audit.anchor": Op(ops.audit_anchor, {"id": SANDBOX}),
        "audit.purge": Op(ops.audit_purge, {"id": SANDBOX}),
        "reconcile": Op(ops.reconcile, {"dry_run": boolean}, frozenset({"dry_run"})),
        "tick": Op(ops.tick),
        "shutdown": Op(ops.shutdown),
    }


class OperatorOps:
    """One method per operation."""

    def __init__(self, service: Service) -> None:
        self._service = service

    def ping(self, _peer: Peer) -> dict[str, Any]:
        """Say who answers."""
        return {"pid": os.getpid(), "version": __version__, "started_at": self._service.started_at}

    def create(self, _peer: Peer, record: dict[str, Any]) -> dict[str, Any]:
        """Add a sandbox; see `Records.create`."""
        service = self._service
        try:
            asked = SandboxRecord.from_wire(record)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError("the record is not one of a sandbox", why=str(error)[:200]) from error
        with service.act(asked.id):
            made = service.records.create(asked, now=service.clock(), most=self._most())
            detail = {"profile": made.profile, "substrate": made.substrate, "plan_digest": made.plan_digest}
            service.evidence.emit(made.id, "create_requested", detail, tell=False)
        return made.to_wire()

    def get(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Return a record."""
        return self._service.records.get(id).to_wire()

    def list(self, _peer: Peer) -> list[dict[str, Any]]:
        """Return every record by number."""
        return [record.to_wire() for record in self._service.records.list()]

    def resolve(self, _peer: Peer, ref: str) -> dict[str, Any]:
        """Find a record by what people call it."""
        return self._service.records.resolve(ref).to_wire()

    def update(
        self,
        _peer: Peer,
        id: str,  # noqa: A002 - the wire's word
        changes: dict[str, Any],
        expect: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Change a record under a condition."""
        return self._service.update(id, changes, expect=expect).to_wire()

    async def delete(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Remove a sandbox's record and all that belongs to it; its audit chains stay."""
        service = self._service
        found = service.records.find(id)
        if found is None:
            return {}
        # Before the record goes, while the heads of the other writers are still known.
        with service.act(id):
            service.evidence.emit(id, "destroyed", {"from": str(found.state), "reason": found.reason})
        service.checkpoint(id, state="destroyed")
        with service.act(id):
            service.records.delete(id)
        service.evidence.forget(id)
        service.leases.forget(id)
        await service.sockets.close(id)
        return {}

    async def open(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Make a sandbox's socket and a fresh token."""
        service = self._service
        record = service.records.get(id)
        with service.act(id):
            token = service.sockets.new_token(id, record.version)
            service.evidence.emit(id, "token_issued", {}, tell=False)
        return {"socket": str(await service.sockets.open(id)), "token": token}

    def journal_begin(self, _peer: Peer, id: str, step: str, index: int) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Note that a step is about to act."""
        self._service.records.get(id)
        with self._service.act(id):
            self._service.journal.begin(id, step, index)
        return {}

    def journal_done(self, _peer: Peer, id: str, step: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Note that a step has acted."""
        with self._service.act(id):
            if not self._service.journal.done(id, step):
                raise NotFoundError(f"the step {step!r} was never begun", where=id)
        return {}

    def journal_list(self, _peer: Peer, id: str) -> Any:  # noqa: A002 - the wire's word
        """Return the steps in the order they act."""
        return self._service.journal.steps(id)

    def journal_undone(self, _peer: Peer, id: str, step: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Forget a step."""
        with self._service.act(id):
            self._service.journal.undone(id, step)
        return {}

    def budget_set(
        self,
        _peer: Peer,
        id: str,  # noqa: A002 - the wire's word
        ai_limit_nusd: int | None,
        compute_limit_nusd: int | None,
        warning_threshold: float | None = None,
    ) -> dict[str, Any]:
        """Set the ceilings."""
        threshold = None if warning_threshold is None else round(warning_threshold * PPM)
        with self._service.act(id):
            self._service.ledger.set_limits(
                id, ai=ai_limit_nusd, compute=compute_limit_nusd, threshold_ppm=threshold
            )
        return self._service.ledger.summary(id)

    def budget_add(self, _peer: Peer, id: str, ai_nusd: int = 0, compute_nusd: int = 0) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Raise the ceilings."""
        with self._service.act(id):
            self._service.ledger.add(id, ai=ai_nusd, compute=compute_nusd)
        return self._service.ledger.summary(id)

    def budget_get(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Return a sandbox's money."""
        return self._service.ledger.summary(id)

    def policy_get(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Say which policy is in force."""
        return self._service.policies.show(id)

    def policy_apply(
        self,
        _peer: Peer,
        id: str,  # noqa: A002 - the wire's word
        policy: dict[str, Any],
        profile: str,
        expect: str,
    ) -> dict[str, Any]:
        """Replace the policy of a sandbox's plan."""
        return self._service.policies.apply(id, policy, profile, expect)

    def policy_allow(self, _peer: Peer, id: str, entry: str, seconds: float) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Open an entry for a time."""
        return self._service.policies.grant(id, entry, seconds)

    def policy_deny(self, _peer: Peer, id: str, entry: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Take a grant back."""
        return self._service.policies.revoke(id, entry)

    def secret_set(self, _peer: Peer, name: str, value: str) -> dict[str, Any]:
        """Seal a secret."""
        service = self._service
        with service.act(HOST):
            service.keeper.set(name, value)
            service.evidence.emit(HOST, "secret_set", {"name": name}, tell=False)
        service.checkpoint(HOST)
        return {}

    async def secret_rotate(self, _peer: Peer, name: str, value: str | None = None) -> dict[str, Any]:
        """Replace a sealed value, or ask the place outside anew; gates use the new one within two seconds."""
        service = self._service
        prints = await service.keeper.reread(name) if value is None else None
        with service.act(HOST):
            before, after = prints or service.keeper.replace(name, value or "")
            service.evidence.emit(
                HOST, "secret_rotated", {"name": name, "before": before, "after": after}, tell=False
            )
        service.checkpoint(HOST)
        return {"name": name, "before": before, "after": after}

    def secret_list(self, _peer: Peer) -> Any:
        """Return names, times, fingerprints and uses."""
        return self._service.keeper.list()

    async def secret_show(self, _peer: Peer, name: str) -> dict[str, Any]:
        """Return everything about a secret but its value."""
        return await self._service.keeper.show(name)

    def secret_delete(self, _peer: Peer, name: str) -> dict[str, Any]:
        """Remove a secret."""
        service = self._service
        with service.act(HOST):
            service.keeper.delete(name)
            service.evidence.emit(HOST, "secret_deleted", {"name": name}, tell=False)
        service.checkpoint(HOST)
        return {}

    def audit_append(self, _peer: Peer, id: str, event: dict[str, Any]) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Write an event of the operator's side into kmd's chain."""
        self._service.records.get(id)
        if not isinstance(event.get("kind"), str):
            raise UsageError("an event has a kind", where="audit.append")
        if "event_id" in event:
            raise GuardError("event_id is set by kmd", where="audit.append")
        seq, digest = self._service.evidence.append(id, event)
        return {"seq": seq, "hash": digest}

    def audit_checkpoint(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Sign the heads of a sandbox's chains now."""
        self._service.records.get(id)
        return self._service.evidence.checkpoint(id)

    def audit_anchor(self, _peer: Peer, id: str) -> dict[str, Any] | None:  # noqa: A002 - the wire's word
        """Return the number and digest of a sandbox's last checkpoint, also of a destroyed one's."""
        anchor = self._service.evidence.anchor(_evidence_id(id))
        return None if anchor is None else {"number": anchor.number, "digest": anchor.digest}

    def audit_purge(self, _peer: Peer, id: str) -> dict[str, Any]:  # noqa: A002 - the wire's word
        """Forget what was signed of a destroyed sandbox; that it was is recorded in the host's chain."""
        service = self._service
        if not is_sandbox_id(id):
            raise UsageError(f"{id!r} is not a sandbox id", where="audit.purge")
        if service.records.find(id) is not None:
            raise GuardError("the evidence of a sandbox that exists is not removed", where=id)
        with service.act(HOST):
            service.evidence.purge(id)
            service.evidence.emit(HOST, "audit_purged", {"name": id}, tell=False)
        service.checkpoint(HOST)
        return {}

    def reconcile(self, _peer: Peer, dry_run: bool = False) -> Any:
        """Compare records with what really runs."""
        return reconcile(self._service, dry_run=dry_run)

    async def tick(self, _peer: Peer) -> dict[str, Any]:
        """Do what is due now."""
        await tick(self._service)
        return {}

    def shutdown(self, _peer: Peer) -> dict[str, Any]:
        """End kmd after this answer."""
        self._service.stopping()
        return {}

    def _most(self) -> int:
        try:
            return load_config({**os.environ, "KM_HOME": str(self._service.config.home)}).max_sandboxes
        except ConfigError:
            return self._service.config.max_sandboxes


def _evidence_id(text: str) -> str:
    # It names a file: nothing but an id or the host's own chain.
    if text != HOST and not is_sandbox_id(text):
        raise UsageError(f"{text!r} is not a sandbox id", where="audit.anchor")
    return text
