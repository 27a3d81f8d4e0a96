"""
What is due: called every second, idempotent, and one sandbox's trouble never stops another's.

Everything is decided from what the database says, by the pure functions in `km_core.handlers`; a tick
that never came, or came twice, changes nothing but the moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from typing import TYPE_CHECKING, Any

from km_core.errors import KmError
from km_core.handlers.lifetime import due_warning, expiry
from km_core.lifecycle.create import creator_lives
from km_core.types import SandboxState, deadline, policy_at_end
from km_embedded.liveness import boot_id, pod_alive

if TYPE_CHECKING:
    from km_core.types import SandboxRecord
    from km_embedded.service import Service

MAX_RECOVERIES = 3
RECOVERY_WINDOW_S = 600.0
_LIVE = frozenset({SandboxState.RUNNING, SandboxState.PAUSED})


async def tick(service: Service) -> None:
    """Do for every sandbox what is due now."""
    now = service.clock()
    for record in service.records.list():
        try:
            _one(service, record, now)
        except Exception as error:  # noqa: BLE001 - one sandbox's trouble must not stop another's expiry
            service.complain("tick_failed", record.id, error)
    for step in (_grants, _money, _evidence, _tasks):
        try:
            step(service, now)
        except Exception as error:  # noqa: BLE001 - as above
            service.complain("tick_failed", step.__name__, error)
    await _sockets(service)
    service.notifier.start()
    await sync(service)


async def sync(service: Service) -> None:
    """Bring commits to the disk."""
    descriptor = service.db.pending_sync()
    if descriptor is not None:
        try:
            await asyncio.to_thread(os.fdatasync, descriptor)
        except OSError as error:
            service.complain("sync_failed", "", error)


def _one(service: Service, record: SandboxRecord, now: float) -> None:
    due = expiry(record, now, observed_since=service.started_at)
    if due is not None:
        if not due.act:
            _notice(service, record, "retained", f"{due.cause}:{deadline(record):.0f}", {"cause": due.cause})
        elif service.tasks.start(record.id, "expire", "--cause", due.cause):
            with service.act(record.id):
                event = {"cause": due.cause, "policy": policy_at_end(record, due.cause)}
                service.evidence.emit(record.id, "expired", event)
        if due.act:
            return
    if record.state is SandboxState.DESTROYING:
        if now - service.records.updated_at(record.id) >= service.settings.destroy_retry_s:
            service.tasks.start(record.id, "expire", "--cause", "unfinished-destroy")
        return
    if record.state is SandboxState.CREATING:
        # What an interrupted command left would wait for the operator, with a gate that has a lease.
        if now - record.created_at >= service.settings.create_retry_s and not creator_lives(
            str(record.resources.get("creator", ""))
        ):
            service.tasks.start(record.id, "expire", "--cause", "unfinished-create")
        return
    if record.state in _LIVE:
        _supervised(service, record, now)
    warning = due_warning(record, now)
    if warning:
        detail = {"seconds_left": int(deadline(record) - now), "policy": record.teardown}
        _notice(
            service, record, f"ttl_warning_{warning}", f"{deadline(record):.0f}", detail, kind="ttl_warning"
        )


def _supervised(service: Service, record: SandboxRecord, now: float) -> None:
    """See that a running sandbox's supervisor lives; else bring it back, or give up."""
    if record.boot_id != boot_id():
        service.lost.pop(record.id, None)
        service.update(
            record.id,
            {"state": str(SandboxState.STOPPED), "reason": "host restarted"},
            expect={"version": record.version},
        )
        return
    if service.tasks.running(record.id) or pod_alive(service.config, record.id):
        service.lost.pop(record.id, None)
        return
    since = service.lost.setdefault(record.id, now)
    if now - since < service.settings.pod_grace_s or service.tasks.busy(record.id):
        return
    count = _recoveries(service, record.id, now)
    if count >= MAX_RECOVERIES:
        service.lost.pop(record.id, None)
        minutes = int(RECOVERY_WINDOW_S / 60)
        reason = f"its supervisor died again after {count} recoveries in {minutes} minutes"
        service.update(
            record.id,
            {"state": str(SandboxState.FAILED), "reason": reason},
            expect={"version": record.version},
        )
        return
    if service.tasks.start(record.id, "recover"):
        service.lost.pop(record.id, None)
        with service.act(record.id):
            service.db.run("INSERT INTO recoveries VALUES (?, ?)", (record.id, now))
            service.evidence.emit(record.id, "pod_lost", {"recovery": count + 1, "of": MAX_RECOVERIES})


def _recoveries(service: Service, sandbox_id: str, now: float) -> int:
    row = service.db.one(
        "SELECT count(*) FROM recoveries WHERE sandbox_id = ? AND at > ?",
        (sandbox_id, now - RECOVERY_WINDOW_S),
    )
    return 0 if row is None else int(row[0])


def _notice(
    service: Service,
    record: SandboxRecord,
    name: str,
    subject: str,
    detail: dict[str, Any],
    *,
    kind: str = "",
) -> None:
    """Tell something once per *subject*, such as the deadline that a warning is about."""
    row = service.db.one("SELECT subject FROM notices WHERE sandbox_id = ? AND kind = ?", (record.id, name))
    if row is not None and row["subject"] == subject:
        return
    with service.act(record.id):
        service.db.run("INSERT OR REPLACE INTO notices VALUES (?, ?, ?)", (record.id, name, subject))
        service.evidence.emit(record.id, kind or name, detail)


def _grants(service: Service, _now: float) -> None:
    service.policies.expire()


def _money(service: Service, now: float) -> None:
    if now - service.money_checked < service.settings.reservation_check_s:
        return
    service.money_checked = now
    if service.ledger.any_stale(now):
        with service.db.transaction():
            count = service.ledger.settle_stale(now)
        service.log("reservations_expired", count=count)
    if now - service.calls_forgotten >= 3600:
        service.calls_forgotten = now
        with service.db.transaction():
            service.ledger.forget_calls(now)
            service.db.run("DELETE FROM recoveries WHERE at <= ?", (now - RECOVERY_WINDOW_S,))


def _evidence(service: Service, now: float) -> None:
    if now - service.checkpointed >= service.settings.checkpoint_s:
        service.checkpointed = now
        for record in service.records.list():
            try:
                service.evidence.checkpoint_if_new(record.id)
            except KmError as error:
                service.complain("checkpoint_failed", record.id, error)
                # The chain may be what is broken: then this raises too, and notifiers still hear it.
                with contextlib.suppress(KmError):
                    _notice(service, record, "audit_broken", error.what, {"what": error.what})
        service.tasks.sweep({record.id for record in service.records.list()})
    service.evidence.flush()


def _tasks(service: Service, _now: float) -> None:
    service.tasks.watch()


async def _sockets(service: Service) -> None:
    for sandbox_id in service.sockets.missing():
        try:
            await service.sockets.open(sandbox_id)
        except KmError as error:
            service.complain("socket_failed", sandbox_id, error)
    service.sockets.share_all()
