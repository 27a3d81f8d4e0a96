"""Verification: is the evidence whole, and if not, which record is the first that is not."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.audit.chain import MAX_RECORD, genesis, record_hash
from km_core.audit.checkpoint import FILE_NAME, checkpoint_digest, signature_holds
from km_core.audit.read import open_regular

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from km_core.audit.anchor import Anchor


@frozen
class Finding:
    """
    One break.

    Attributes:
        file: file name inside the audit directory.
        index: the record, counted from 1 (for a missing record: where it should be).
        kind: ``unreadable``, ``hash``, ``sequence``, ``link``, ``identity``, ``torn``, ``truncated``,
            ``rewritten``, ``missing``, ``signature``.
        detail: one sentence for people.
    """

    file: str
    index: int
    kind: str
    detail: str


@frozen
class Report:
    """
    What verification found.

    Attributes:
        ok: nothing is broken.
        findings: the first break of each file.
        records: whole and linked records per writer.
        checkpoints: checkpoints that hold.
        unsigned: records per writer after the last checkpoint; their end is not proven yet.
        anchored: number of the latest checkpoint that the control plane remembers; 0 when it was not
            asked or remembers none, and then nothing proves that the last checkpoints are not missing.
    """

    ok: bool
    findings: tuple[Finding, ...] = ()
    records: dict[str, int] = field(factory=dict)
    checkpoints: int = 0
    unsigned: dict[str, int] = field(factory=dict)
    anchored: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form of ``km audit verify --json``."""
        return {
            "ok": self.ok,
            "findings": [
                {"file": f.file, "index": f.index, "kind": f.kind, "detail": f.detail} for f in self.findings
            ],
            "records": self.records,
            "checkpoints": self.checkpoints,
            "unsigned": self.unsigned,
            "anchored": self.anchored,
        }


class _BreakError(Exception):
    def __init__(self, finding: Finding) -> None:
        super().__init__(finding.detail)
        self.finding = finding


def verify_dir(audit_dir: Path, public_key: bytes | None, anchors: Sequence[Anchor] = ()) -> Report:
    """
    Verify every chain of a sandbox against itself and against the signed checkpoints.

    Args:
        audit_dir: the directory ``audit/<sandbox>``; its name is the sandbox's id.
        public_key: Ed25519 key of the checkpoints, 32 bytes; None leaves signatures unchecked, which is
            itself a finding when there are checkpoints.
        anchors: what the control plane remembers of the last checkpoint (`km_core.audit.anchor`).

    Returns:
        A report; a file that cannot be read is a finding, never an exception.
    """
    sandbox_id = audit_dir.name
    findings: list[Finding] = []
    digests: dict[int, str] = {anchor.number: "" for anchor in anchors}
    signed, count = _read_checkpoints(audit_dir / FILE_NAME, sandbox_id, public_key, findings, digests)
    if not findings:
        findings += _behind(anchors, digests, count)
    records: dict[str, int] = {}
    unsigned: dict[str, int] = {}
    chains = {path.stem: path for path in sorted(audit_dir.glob("*.jsonl")) if path.name != FILE_NAME}
    for writer, path in chains.items():
        heads = signed.get(writer, {})
        records[writer] = 0
        try:
            for index, record in enumerate(_records(path, writer, sandbox_id), 1):
                records[writer] = index
                expected = heads.get(index)
                if expected is not None and expected != record["hash"]:
                    raise _BreakError(
                        Finding(
                            path.name,
                            index,
                            "rewritten",
                            f"record {index} is not the one a checkpoint signed",
                        )
                    )
        except _BreakError as broken:
            findings.append(broken.finding)
            continue
        last = max(heads, default=0)
        if last > records[writer]:
            findings.append(
                Finding(
                    path.name,
                    records[writer] + 1,
                    "truncated",
                    f"record {records[writer] + 1} is missing; a checkpoint signed {last} records",
                )
            )
        else:
            unsigned[writer] = records[writer] - last
    for writer, heads in signed.items():
        if writer not in chains and max(heads, default=0):
            findings.append(
                Finding(
                    f"{writer}.jsonl",
                    1,
                    "missing",
                    f"the file is gone; a checkpoint signed {max(heads)} records",
                )
            )
    anchored = max((anchor.number for anchor in anchors), default=0)
    return Report(not findings, tuple(findings), records, count, unsigned, anchored)


