"""
Which uid a workload has on the host.

An ordinary operator's sandboxes run under the operator's own uid, behind namespaces.  A workload of root
must never be root on the host, so each of root's sandboxes gets a uid of its own from 0x70000000 to
0x77ffffff (1879048192 to 2013265919): above the ranges that are handed to containers and below the
numbers that programs take for negative.  No account may live there.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import ProvisionError
from km_core.lifecycle.tree import walk

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from km_core.lifecycle.tree import Entry

FIRST_UID = 0x70000000
UIDS = 0x08000000
FILE = "host-uid"
"""Below ``rootfs/``: the number, as text, for the life of the sandbox's files."""


@frozen
class HostIds:
    """What the workload is to the host's kernel."""

    uid: int
    gid: int

    @property
    def is_own(self) -> bool:
        """Whether it is the operator's own."""
        return self.uid == os.getuid()


def host_ids(state_dir: Path) -> HostIds:
    """
    Return the ids of a sandbox, choosing them when it has none yet.

    The choice starts at a digest of the sandbox's id and goes on to the next number while another
    sandbox of the same home has it.

    Raises:
        ProvisionError: the stored number is not one of the range.
    """
    if os.getuid() != 0:
        return HostIds(os.getuid(), os.getgid())
    path = state_dir / "rootfs" / FILE
    with _locked(state_dir.parent.parent / "host-uids.lock"):
        stored = _stored(path)
        if stored is None:
            taken = {
                _stored(other / "rootfs" / FILE) for other in state_dir.parent.iterdir() if other.is_dir()
            }
            digest = hashlib.sha256(str(state_dir).encode()).digest()
            offset = int.from_bytes(digest[:4], "big")
            stored = next(
                uid
                for uid in (FIRST_UID + (offset + step) % UIDS for step in range(UIDS))
                if uid not in taken
            )
            path.parent.mkdir(mode=0o755, exist_ok=True)
            path.write_text(f"{stored}\n", encoding="ascii")
    return HostIds(stored, stored)


def give(directory: Path, ids: HostIds) -> None:
    """
    Make a directory and all below it the workload's; nothing to do for an ordinary operator.

    Called while nothing of the sandbox runs.  Links are changed themselves, never followed.
    """
    if ids.is_own:
        return

    def hand_over(entry: Entry) -> None:
        if entry.found.st_uid != ids.uid:
            os.chown(entry.name, ids.uid, ids.gid, dir_fd=entry.directory, follow_symlinks=False)

    walk(directory, hand_over)
    os.chown(directory, ids.uid, ids.gid, follow_symlinks=False)


def _stored(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii")
    except FileNotFoundError:
        return None
    if not text.strip().isdigit() or not FIRST_UID <= int(text) < FIRST_UID + UIDS:
        raise ProvisionError("the sandbox's host uid is damaged", where=str(path), hint="destroy the sandbox")
    return int(text)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
