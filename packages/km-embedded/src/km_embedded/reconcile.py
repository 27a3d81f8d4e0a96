"""
Records against what really runs, as far as kmd can see without a substrate.

What is left on the host by sandboxes without a record is found and removed by ``km reconcile`` through
the substrates themselves.
"""

from __future__ import annotations

import contextlib
import shutil
from typing import TYPE_CHECKING, Any

from km_core.types import SandboxState, is_sandbox_id
from km_embedded.liveness import boot_id, pod_alive

if TYPE_CHECKING:
    from km_core.types import SandboxRecord
    from km_embedded.service import Service

UNFINISHED_S = 900.0
"""Age at which a create that never finished is reported."""


def reconcile(service: Service, *, dry_run: bool) -> list[dict[str, Any]]:
    """
    Look for records that do not fit what runs, and for sockets of nobody.

    Args:
        service: the parts of kmd.
        dry_run: only report.

    Returns:
        ``{id, found, action}`` per finding; *action* is what was, or would be, done.
    """
    findings = []
    now = service.clock()
    known = set()
    for record in service.records.list():
        known.add(record.id)
        found, action = _finding(service, record, now)
        if not found:
            continue
        if not dry_run and action == "stopped":
            service.update(record.id, {"state": str(SandboxState.STOPPED), "reason": "host restarted"})
        elif not dry_run and action == "recover":
            service.tasks.start(record.id, "recover")
        elif not dry_run and action == "destroy":
            service.tasks.start(record.id, "expire", "--cause", "unfinished-destroy")
        findings.append({"id": record.id, "found": found, "action": action})
    for entry in sorted(service.config.runtime_dir.iterdir()):
        if (
            is_sandbox_id(entry.name)
            and entry.name not in known
            and entry.is_dir()
            and not entry.is_symlink()
        ):
            # A supervisor that still lives is the substrates' business.
            if pod_alive(service.config, entry.name):
                continue
            if not dry_run:
                with contextlib.suppress(OSError):
                    shutil.rmtree(entry)
            findings.append({"id": entry.name, "found": "sockets without a record", "action": "remove"})
    return findings


def _finding(service: Service, record: SandboxRecord, now: float) -> tuple[str, str]:
    if record.state is SandboxState.CREATING and now - record.created_at > UNFINISHED_S:
        return "create never finished", "km destroy"
    if record.state is SandboxState.DESTROYING and not service.tasks.running(record.id):
        return "destroy never finished", "destroy"
    if record.state in {SandboxState.RUNNING, SandboxState.PAUSED}:
        if record.boot_id != boot_id():
            return "host restarted", "stopped"
        if not pod_alive(service.config, record.id) and not service.tasks.running(record.id):
            return "supervisor gone", "recover"
    return "", ""
