"""Create a sandbox: from a plan to a running workload, or to nothing at all."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.control.steps import StepContext
from km_core.errors import GuardError, KmError, PlanError
from km_core.lifecycle.files import make_private_dir, remove_tree, write_private
from km_core.lifecycle.interrupts import CLEANING, undisturbed
from km_core.lifecycle.journal import Journal, Step, nothing
from km_core.lifecycle.steps import creation_steps
from km_core.lifecycle.workload import run_init_commands, write_config_files
from km_core.types import SandboxRecord, SandboxState, new_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.control.substrate import Box
    from km_core.lifecycle.session import Session
    from km_core.plan import SandboxPlan


def boot_id() -> str:
    """Return the kernel's id of this boot (``/proc/sys/kernel/random/boot_id``)."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def process_mark(pid: int) -> str:
    """Return ``PID:START`` where START is the process's start time in ticks, so that reuse is seen."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    return f"{pid}:{stat.rpartition(')')[2].split()[19]}"


def creator_lives(mark: str) -> bool:
    """Say whether the process of a `process_mark` lives and is not this one."""
    pid = mark.partition(":")[0]
    return pid.isdigit() and int(pid) != os.getpid() and process_mark(int(pid)) == mark


def create_sandbox(
    session: Session,
    plan: SandboxPlan,
    profile_text: str,
    *,
    alias: str = "",
    on_step: Callable[[str, str], None] = lambda _title, _state: None,
) -> SandboxRecord:
    """
    Create and start a sandbox.

    Raises:
        PlanError: the host cannot do what the plan asks; nothing was made.
        PluginError: a plugin that the plan needs is broken; nothing was made.
        KmError: a step failed; what had been made is removed again.
    """
    session.plugins.refuse_broken(plan)
    substrate = session.substrate(plan.substrate)
    added = session.plugins.lifecycle_steps(plan)
    problems = [p for p in substrate.problems(plan, session.config) if p.severity == "error"]
    if problems:
        first = problems[0]
        raise PlanError(
            first.message,
            where=first.path,
            why="; ".join(f"{p.path}: {p.message}" for p in problems[1:]),
            hint=first.hint,
        )
    control = session.control
    record = _new_record(plan, alias)
    journal = Journal(control, record.id, on_step)
    state_dir = session.config.sandbox_dir(record.id)
    boxes: list[Box] = []

    def files() -> None:
        for directory in (
            session.config.home / "sandboxes",
            state_dir,
            state_dir / "workspace",
            state_dir / "home",
            state_dir / "gate",
            state_dir / "logs",
            session.config.home / "audit",
            session.config.audit_dir(record.id),
        ):
            make_private_dir(directory)
        write_private(state_dir / "plan.json", plan.to_json())
        write_private(state_dir / "profile.yaml", profile_text)

    def budget() -> None:
        control.call(
            "budget.set",
            id=record.id,
            ai_limit_nusd=plan.budget.ai_limit_nusd,
            compute_limit_nusd=plan.budget.compute_limit_nusd,
            warning_threshold=plan.budget.warning_threshold,
        )

    def prepare() -> None:
        boxes.append(session.box(record, plan=plan, with_token=True))
        substrate.prepare(boxes[0])

    def tear_down() -> None:
        substrate.destroy(session.box(record, plan=plan))

    recorded = started = False

    def start() -> None:
        nonlocal started
        started = True
        substrate.start(boxes[0])

    context = StepContext(record.id, plan, state_dir, control)
    steps = [
        Step("files", files, lambda: remove_tree(state_dir), "state directory"),
        Step("budget", budget, nothing, "budget"),
        Step("prepare", prepare, tear_down, "namespace, listeners and gate"),
        *creation_steps(session, context, added, "prepared", nothing),
        Step("start", start, tear_down, "first process"),
        Step("init", lambda: run_init_commands(substrate, boxes[0]), nothing, "initCommands"),
        Step("config", lambda: write_config_files(substrate, boxes[0]), nothing, "configFiles"),
        *creation_steps(session, context, added, "running", tear_down),
        Step("ready", lambda: _mark_running(session, record, substrate.status(boxes[0])), nothing, "record"),
    ]
    try:
        record = SandboxRecord.from_wire(control.call("sandbox.create", record=record.to_wire()))
        recorded = True
        journal.run(steps)
    except BaseException as error:
        # Cut off before the answer: the record may be there.  A guard's refusal says that it is not ours.
        if journal.rolled_back or not (recorded or isinstance(error, GuardError)):
            forget_sandbox(session, record.id, ran=started)
        raise
    return session.record(record.id)


def _new_record(plan: SandboxPlan, alias: str) -> SandboxRecord:
    now = time.time()
    ttl, longest = plan.lifecycle.ttl_s, plan.lifecycle.max_lifetime_s
    return SandboxRecord(
        id=new_sandbox_id(plan.prefix),
        profile=plan.profile,
        substrate=plan.substrate,
        state=SandboxState.CREATING,
        created_at=now,
        alias=alias,
        expires_at=now + ttl if ttl is not None else 0.0,
        max_expires_at=now + longest if longest is not None else 0.0,
        idle_timeout_s=plan.lifecycle.idle_timeout_s,
        last_activity_at=now,
        teardown=plan.lifecycle.teardown,
        boot_id=boot_id(),
        labels=dict(plan.labels),
        resources={"creator": process_mark(os.getpid())},
        plan_digest=plan.digest(),
    )


def _mark_running(session: Session, record: SandboxRecord, status: dict[str, object]) -> None:
    resources = {key: value for key, value in record.resources.items() if key != "creator"}
    session.update(
        record.id,
        expect={"state": str(SandboxState.CREATING)},
        state=str(SandboxState.RUNNING),
        resources=resources,
        limits_status=str(status.get("limits", "")),
        redirect=str(status.get("enforcement", "")),
        last_activity_at=time.time(),
    )


def never_ran(session: Session, sandbox_id: str) -> bool:
    """Say whether creation ended before the workload's first process was to start."""
    steps = session.control.call("journal.list", id=sandbox_id)
    return all(step["step"] != "start" for step in steps)


def forget_sandbox(session: Session, sandbox_id: str, *, ran: bool = True) -> None:
    """
    Remove the record of a sandbox that was rolled back; without *ran* its audit chains too.

    A record that cannot be removed stays in state ``creating`` with a dead creator, which
    ``km reconcile`` removes.
    """
    with undisturbed(CLEANING):
        try:
            session.control.call("sandbox.delete", id=sandbox_id)
            remove_tree(session.config.sandbox_runtime_dir(sandbox_id))
            if not ran:
                remove_audit(session, sandbox_id)
        except KmError:
            return


def remove_audit(session: Session, sandbox_id: str) -> None:
    """Remove a destroyed sandbox's audit chains; that they were removed is recorded in the host's chain."""
    session.control.call("audit.purge", id=sandbox_id)
    remove_tree(session.config.audit_dir(sandbox_id))
