"""One command at a time acts on a sandbox."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from typing import TYPE_CHECKING

from km_core.errors import GuardError, ProvisionError
from km_core.lifecycle.files import make_private_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from km_core.config import Config

WAIT_S = 60.0
"""How long a command waits for another one on the same sandbox."""
_POLL_S = 0.05


@contextlib.contextmanager
def exclusive(config: Config, sandbox_id: str, *, wait_s: float = WAIT_S) -> Iterator[None]:
    """
    Hold a sandbox's lock in the block; the kernel gives it back when the process dies.

    `km destroy` twice at once, an expiry during `km stop` and a recovery during `km resume` come one
    after the other.  Creation does not take it: it must not keep `km destroy` out.

    Raises:
        GuardError: another process holds it for longer than *wait_s* seconds.
        ProvisionError: the lock file cannot be used.
    """
    directory = config.runtime_dir / "ops"
    make_private_dir(directory)
    path = directory / f"{sandbox_id}.lock"
    ends = time.monotonic() + wait_s
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise ProvisionError("a lock cannot be made", where=str(path), why=str(error)) from error
        try:
            if _take(descriptor) and _stands(descriptor, str(path)):
                try:
                    yield
                finally:
                    # Removed while it is held: whoever waits on this file sees that it is gone.
                    path.unlink(missing_ok=True)
                return
        finally:
            os.close(descriptor)
        if time.monotonic() >= ends:
            raise GuardError(
                "another km command is working on the sandbox",
                where=sandbox_id,
                hint="wait for it to end, then try again",
            )
        time.sleep(_POLL_S)


def _take(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stands(descriptor: int, path: str) -> bool:
    """Say whether the file that was locked is still the one of that name."""
    ours = os.fstat(descriptor)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)
