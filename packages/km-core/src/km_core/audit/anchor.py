"""
Anchors: how far a sandbox's checkpoints had come, kept outside its audit directory.

Checkpoints prove the chains, but nothing inside the directory proves the last checkpoint: chains and
checkpoints cut back together are whole again.  The control plane therefore remembers the number and
the digest of the last checkpoint, in its database and in a signed file of its own.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import AuditError
from km_core.identity import sign, verify

if TYPE_CHECKING:
    from pathlib import Path

PURPOSE = "audit-anchor"
MAX_FILE = 4096


@frozen
class Anchor:
    """Number and digest (`checkpoint_digest`, hex) of a sandbox's last checkpoint."""

    number: int
    digest: str


def write_anchor(path: Path, anchor: Anchor, *, sandbox_id: str, seed: bytes) -> None:
    """
    Sign an anchor and put it in the place of the one before, on the disk when this returns.

    Raises:
        AuditError: the file cannot be written.
    """
    body: dict[str, Any] = {"sandbox": sandbox_id, "number": anchor.number, "digest": anchor.digest}
    body["signature"] = base64.b64encode(sign(seed, PURPOSE, body)).decode("ascii")
    temporary = path.with_name(f".{path.name}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as out:
            out.write(json.dumps(body, sort_keys=True) + "\n")
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(path)
    except OSError as error:
        raise AuditError("an audit anchor cannot be written", where=str(path), why=str(error)) from error


def read_anchor(path: Path, *, sandbox_id: str, key: bytes) -> Anchor | None:
    """
    Return the anchor in a file, or None when there is no file.

    Args:
        path: the file.
        sandbox_id: whose anchor it must be.
        key: Ed25519 key of the control plane, 32 bytes.

    Raises:
        AuditError: it cannot be read, or is not what the control plane signed for this sandbox.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise AuditError("the audit anchor cannot be read", where=str(path), why=str(error)) from error
    try:
        with os.fdopen(descriptor, "rb") as source:
            body = json.loads(source.read(MAX_FILE))
        signature = base64.b64decode(body.pop("signature"), validate=True)
        anchor = Anchor(int(body["number"]), str(body["digest"]))
        ours = body["sandbox"] == sandbox_id and verify(key, PURPOSE, body, signature)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AuditError("the audit anchor is damaged", where=str(path), why=type(error).__name__) from error
    if not ours:
        raise AuditError("the audit anchor is not the control plane's", where=str(path))
    return anchor
