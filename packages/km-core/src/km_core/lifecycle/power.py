"""Stop, pause, resume and destroy; and reconciling records with what is on the host."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING

from km_core.errors import GuardError, KmError, NotFoundError, ProvisionError
from km_core.lifecycle.create import boot_id, creator_lives, never_ran, remove_audit
from km_core.lifecycle.files import remove_tree
from km_core.lifecycle.interrupts import CLEANING, undisturbed
from km_core.lifecycle.locks import exclusive
from km_core.lifecycle.steps import undo_steps
from km_core.types import SandboxState, deadline, is_sandbox_id, policy_at_end

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import Any

    from km_core.control.substrate import Leftover, Substrate
    from km_core.lifecycle.session import Session
    from km_core.types import SandboxRecord

UNFINISHED_CREATE = "unfinished create"
UNFINISHED_DESTROY = "unfinished destroy"


def stop_sandbox(session: Session, record: SandboxRecord, *, reason: str = "operator") -> SandboxRecord:
    """
    End the workload; files, records and budget stay.  Stopping a stopped sandbox is fine.

    Raises:
        GuardError: it is being created or destroyed.
    """
    with exclusive(session.config, record.id):
        record = session.record(record.id)
        _settled(record)
        return _stop(session, record, reason)


def pause_sandbox(session: Session, record: SandboxRecord) -> SandboxRecord:
    """Freeze the workload where the substrate can."""
    with exclusive(session.config, record.id):
        record = session.record(record.id)
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
        GuardError: its time has passed, or it is being created or destroyed.
    """
    with exclusive(session.config, record.id):
        record = session.record(record.id)
        _settled(record)
        return _resume(session, record, reason)


def destroy_sandbox(session: Session, record: SandboxRecord, *, purge: bool = False) -> None:
    """
    Remove a sandbox whatever state it is in; its audit chains stay unless *purge*.

    Safe to call again after any interruption, and from several commands at once.

    Raises:
        NotFoundError: its substrate's plugin is not installed; nothing was changed.
        KmError: something could not be removed; the sandbox is ``failed``.
    """
    with exclusive(session.config, record.id):
        _destroy(session, record, purge=purge)


def recover_sandbox(session: Session, record: SandboxRecord) -> str:
    """
    Bring a sandbox back whose supervisor died in this boot; returns what was done.

    Called by the control plane.  After a reboot the sandbox is recorded as stopped instead, and so is
    one that was paused: what was frozen in memory is lost, and its operator had it rest.
    """
    with exclusive(session.config, record.id):
        record = session.record(record.id)
        if record.state not in {SandboxState.RUNNING, SandboxState.PAUSED}:
            return "nothing to do"
        if record.boot_id != boot_id():
            session.update(record.id, state=str(SandboxState.STOPPED), reason="host restarted")
            return "stopped: host restarted"
        if session.substrate(record.substrate).status(session.box(record)).get("running"):
            return "nothing to do: it runs"
        try:
            session.update(record.id, restarts=record.restarts + 1)
            paused = record.state is SandboxState.PAUSED
            why = "supervisor lost while paused" if paused else "recovering: supervisor lost"
            stopped = _stop(session, record, why)
            if paused:
                return "stopped: it was paused"
            _resume(session, stopped, "recovered: supervisor was lost")
        except KmError as error:
            session.update(record.id, state=str(SandboxState.FAILED), reason=f"recovery failed: {error}")
            raise
        return "recovered"


def expire_sandbox(session: Session, record: SandboxRecord, cause: str) -> str:
    """
    Carry out the teardown policy; returns what was done.

    Args:
        session: the connection.
        record: the sandbox; it may have been given more time since the control plane looked.
        cause: ``ttl``, ``idle``, ``max_lifetime``, ``unfinished-create`` or ``unfinished-destroy``.
    """
    with exclusive(session.config, record.id):
        record = session.record(record.id)
        if record.state is SandboxState.DESTROYING or cause == "unfinished-destroy":
            _destroy(session, record)
            return "destroyed"
        if cause == "unfinished-create":
            if _state_finding(session, record) != UNFINISHED_CREATE:
                return "nothing to do: its creation has ended or goes on"
            _destroy(session, record, purge=never_ran(session, record.id))
            return "destroyed"
        if not _due(record, cause, time.time()):
            return "nothing to do: it has been given more time"
        policy = policy_at_end(record, cause)
        if policy == "retain":
            session.update(record.id, expires_at=0.0, reason=f"{cause}: retained by teardownPolicy")
            return "retained"
        if policy == "stop":
            _stop(session, record, cause)
            return "stopped"
        _destroy(session, record)
        return "destroyed"


def _due(record: SandboxRecord, cause: str, now: float) -> bool:
    if cause == "ttl":
        return 0 < record.expires_at <= now
    if cause == "max_lifetime":
        return 0 < record.max_expires_at <= now
    last = max(record.last_activity_at, record.created_at)
    # A sandbox that was paused or stopped meanwhile is not idle.
    running = record.state is SandboxState.RUNNING
    return running and record.idle_timeout_s > 0 and now - last >= record.idle_timeout_s


def _settled(record: SandboxRecord) -> None:
    if record.state in {SandboxState.CREATING, SandboxState.DESTROYING}:
        raise GuardError(
            f"the sandbox is {record.state}",
            where=record.id,
            hint="wait for it to end; after an interruption: km destroy, or km reconcile",
        )


