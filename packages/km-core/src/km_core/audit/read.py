"""
Reading chains for people, while they are written: in order, a record at a time, whatever the files hold.

Nothing here checks anything (`km_core.audit.verify` does); a line that is no record is shown as one that
cannot be read.
"""

from __future__ import annotations

import heapq
import json
import os
import stat
from typing import TYPE_CHECKING, Any, BinaryIO

from km_core.audit.chain import MAX_RECORD
from km_core.audit.checkpoint import FILE_NAME

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNREADABLE = "unreadable_record"
"""The *kind* that stands for a line that is no record."""


def open_regular(path: Path) -> BinaryIO | None:
    """
    Open a file for reading; None for what is none.

    The directory may be shared with a gate of another user: no link is followed and no pipe waited for.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


class Chains:
    """
    The chains of one sandbox, read on from where the last reading ended.

    Args:
        directory: its audit directory.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._read: dict[Path, int] = {}

    def fresh(self) -> Iterator[dict[str, Any]]:
        """
        Yield the records that have come since the last call, those of all writers by their time.

        Each chain keeps its own order.  Holds one record per chain, however long they are.
        """
        paths = [path for path in sorted(self._directory.glob("*.jsonl")) if path.name != FILE_NAME]
        return heapq.merge(*map(self._records, paths), key=lambda record: str(record.get("time", "")))

    def _records(self, path: Path) -> Iterator[dict[str, Any]]:
        source = open_regular(path)
        if source is None:
            return
        with source:
            size = os.fstat(source.fileno()).st_size
            if size < self._read.get(path, 0):
                # Somebody cut it; what km audit verify says about it is its own matter.
                self._read[path] = size
                yield _unreadable(path)
            source.seek(self._read.get(path, 0))
            while line := source.readline(MAX_RECORD + 1):
                length = len(line)
                while not line.endswith(b"\n") and (more := source.readline(MAX_RECORD)):
                    length += len(more)
                    line = more[-1:]
                if not line.endswith(b"\n"):
                    return  # still being written
                self._read[path] = self._read.get(path, 0) + length
                yield _parse(line, path) if length == len(line) else _unreadable(path)


def _parse(line: bytes, path: Path) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    return record if isinstance(record, dict) else _unreadable(path)


def _unreadable(path: Path) -> dict[str, Any]:
    return {"kind": UNREADABLE, "writer": path.stem}
