"""Stop, pause, resume and destroy; and reconciling records with what is on the host."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from km_core.errors import GuardError, KmError
from km_core.lifecycle.create import boot_id, process_mark
from km_core.lifecycle.files import remove_tree
from km_core.types import SandboxState, is_sandbox_id

if TYPE_CHECKING:
    from typing import Any

    from km_core.lifecycle.session import Session
    from km_core.types import SandboxRecord


def stop_sandbox(session: Session, record: SandboxRecord, *, reason: str = "operator") -> SandboxRecord:
    """End the workload; files, records and budget stay.  Stopping a stopped sandbox is fine."""
    if record.state is SandboxState.STOPPED:
        return record
    session.substrate(record.substrate).stop(session.box(record))
    return session.update(record.id, state=str(SandboxState.STOPPED), reason=reason)


def pause_sandbox(session: Session, record: SandboxRecord) -> SandboxRecord:
    """Freeze the workload where the substrate can."""
    if record.state is SandboxState.PAUSED:
        return record
    if record.state is not SandboxState.RUNNING:
        raise GuardError(f"a {record.state} sandbox cannot be paused", where=record.id)
    session.substrate(record.substrate).pause(session.box(record))
    return session.update(record.id, state=str(SandboxState.PAUSED), reason="operator")


def resume_sandbox(session: Session, record: SandboxRecord, *, reason: str = "") -> SandboxRecord:
    """
    Bring a paused, stopped, frozen or failed sandbox back.

    Raises:
        GuardError: its TTL has passed.
    """
    if record.expires_at and record.expires_at <= time.time():
        raise GuardError("the sandbox's time to live has passed", where=record.id, hint="create a new one")
    substrate = session.substrate(record.substrate)
    if record.state is SandboxState.RUNNING and substrate.status(session.box(record)).get("running"):
        return record
    if record.state is SandboxState.PAUSED:
        substrate.resume(session.box(record))
    else:
        substrate.stop(session.box(record))
        box = session.box(record, with_token=True)
        substrate.prepare(box)
        substrate.start(box)
    status = substrate.status(session.box(record))
    return session.update(
        record.id,
        state=str(SandboxState.RUNNING),
        reason=reason,
        boot_id=boot_id(),
        last_activity_at=time.time(),
        limits_status=str(status.get("limits", "")),
        redirect=str(status.get("enforcement", "")),
    )


def destroy_sandbox(session: Session, record: SandboxRecord, *, purge_audit: bool = False) -> None:
    """
    Remove a sandbox whatever state it is in; its audit chains stay unless *purge_audit*.

    Safe to call again after any interruption.
    """
    session.update(record.id, state=str(SandboxState.DESTROYING), reason="destroy")
    try:
        session.substrate(record.substrate).destroy(session.box(record))
        remove_tree(session.config.sandbox_dir(record.id))
    except KmError as error:
        session.update(record.id, state=str(SandboxState.FAILED), reason=f"destroy failed: {error.what}")
        raise
    session.control.call("sandbox.delete", id=record.id)
    remove_tree(session.config.sandbox_runtime_dir(record.id))
    if purge_audit:
        remove_tree(session.config.audit_dir(record.id))


def recover_sandbox(session: Session, record: SandboxRecord) -> str:
    """
    Bring a sandbox back whose supervisor died in this boot; returns what was done.

    Called by the control plane.  After a reboot the sandbox is recorded as stopped instead.
    """
    if record.state not in {SandboxState.RUNNING, SandboxState.PAUSED}:
        return "nothing to do"
    if record.boot_id != boot_id():
        session.update(record.id, state=str(SandboxState.STOPPED), reason="host restarted")
        return "stopped: host restarted"
    try:
        session.update(record.id, restarts=record.restarts + 1)
        stopped = stop_sandbox(session, record, reason="recovering: supervisor lost")
        resume_sandbox(session, stopped, reason="recovered: supervisor was lost")
    except KmError as error:
        session.update(record.id, state=str(SandboxState.FAILED), reason=f"recovery failed: {error}")
        raise
    return "recovered"


def expire_sandbox(session: Session, record: SandboxRecord, cause: str) -> str:
    """
    Carry out the teardown policy; returns what was done.

    Args:
        session: the connection.
        record: the sandbox as it is now; it may have been given more time since the control plane looked.
        cause: ``ttl``, ``idle``, ``max_lifetime`` or ``unfinished-destroy``.
    """
    if record.state is SandboxState.DESTROYING or cause == "unfinished-destroy":
        destroy_sandbox(session, record)
        return "destroyed"
    now = time.time()
    if (cause == "ttl" and not 0 < record.expires_at <= now) or (
        cause == "max_lifetime" and not 0 < record.max_expires_at <= now
    ):
        return "nothing to do: it has been given more time"
    if record.teardown == "retain":
        session.update(record.id, expires_at=0.0, reason=f"{cause}: retained by teardownPolicy")
        return "retained"
    if record.teardown == "stop":
        stop_sandbox(session, record, reason=cause)
        return "stopped"
    destroy_sandbox(session, record)
    return "destroyed"


def reconcile(session: Session, *, dry_run: bool = False) -> list[dict[str, Any]]:
    """
    Compare records with the host and remove what a crash left.

    Returns:
        One entry per finding: ``{id, found, action}``.
    """
    findings: list[dict[str, Any]] = []
    # What is on the host is listed before the records: a sandbox made in between has a record then.
    leftovers = [
        (substrate, leftover)
        for substrate in session.plugins.substrates().values()
        for leftover in substrate.leftovers(session.config)
    ]
    root = session.config.home / "sandboxes"
    directories = sorted(path for path in root.glob("*") if is_sandbox_id(path.name) and path.is_dir())
    records = {record.id: record for record in session.records()}
    for record in records.values():
        found = _state_finding(session, record)
        if found is None:
            continue
        action = {"unfinished create": "destroyed", "unfinished destroy": "destroyed"}.get(found, "recovered")
        if not dry_run:
            if action == "destroyed":
                # A sandbox that never ran has no evidence worth keeping.
                destroy_sandbox(session, record, purge_audit=found == "unfinished create")
            else:
                action = recover_sandbox(session, record)
        findings.append(
            {"id": record.id, "found": found, "action": action if not dry_run else f"would be {action}"}
        )
    for substrate, leftover in leftovers:
        if leftover.sandbox_id not in records:
            if not dry_run:
                substrate.remove_leftover(session.config, leftover)
            findings.append(
                _orphan(leftover.sandbox_id, f"{leftover.what} {leftover.detail}".strip(), dry_run)
            )
    for directory in directories:
        if directory.name not in records:
            if not dry_run:
                remove_tree(directory)
            findings.append(_orphan(directory.name, "state directory without a record", dry_run))
    return findings


def _orphan(sandbox_id: str, found: str, dry_run: bool) -> dict[str, Any]:
    return {"id": sandbox_id, "found": found, "action": "would be removed" if dry_run else "removed"}


def _state_finding(session: Session, record: SandboxRecord) -> str | None:
    if record.state is SandboxState.CREATING:
        creator = str(record.resources.get("creator", ""))
        pid = int(creator.partition(":")[0] or 0)
        if pid and pid != os.getpid() and process_mark(pid) == creator:
            return None
        return "unfinished create"
    if record.state is SandboxState.DESTROYING:
        return "unfinished destroy"
    if record.state in {SandboxState.RUNNING, SandboxState.PAUSED}:
        status = session.substrate(record.substrate).status(session.box(record))
        if not status.get("running"):
            return "recorded as running, but nothing runs"
    return None
