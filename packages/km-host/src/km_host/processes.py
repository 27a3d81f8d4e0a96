"""What the kernel says about processes of this user (``proc(5)``)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def environment_of(pid: int) -> dict[str, str]:
    """Return the environment a process was started with; empty when it may not be seen."""
    try:
        raw = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition(b"=") for item in raw.split(b"\0") if item)
    return {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}


def command_of(pid: int) -> list[str]:
    """Return a process's argument list; empty when it may not be seen."""
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return []
    return [os.fsdecode(word) for word in raw.split(b"\0")[:-1]]


def own_processes() -> Iterator[int]:
    """Yield the pids of processes that this user may look at."""
    uid = os.getuid()
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if uid in {0, entry.stat().st_uid}:
                    yield int(entry.name)
