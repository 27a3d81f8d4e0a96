"""Appending lines that several processes may write at once."""

from __future__ import annotations

import fcntl
import os
import stat
from typing import TYPE_CHECKING

from km_core.types import CheckResult

if TYPE_CHECKING:
    from pathlib import Path

_FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


def append_line(path: Path, line: str) -> None:
    """
    Append a line whole, and return when it is on the disk.

    A new file can be read by its owner only.  A line that does not fit is taken back, so that what
    follows does not run into half of it.

    Raises:
        OSError: it could not be written; nothing of it stays.
    """
    data = line.encode() + b"\n"
    descriptor = os.open(path, _FLAGS, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path} is no regular file")
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(f"{path}: the line does not fit")
            os.fsync(descriptor)
        except OSError:
            os.ftruncate(descriptor, size)
            raise
    finally:
        os.close(descriptor)


def check_file(target: str, variable: str) -> CheckResult:
    """Say whether *target* can be written, without touching it."""
    if not target:
        return CheckResult("SKIPPED", f"{variable} is not set")
    place = target if os.path.exists(target) else os.path.dirname(os.path.abspath(target))
    if os.access(place, os.W_OK):
        return CheckResult("OK", f"events are appended to {target}")
    return CheckResult("ERROR", f"{place} cannot be written", f"set {variable} to a file of your own")
