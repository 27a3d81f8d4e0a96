"""
Signed checkpoints: what the heads of all chains of a sandbox were at a moment.

A chain alone shows changes in its middle; only a signed head shows that its end is missing or that the
whole file was written anew.  Checkpoints form a chain of their own.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time as time_module
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.audit.chain import MAX_RECORD, timestamp
from km_core.errors import AuditError
from km_core.identity import canonical_json, sign, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from km_core.audit.anchor import Anchor

PURPOSE = "audit-checkpoint"
FILE_NAME = "checkpoints.jsonl"


@frozen
class Head:
    """The last record of a chain: sequence number (0 for an empty chain) and hash."""

    seq: int
    hash: str


def checkpoint_digest(checkpoint: Mapping[str, Any]) -> str:
    """Return what the next checkpoint names as *prev*."""
    return hashlib.sha256(canonical_json(checkpoint)).hexdigest()


def signature_holds(checkpoint: Mapping[str, Any], key: bytes) -> bool:
    """Say whether a checkpoint's signature is that of *key* (32 bytes)."""
    body = {name: value for name, value in checkpoint.items() if name != "signature"}
    try:
        signature = base64.b64decode(str(checkpoint.get("signature", "")), validate=True)
    except ValueError:
        return False
    return verify(key, PURPOSE, body, signature)


class Checkpoints:
    """
    The checkpoints of one sandbox; kmd is their only writer.

    Args:
        audit_dir: the sandbox's audit directory.
        sandbox_id: whose heads they are.
        seed: Ed25519 seed, 32 bytes.
        clock: returns Unix seconds.
    """

    def __init__(
        self,
        audit_dir: Path,
        *,
        sandbox_id: str,
        seed: bytes,
        clock: Callable[[], float] = time_module.time,
    ) -> None:
        self.path = audit_dir / FILE_NAME
        self._sandbox_id = sandbox_id
        self._seed = seed
        self._clock = clock

    def __repr__(self) -> str:
        return f"Checkpoints({self._sandbox_id})"

    def last(self) -> dict[str, Any] | None:
        """
        Return the last whole checkpoint, or None.

        Raises:
            AuditError: the file cannot be read or its last whole line is no checkpoint.
        """
        try:
            with self.path.open("rb") as stream:
                size = stream.seek(0, os.SEEK_END)
                stream.seek(max(0, size - 2 * MAX_RECORD))
                tail = stream.read()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise AuditError(
                "the checkpoints cannot be read", where=str(self.path), why=str(error)
            ) from error
        line = tail[: tail.rfind(b"\n") + 1].rstrip(b"\n").rpartition(b"\n")[2]
        if not line:
            return None
        try:
            checkpoint: dict[str, Any] = json.loads(line)
            int(checkpoint["number"])
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise AuditError(
                "the last checkpoint is damaged", where=str(self.path), why=str(error)
            ) from error
        return checkpoint

    def digest_of(self, number: int) -> str:
        """Return the digest of the checkpoint with this number, empty when there is none."""
        try:
            with self.path.open("rb") as stream:
                for line in stream:
                    try:
                        checkpoint = json.loads(line)
                        if checkpoint["number"] == number:
                            return checkpoint_digest(checkpoint)
                    except (ValueError, KeyError, TypeError, RecursionError):
                        return ""
        except OSError:
            return ""
        return ""

    def require(self, anchor: Anchor) -> None:
        """
        Raise unless the checkpoints reach the anchor.

        They may have gone on: a crash can come between a checkpoint and its anchor.

        Raises:
            AuditError: they were cut back or written anew behind it.
        """
        last = self.last()
        reached = int(last["number"]) if last else 0
        if last is not None and reached == anchor.number:
            found = checkpoint_digest(last)
        else:
            found = self.digest_of(anchor.number) if reached > anchor.number else ""
        if found != anchor.digest:
            raise AuditError(
                "the checkpoints went back behind what was signed",
                where=str(self.path),
                why=f"checkpoint {anchor.number} was signed, {reached} are there",
                hint="km audit verify shows the state of the evidence",
            )

    def add(self, heads: Mapping[str, Head], *, state: str = "") -> dict[str, Any]:
        """
        Sign the heads of all writers and append the checkpoint, synced to the disk.

        Args:
            heads: writer to head.  A writer of the last checkpoint may not be missing or go back.
            state: the sandbox's state, when a change of state is the occasion.

        Returns:
            The checkpoint.

        Raises:
            AuditError: a head went back, or the file cannot be written.
        """
        last = self.last()
        known: dict[str, Any] = last["heads"] if last else {}
        for writer, head in known.items():
            now = heads.get(writer)
            if now is None or now.seq < head["seq"] or (now.seq == head["seq"] and now.hash != head["hash"]):
                raise AuditError(
                    f"the chain of {writer} went back behind its last checkpoint",
                    where=str(self.path),
                    why=f"checkpoint {last['number'] if last else 0} signed record {head['seq']}",
                    hint="km audit verify shows the state of the evidence",
                )
        checkpoint: dict[str, Any] = {
            "number": int(last["number"]) + 1 if last else 1,
            "time": timestamp(self._clock()),
            "sandbox": self._sandbox_id,
            "heads": {writer: {"seq": head.seq, "hash": head.hash} for writer, head in sorted(heads.items())},
            "prev": checkpoint_digest(last) if last else "",
        }
        if state:
            checkpoint["state"] = state
        checkpoint["signature"] = base64.b64encode(sign(self._seed, PURPOSE, checkpoint)).decode("ascii")
        self._append(canonical_json(checkpoint) + b"\n")
        return checkpoint

    def _append(self, line: bytes) -> None:
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o600)
            try:
                found = os.fstat(descriptor)
                if found.st_uid != os.geteuid():
                    raise OSError(f"the file belongs to uid {found.st_uid}")
                size = found.st_size
                # What a crash tore was never handed out: it is cut off, the next number is the same.
                if size and os.pread(descriptor, 1, size - 1) != b"\n":
                    tail = os.pread(descriptor, min(size, MAX_RECORD), max(0, size - MAX_RECORD))
                    os.ftruncate(descriptor, size - len(tail) + tail.rfind(b"\n") + 1)
                    size = os.fstat(descriptor).st_size
                if os.write(descriptor, line) != len(line):
                    os.ftruncate(descriptor, size)
                    raise OSError("the disk is full")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise AuditError(
                "a checkpoint cannot be written", where=str(self.path), why=str(error)
            ) from error
