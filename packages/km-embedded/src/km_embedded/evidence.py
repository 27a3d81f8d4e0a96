"""
kmd's own audit chain per sandbox, and the checkpoints over the chains of every writer.

Events come from the outbox, where they were written in the transaction of what they tell of, and go
to the chain right after it.  A crash in between leaves them in the outbox; the next start looks
at the chain's end to see whether one had already been written, so that none is lost or doubled.
"""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING, Any

from km_core.audit import Anchor, ChainWriter, Checkpoints, Head, read_anchor, write_anchor
from km_core.audit.chain import MAX_RECORD, RESERVED
from km_core.audit.checkpoint import checkpoint_digest
from km_core.audit.redact import redact_event
from km_core.errors import AuditError, KmError, UsageError
from km_core.identity import canonical_json, public_key
from km_embedded.files import make_key, private_dir, read_key

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.config import Config
    from km_embedded.store import Database, Outbox, OutboxRow

WRITER = "kmd"
HOST = "host"
"""Chain for what belongs to no sandbox, such as secrets; it has no shape of a sandbox id."""
_TAIL = 512 * 1024
_MAX_DETAIL = MAX_RECORD - 4096
"""Longest detail of an event in bytes; the rest is for what the chain adds."""


class Evidence:
    """
    The audit chains that kmd writes.

    Args:
        config: where they are.
        db: holds the heads that other writers report.
        outbox: where the events come from.
        clock: returns Unix seconds.
    """

    def __init__(self, config: Config, db: Database, outbox: Outbox, clock: Callable[[], float]) -> None:
        self._config = config
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._writers: dict[str, ChainWriter] = {}
        self._seed: bytes | None = None
        self._signed: dict[str, dict[str, Head]] = {}
        self._stuck: dict[str, KmError] = {}

    def close(self) -> None:
        """Close every chain."""
        for writer in self._writers.values():
            writer.close()
        self._writers.clear()

    def emit(self, sandbox_id: str, kind: str, detail: dict[str, Any], *, tell: bool = True) -> None:
        """
        Record an event in the running transaction; `flush` carries it to the chain.

        Raises:
            UsageError: it could never be written, and would keep all that follows from the chain.
        """
        _require_writable(kind, detail)
        self._outbox.add(sandbox_id, kind, self._clock(), detail, tell=tell)

    def flush(self, sandbox_id: str = "") -> None:
        """
        Write what the outbox holds into the chains.

        Args:
            sandbox_id: whose chain the caller depends on; what stops another sandbox's is not its
                trouble.  Without one every trouble is raised.

        Raises:
            AuditError: a chain cannot be written; its events stay in the outbox, other sandboxes'
                have gone on.
        """
        rows = self._outbox.unchained()
        failures: dict[str, KmError] = {}
        written = []
        for row in rows:
            # A chain keeps its order: what follows in one that is stuck waits too.
            if row.sandbox_id in failures:
                continue
            try:
                self._write(row)
                written.append(row.number)
            except KmError as error:
                failures[row.sandbox_id] = error
        self._stuck = failures
        if written:
            with self._db.transaction():
                self._outbox.chained(written)
        if failures and not sandbox_id:
            raise next(iter(failures.values()))
        self.require(sandbox_id)

    def require(self, sandbox_id: str) -> None:
        """Raise the `AuditError` that stopped a sandbox's chain, if one did."""
        failure = self._stuck.get(sandbox_id)
        if failure is not None:
            raise failure

    def append(self, sandbox_id: str, event: dict[str, Any]) -> tuple[int, str]:
        """Write one record at once, after what is waiting; returns its number and hash."""
        self.flush(sandbox_id)
        return self._writer(sandbox_id).append(event)

    def head(self, sandbox_id: str, writer: str, seq: int, digest: str) -> None:
        """
        Take the head of another writer's chain; inside a transaction.

        Raises:
            AuditError: it went back, or another record stands in the place of the known one.
        """
        row = self._db.one(
            "SELECT seq, hash FROM heads WHERE sandbox_id = ? AND writer = ?", (sandbox_id, writer)
        )
        if row is not None and (seq < row["seq"] or (seq == row["seq"] and digest != row["hash"])):
            raise AuditError(
                f"the chain of {writer} went back from record {row['seq']} to {seq}",
                where=sandbox_id,
                hint="km audit verify shows the state of the evidence",
            )
        self._db.run(
            "INSERT INTO heads VALUES (?, ?, ?, ?) ON CONFLICT (sandbox_id, writer)"
            " DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
            (sandbox_id, writer, seq, digest),
        )

    def checkpoint(self, sandbox_id: str, *, state: str = "") -> dict[str, Any]:
        """
        Sign the heads of every chain of a sandbox.

        Raises:
            AuditError: a chain went back, or something cannot be written.
        """
        self.flush(sandbox_id)
        writer = self._writer(sandbox_id)
        writer.sync()
        heads = self._heads(sandbox_id, writer)
        checkpoints = self._checkpoints(sandbox_id)
        anchor = self.anchor(sandbox_id)
        if anchor is not None:
            checkpoints.require(anchor)
        checkpoint = checkpoints.add(heads, state=state)
        self._signed[sandbox_id] = heads
        self._remember(sandbox_id, Anchor(checkpoint["number"], checkpoint_digest(checkpoint)))
        return checkpoint

    def anchor(self, sandbox_id: str) -> Anchor | None:
        """
        Return what was signed last of a sandbox's evidence, also of a destroyed one's.

        The signed file stands in for a database that was lost.

        Raises:
            AuditError: the file is all there is, and it is not what was signed.
        """
        row = self._db.one("SELECT number, digest FROM anchors WHERE sandbox_id = ?", (sandbox_id,))
        if row is not None:
            return Anchor(row["number"], row["digest"])
        path = self._config.anchor_file(sandbox_id)
        return (
            read_anchor(path, sandbox_id=sandbox_id, key=public_key(self._key())) if path.exists() else None
        )

    def purge(self, sandbox_id: str) -> None:
        """Forget what was signed of a sandbox, inside a transaction: its evidence is to be removed."""
        self._db.run("DELETE FROM anchors WHERE sandbox_id = ?", (sandbox_id,))
        self._config.anchor_file(sandbox_id).unlink(missing_ok=True)

    def _remember(self, sandbox_id: str, anchor: Anchor) -> None:
        with self._db.transaction():
            self._db.run(
                "INSERT INTO anchors VALUES (?, ?, ?) ON CONFLICT (sandbox_id)"
                " DO UPDATE SET number = excluded.number, digest = excluded.digest",
                (sandbox_id, anchor.number, anchor.digest),
            )
        path = self._config.anchor_file(sandbox_id)
        private_dir(path.parent)
        write_anchor(path, anchor, sandbox_id=sandbox_id, seed=self._key())

    def checkpoint_if_new(self, sandbox_id: str) -> bool:
        """Sign the heads when one has moved since the last checkpoint; returns whether it did."""
        self.flush(sandbox_id)
        if self._signed.get(sandbox_id) == self._heads(sandbox_id, self._writer(sandbox_id)):
            return False
        self.checkpoint(sandbox_id)
        return True

    def forget(self, sandbox_id: str) -> None:
        """Close a sandbox's chain; its files stay."""
        self._signed.pop(sandbox_id, None)
        self._stuck.pop(sandbox_id, None)
        writer = self._writers.pop(sandbox_id, None)
        if writer is not None:
            writer.close()

    def _heads(self, sandbox_id: str, writer: ChainWriter) -> dict[str, Head]:
        rows = self._db.all("SELECT writer, seq, hash FROM heads WHERE sandbox_id = ?", (sandbox_id,))
        heads = {row["writer"]: Head(row["seq"], row["hash"]) for row in rows}
        heads[WRITER] = Head(*writer.head)
        return heads

    def _write(self, row: OutboxRow) -> None:
        fresh = row.sandbox_id not in self._writers
        writer = self._writer(row.sandbox_id)
        if fresh and _holds(writer, row.number):
            return
        # Until it is written it stays in the outbox.
        writer.append({**row.detail, "kind": row.kind, "event_id": row.number}, kept=True)

    def _writer(self, sandbox_id: str) -> ChainWriter:
        writer = self._writers.get(sandbox_id)
        if writer is None:
            directory = self._directory(sandbox_id)
            writer = ChainWriter(
                directory / f"{WRITER}.jsonl", writer=WRITER, sandbox_id=sandbox_id, clock=self._clock
            )
            self._writers[sandbox_id] = writer
        return writer

    def _directory(self, sandbox_id: str) -> Any:
        private_dir(self._config.home / "audit")
        directory = self._config.audit_dir(sandbox_id)
        private_dir(directory, shared=True)
        return directory

    def _checkpoints(self, sandbox_id: str) -> Checkpoints:
        directory = self._config.audit_dir(sandbox_id)
        return Checkpoints(directory, sandbox_id=sandbox_id, seed=self._key(), clock=self._clock)

    def _key(self) -> bytes:
        if self._seed is None:
            path = self._config.home / "checkpoint.key"
            self._seed = read_key(path) or make_key(path)
            self._publish(self._seed)
        return self._seed

    def _publish(self, seed: bytes) -> None:
        """Keep the public half beside the seed, base64: what ``km audit verify`` checks with."""
        path = self._config.home / "checkpoint.pub"
        text = base64.b64encode(public_key(seed)).decode() + "\n"
        if not path.exists() or path.read_text(encoding="ascii") != text:
            temporary = path.with_name(".checkpoint.pub")
            temporary.write_text(text, encoding="ascii")
            temporary.replace(path)


def _require_writable(kind: str, detail: dict[str, Any]) -> None:
    try:
        if RESERVED.isdisjoint(detail) and len(canonical_json(redact_event(detail))) <= _MAX_DETAIL:
            return
        why = "it is too long, or has a field that the chain sets"
    except (TypeError, ValueError, RecursionError) as error:
        why = f"it is not plain JSON data of a sane depth ({type(error).__name__})"
    raise UsageError("an event cannot be recorded", where=kind[:64], why=why)


def _holds(writer: ChainWriter, number: int) -> bool:
    """Say whether the end of a chain already carries the event with this number."""
    with writer.path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - _TAIL))
        tail = stream.read()
    for line in tail.splitlines():
        try:
            if json.loads(line).get("event_id") == number:
                return True
        except (ValueError, AttributeError):
            continue
    return False
