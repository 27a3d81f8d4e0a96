"""
A hash chain in a file: one JSON record per line, each naming the hash of the one before.

Record: ``{"seq", "time", "sandbox", "writer", …event, "prev", "hash"}`` in canonical JSON, where hash is
SHA-256 over *prev* (as hex digits) followed by the canonical JSON of the record without ``hash``.  The
first record's *prev* is bound to sandbox and writer, so one writer's file cannot stand for another's.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time as time_module
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self

from km_core.audit.redact import redact_event
from km_core.errors import AuditError
from km_core.identity import canonical_json

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MAX_RECORD = 256 * 1024
"""Longest record in bytes, its newline included."""

RESERVED = frozenset({"seq", "time", "sandbox", "writer", "prev", "hash", "recovered", "lost"})
"""Fields that the writer sets; an event may not bring them."""


def genesis(sandbox_id: str, writer: str) -> str:
    """Return the *prev* of a chain's first record."""
    return hashlib.sha256(f"km-audit:v1\0{sandbox_id}\0{writer}".encode()).hexdigest()


def record_hash(record: dict[str, Any]) -> str:
    """Return the hash a record must carry, from its other fields."""
    body = canonical_json({name: value for name, value in record.items() if name != "hash"})
    return hashlib.sha256(str(record.get("prev", "")).encode() + body).hexdigest()


def timestamp(now: float) -> str:
    """Return Unix seconds as RFC 3339 UTC with microseconds."""
    return datetime.fromtimestamp(now, UTC).isoformat(timespec="microseconds")[:-6] + "Z"


