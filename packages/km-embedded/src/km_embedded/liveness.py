"""Whether a sandbox's supervisor lives: it holds a lock on ``ID/pod.lock`` as long as it does."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from km_core.config import Config


def boot_id() -> str:
    """Return the kernel's id of this boot (random(4))."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


def pod_alive(config: Config, sandbox_id: str) -> bool:
    """
    Say whether somebody holds the supervisor's lock.

    The lock is taken for a moment when it is free, shared, so a supervisor that starts just then must
    try again once (it does: its own attempt waits).
    """
    path = config.sandbox_runtime_dir(sandbox_id) / "pod.lock"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