def _behind(anchors: Sequence[Anchor], digests: dict[int, str], count: int) -> list[Finding]:
    """Return the break at the end of the checkpoints, if they do not reach the anchors."""
    for anchor in sorted(anchors, key=lambda anchor: anchor.number):
        if anchor.number > count:
            detail = f"checkpoint {count + 1} is missing; the control plane signed {anchor.number}"
            return [Finding(FILE_NAME, count + 1, "truncated", detail)]
        if digests[anchor.number] != anchor.digest:
            detail = f"checkpoint {anchor.number} is not the one the control plane remembers"
            return [Finding(FILE_NAME, anchor.number, "rewritten", detail)]
    return []


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield (index from 1, line without newline); a line cut short is a break."""
    try:
        source = open_regular(path)
        if source is None:
            raise OSError("it is no regular file that can be opened")
        with source as stream:
            index = 0
            while line := stream.readline(MAX_RECORD + 1):
                index += 1
                if not line.endswith(b"\n"):
                    kind = "torn" if len(line) <= MAX_RECORD else "unreadable"
                    raise _BreakError(
                        Finding(path.name, index, kind, f"record {index} is cut short or too long")
                    )
                yield index, line[:-1]
    except OSError as error:
        raise _BreakError(Finding(path.name, 1, "unreadable", str(error))) from error


def _parse(path: Path, index: int, line: bytes) -> dict[str, Any]:
    try:
        # A duplicate key would let one text be hashed and another be shown.
        record = json.loads(line, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise _BreakError(
            Finding(path.name, index, "unreadable", f"record {index} is not JSON: {error}")
        ) from error
    if not isinstance(record, dict):
        raise _BreakError(Finding(path.name, index, "unreadable", f"record {index} is not an object"))
    return record


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key stands twice")
    return result


def _records(path: Path, writer: str, sandbox_id: str) -> Iterator[dict[str, Any]]:
    previous = genesis(sandbox_id, writer)
    for index, line in _lines(path):
        record = _parse(path, index, line)
        try:
            fits = record.get("hash") == record_hash(record)
        except (ValueError, TypeError, RecursionError):
            fits = False
        kind = detail = ""
        if not fits:
            kind, detail = "hash", f"record {index} was changed: its hash does not fit"
        elif record.get("sandbox") != sandbox_id or record.get("writer") != writer:
            kind, detail = "identity", f"record {index} belongs to another chain"
        elif record.get("seq") != index:
            kind, detail = "sequence", f"record {index} has number {record.get('seq')}"
        elif record.get("prev") != previous:
            kind, detail = "link", f"record {index} does not follow record {index - 1}"
        if kind:
            raise _BreakError(Finding(path.name, index, kind, detail))
        previous = record["hash"]
        yield record


def _read_checkpoints(
    path: Path,
    sandbox_id: str,
    public_key: bytes | None,
    findings: list[Finding],
    digests: dict[int, str],
) -> tuple[dict[str, dict[int, str]], int]:
    """Return writer to {record number: signed hash}, and how many hold; fill in the *digests* asked for."""
    signed: dict[str, dict[int, str]] = {}
    if not path.exists():
        return signed, 0
    previous = ""
    count = 0
    try:
        for index, line in _lines(path):
            checkpoint = _parse(path, index, line)
            kind = detail = ""
            if public_key is None or not signature_holds(checkpoint, public_key):
                why = (
                    "there is no key to check it with"
                    if public_key is None
                    else "it is not the control plane's"
                )
                kind, detail = "signature", f"the signature of checkpoint {index} does not hold: {why}"
            elif checkpoint.get("sandbox") != sandbox_id:
                kind, detail = "identity", f"checkpoint {index} belongs to another sandbox"
            elif checkpoint.get("number") != index:
                kind, detail = "sequence", f"checkpoint {index} has number {checkpoint.get('number')}"
            elif checkpoint.get("prev") != previous:
                kind, detail = "link", f"checkpoint {index} does not follow checkpoint {index - 1}"
            if kind:
                raise _BreakError(Finding(path.name, index, kind, detail))
            previous = checkpoint_digest(checkpoint)
            if index in digests:
                digests[index] = previous
            for writer, head in checkpoint["heads"].items():
                if head["seq"]:
                    signed.setdefault(writer, {})[head["seq"]] = head["hash"]
            count = index
    except _BreakError as broken:
        findings.append(broken.finding)
    return signed, count