class ChainWriter:
    """
    The only writer of one chain; it holds the file's lock while it lives.

    An existing file is continued: its last record is verified first.  A torn last line (a crash in the
    middle of a write; nobody was told that it was recorded) is moved to a file beside it, and the next
    record names that file and its digest in ``recovered``.

    Args:
        path: the chain file; made with mode 0600 when absent.
        writer: ``gate``, ``kmd`` ...
        sandbox_id: whose evidence it is.
        clock: returns Unix seconds.

    Attributes:
        lost: records that could not be written since the last one that was.

    Raises:
        AuditError: the file cannot be opened, another process writes it, or its tail is not a record
            of this chain.
    """

    def __init__(
        self, path: Path, *, writer: str, sandbox_id: str, clock: Callable[[], float] = time_module.time
    ) -> None:
        self.path = path
        self.writer = writer
        self.sandbox_id = sandbox_id
        self._clock = clock
        self._seq = 0
        self._hash = genesis(sandbox_id, writer)
        self._size = 0
        self._recovered: dict[str, Any] | None = None
        self.lost = 0
        self._fd = self._open()
        try:
            self._adopt()
        except BaseException:
            os.close(self._fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def head(self) -> tuple[int, str]:
        """Sequence number and hash of the last record; (0, genesis) for an empty chain."""
        return self._seq, self._hash

    def append(self, event: dict[str, Any], *, redacted: bool = False, kept: bool = False) -> tuple[int, str]:
        """
        Write one record; it is in the file when this returns.

        Args:
            event: plain JSON data without the `RESERVED` fields; secrets in it are redacted.
            redacted: the caller has done that already (`DecisionLog`, once per reason instead of per record).
            kept: when it cannot be written the caller keeps it and comes again: then it is not lost.

        Returns:
            Its sequence number (from 1) and hash.

        Raises:
            AuditError: it could not be written; the chain stands as before and the caller must refuse.
                How many were lost that way stands in the next record.
        """
        try:
            return self._append(event, redacted=redacted)
        except AuditError:
            self.lost += not kept
            raise

    def _append(self, event: dict[str, Any], *, redacted: bool) -> tuple[int, str]:
        if not RESERVED.isdisjoint(event):
            raise self._error("an event uses a reserved field", ", ".join(sorted(RESERVED & set(event))))
        try:
            record = dict(event) if redacted else redact_event(event)
        except RecursionError as error:
            raise self._error("an event is not plain JSON data", "it is nested too deep") from error
        record["seq"] = self._seq + 1
        record["time"] = timestamp(self._clock())
        record["sandbox"] = self.sandbox_id
        record["writer"] = self.writer
        record["prev"] = self._hash
        if self._recovered is not None:
            record["recovered"] = self._recovered
        if self.lost:
            record["lost"] = self.lost
        try:
            body = canonical_json(record)
        except (TypeError, ValueError, RecursionError) as error:
            raise self._error("an event is not plain JSON data", str(error)) from error
        digest = hashlib.sha256(self._hash.encode() + body).hexdigest()
        # The hash is spliced in front: the verifier parses and sorts, so its place does not matter.
        line = b'{"hash":"' + digest.encode() + b'",' + body[1:] + b"\n"
        if len(line) > MAX_RECORD:
            raise self._error(
                "an event is too long to be recorded", f"{len(line)} bytes of at most {MAX_RECORD}"
            )
        self._write(line)
        self._seq += 1
        self._hash = digest
        self._recovered = None
        self.lost = 0
        return self._seq, digest

    def sync(self) -> None:
        """Bring what was written to the disk; call it before a head is reported for a checkpoint."""
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            raise self._error("the audit chain cannot be synced", str(error)) from error

    def close(self) -> None:
        """Close the file and give its lock back; a second call does nothing."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _write(self, line: bytes) -> None:
        try:
            status = os.fstat(self._fd)
            if status.st_nlink == 0 or status.st_size != self._size:
                why = "was deleted" if status.st_nlink == 0 else "was changed by someone else"
                raise self._error("the audit chain cannot be continued", f"the file {why}")
            written = os.write(self._fd, line)
            if written != len(line):
                os.ftruncate(self._fd, self._size)
                raise self._error("an audit record cannot be written", "the disk is full")
        except OSError as error:
            raise self._error("an audit record cannot be written", str(error)) from error
        self._size += written

    def _open(self) -> int:
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            descriptor = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise self._error("the audit chain cannot be opened", str(error)) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(descriptor)
            raise self._error("another process writes this audit chain", str(error)) from error
        owner = os.fstat(descriptor).st_uid
        if owner != os.geteuid():
            # The directory may be shared with a gate of another uid: what that made is not ours to continue.
            os.close(descriptor)
            raise self._error("the audit chain cannot be continued", f"the file belongs to uid {owner}")
        return descriptor

    def _adopt(self) -> None:
        """Continue what the file holds."""
        try:
            size = os.fstat(self._fd).st_size
            start = max(0, size - 2 * MAX_RECORD)
            tail = os.pread(self._fd, size - start, start)
        except OSError as error:
            raise self._error("the audit chain cannot be read", str(error)) from error
        end = tail.rfind(b"\n") + 1
        if end < len(tail):
            self._set_aside(tail[end:], start + end)
            tail = tail[:end]
        self._size = start + len(tail)
        if not tail:
            if start:
                raise self._error("the audit chain has no record at its end", "its last line is too long")
            return
        line = tail[:-1].rpartition(b"\n")[2]
        try:
            record = json.loads(line)
            ours = record["writer"] == self.writer and record["sandbox"] == self.sandbox_id
            intact = record["hash"] == record_hash(record)
            self._seq, self._hash = int(record["seq"]), str(record["hash"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._error("the last record of the audit chain is damaged", str(error)) from error
        if not (ours and intact):
            why = "its hash does not fit" if ours else "it belongs to another chain"
            raise self._error("the last record of the audit chain is damaged", why)

    def _set_aside(self, torn: bytes, offset: int) -> None:
        digest = hashlib.sha256(torn).hexdigest()
        aside = self.path.with_name(f"{self.path.name}.torn-{offset}-{digest[:8]}")
        try:
            descriptor = os.open(
                aside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
            )
            try:
                os.write(descriptor, torn)
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.ftruncate(self._fd, offset)
        except OSError as error:
            raise self._error("a torn audit record cannot be set aside", str(error)) from error
        self._recovered = {"torn_bytes": len(torn), "sha256": digest, "file": aside.name}

    def _error(self, what: str, why: str) -> AuditError:
        return AuditError(
            what, where=str(self.path), why=why, hint="km audit verify shows the state of the evidence"
        )
