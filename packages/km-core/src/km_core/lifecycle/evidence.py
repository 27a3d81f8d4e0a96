"""Verification of a sandbox's evidence with all that is known of it."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.audit import Anchor, Finding, Report, read_anchor, verify_dir
from km_core.errors import AuditError, ControlError, UsageError

if TYPE_CHECKING:
    from km_core.lifecycle.session import Session

HOST = "host"
"""Name of the chain for what belongs to no sandbox."""


def has_evidence(session: Session, sandbox_id: str, *, offline: bool = False) -> bool:
    """Say whether there are, or once were, audit chains of a sandbox; *offline* leaves the control plane out."""
    config = session.config
    if config.audit_dir(sandbox_id).is_dir() or config.anchor_file(sandbox_id).exists():
        return True
    return not offline and session.control.call("audit.anchor", id=sandbox_id) is not None


def verify_evidence(session: Session, sandbox_id: str, *, offline: bool = False) -> Report:
    """
    Verify chains and checkpoints, and that none of them was cut back behind what was signed last.

    The end of the checkpoints is known to the control plane's database and to a signed file; both are
    compared.  Without either a report says so with ``anchored`` 0.

    Args:
        session: the connection; the control plane is not asked when *offline*.
        sandbox_id: a sandbox, also a destroyed one, or `HOST`.
        offline: start and ask nothing.
    """
    config = session.config
    key, findings = None, []
    key_file = config.home / "checkpoint.pub"
    try:
        key = base64.b64decode(key_file.read_text(encoding="ascii").strip(), validate=True)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        findings.append(Finding(key_file.name, 1, "unreadable", f"the key cannot be read: {error}"))
    anchors = []
    if key is not None:
        path = config.anchor_file(sandbox_id)
        try:
            stored = read_anchor(path, sandbox_id=sandbox_id, key=key)
        except AuditError as error:
            findings.append(Finding(f"anchors/{path.name}", 1, "signature", error.what))
        else:
            anchors += [stored] if stored is not None else []
    if not offline:
        try:
            answer = session.control.call("audit.anchor", id=sandbox_id)
        except UsageError:
            # A control plane of an older km; its file is compared all the same.
            answer = None
        except (AuditError, ControlError) as error:
            findings.append(Finding("anchors", 1, "unreadable", f"the control plane cannot say: {error}"))
            answer = None
        if answer is not None:
            anchors.append(Anchor(int(answer["number"]), str(answer["digest"])))
    report = verify_dir(config.audit_dir(sandbox_id), key, anchors)
    return evolve(report, ok=report.ok and not findings, findings=(*findings, *report.findings))
