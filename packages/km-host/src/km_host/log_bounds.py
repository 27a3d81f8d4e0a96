"""
Bounds of the files that a sandbox can make its supervisor and its gate write.

Both append (``O_APPEND``) to files they hold open for as long as they live, so a file is cut where it
is: its newer half is kept under the same name with ``.1`` and the file starts again at nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

MAX_LOG = 16 * 1024 * 1024
"""Size from which a log is cut, in bytes."""
KEPT = MAX_LOG // 2
_CHUNK = 1024 * 1024


def bound(path: Path, *, largest: int = MAX_LOG, kept: int = KEPT) -> bool:
    """
    Cut *path* when it is larger than *largest* bytes; returns whether it was.

    The last *kept* bytes replace ``NAME.1``.  What is appended during the copy may be lost; a file that
    is not there, or is a link, is left alone.

    Raises:
        OSError: there is no room for the copy; the file is cut all the same.
    """
    try:
        source = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        size = os.fstat(source).st_size
        if size <= largest:
            return False
        try:
            _copy(source, max(size - kept, 0), size, path.with_name(f"{path.name}.1"))
        finally:
            os.ftruncate(source, 0)
    finally:
        os.close(source)
    return True


def _copy(source: int, start: int, end: int, target: Path) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    copy = os.open(target, flags, 0o600)
    try:
        while start < end:
            sent = os.sendfile(copy, source, start, min(end - start, _CHUNK))
            if not sent:
                return
            start += sent
    finally:
        os.close(copy)