def _stop(session: Session, record: SandboxRecord, reason: str) -> SandboxRecord:
    if record.state is SandboxState.STOPPED:
        return record
    session.substrate(record.substrate).stop(session.box(record))
    return session.update(record.id, state=str(SandboxState.STOPPED), reason=reason)


def _resume(session: Session, record: SandboxRecord, reason: str) -> SandboxRecord:
    ends = deadline(record)
    if ends and ends <= time.time():
        raise GuardError("the sandbox's time to live has passed", where=record.id, hint="create a new one")
    substrate = session.substrate(record.substrate)
    box = session.box(record)
    if record.state is SandboxState.RUNNING and substrate.status(box).get("running"):
        return record
    if record.state is SandboxState.PAUSED:
        # Its TTL counts before anything runs, as in `_start_again`.
        session.update(record.id, state=str(SandboxState.RUNNING), reason=reason)
        try:
            substrate.resume(box)
        except BaseException:
            with undisturbed(CLEANING):
                session.update(record.id, state=str(SandboxState.PAUSED), reason="operator")
            raise
    else:
        _start_again(session, substrate, record, reason)
    status = substrate.status(box)
    return session.update(
        record.id,
        last_activity_at=time.time(),
        limits_status=str(status.get("limits", "")),
        redirect=str(status.get("enforcement", "")),
    )


def _start_again(session: Session, substrate: Substrate, record: SandboxRecord, reason: str) -> None:
    substrate.stop(session.box(record))
    # Recorded as running before anything runs: when this process is killed in the middle, the TTL
    # counts already and the control plane looks after what is half there.
    session.update(
        record.id,
        state=str(SandboxState.RUNNING),
        reason=reason,
        boot_id=boot_id(),
        last_activity_at=time.time(),
    )
    try:
        box = session.box(record, with_token=True)
        substrate.prepare(box)
        substrate.start(box)
    except BaseException as error:
        with undisturbed(CLEANING):
            substrate.stop(session.box(record))
            session.update(
                record.id,
                state=str(SandboxState.STOPPED),
                reason=f"resume failed: {str(error) or type(error).__name__}"[:400],
            )
        raise


def _destroy(session: Session, record: SandboxRecord, *, purge: bool = False) -> None:
    substrate = session.substrate(record.substrate)
    try:
        session.update(record.id, state=str(SandboxState.DESTROYING), reason="destroy")
    except NotFoundError:
        # Another command was faster: it is what was asked for.
        return
    try:
        plan = session.plan_for_removal(record)
        # The workload first: whatever a plugin's undo does, nothing runs any more.
        substrate.destroy(session.box(record, plan=plan))
        undo_steps(session, record.id, plan)
        remove_tree(session.config.sandbox_dir(record.id))
    except Exception as error:
        why = error.what if isinstance(error, KmError) else f"{type(error).__name__}: {error}"
        session.update(record.id, state=str(SandboxState.FAILED), reason=f"destroy failed: {why}"[:400])
        if isinstance(error, KmError):
            raise
        raise ProvisionError(
            "the sandbox cannot be removed",
            where=record.id,
            why=why,
            hint="km destroy again, or km reconcile",
        ) from error
    session.control.call("sandbox.delete", id=record.id)
    remove_tree(session.config.sandbox_runtime_dir(record.id))
    if purge:
        remove_audit(session, record.id)


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

    def note(sandbox_id: str, found: str, action: str, act: Callable[[], str]) -> None:
        """Act on a finding; one that cannot be mended does not stop the others."""
        try:
            done = f"would be {action}" if dry_run else act()
        except (KmError, OSError) as error:
            done = f"failed: {error}"
        findings.append({"id": sandbox_id, "found": found, "action": done})

    for record in records.values():
        try:
            found = _state_finding(session, record)
        except KmError as error:
            findings.append(
                {"id": record.id, "found": str(error), "action": "failed: its state is not known"}
            )
            continue
        if found is not None:
            action = "destroyed" if found in {UNFINISHED_CREATE, UNFINISHED_DESTROY} else "recovered"
            note(record.id, found, action, partial(_mend, session, record, found))
    for substrate, leftover in leftovers:
        if leftover.sandbox_id not in records:
            what = f"{leftover.what} {leftover.detail}".strip()
            note(leftover.sandbox_id, what, "removed", partial(_remove, session, substrate, leftover))
    for directory in directories:
        if directory.name not in records:
            what = "state directory without a record"
            note(directory.name, what, "removed", partial(_remove_directory, directory))
    return findings


def _mend(session: Session, record: SandboxRecord, found: str) -> str:
    if found == UNFINISHED_CREATE:
        return expire_sandbox(session, record, "unfinished-create")
    if found == UNFINISHED_DESTROY:
        destroy_sandbox(session, record)
        return "destroyed"
    return recover_sandbox(session, record)


def _remove(session: Session, substrate: Substrate, leftover: Leftover) -> str:
    substrate.remove_leftover(session.config, leftover)
    return "removed"


def _remove_directory(directory: Path) -> str:
    remove_tree(directory)
    return "removed"


def _state_finding(session: Session, record: SandboxRecord) -> str | None:
    if record.state is SandboxState.CREATING:
        creator = str(record.resources.get("creator", ""))
        return None if creator_lives(creator) else UNFINISHED_CREATE
    if record.state is SandboxState.DESTROYING:
        return UNFINISHED_DESTROY
    if record.state in {SandboxState.RUNNING, SandboxState.PAUSED}:
        status = session.substrate(record.substrate).status(session.box(record))
        if not status.get("running"):
            return "recorded as running, but nothing runs"
    return None
