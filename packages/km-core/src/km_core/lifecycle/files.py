"""Private files and directories of a sandbox on the host."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from km_core.errors import ProvisionError
from km_core.lifecycle.tree import walk

if TYPE_CHECKING:
    from pathlib import Path

    from km_core.lifecycle.tree import Entry

_TRIES = 5
"""Of removing a tree into which kmd or a dying process still puts a file."""


def make_private_dir(path: Path) -> None:
    """
    Make a directory with mode 0700.

    Raises:
        ProvisionError: something else stands there, or it belongs to somebody else.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
    except OSError as error:
        raise ProvisionError("a directory cannot be made", where=str(path), why=str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.getuid(), 0}:
        raise ProvisionError("this is not a directory of the operator", where=str(path))


def require_own(path: Path) -> None:
    """
    Raise unless what stands at *path*, if anything, is a directory that only its owner, us, can write to.

    For those who only look into it: another user could have made it first, with a socket of theirs.

    Raises:
        ProvisionError: it is somebody else's, others may write to it, or it is no directory.
    """
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise ProvisionError("the directory cannot be used", where=str(path), why=str(error)) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise ProvisionError(
            f"the directory belongs to uid {found.st_uid} or is open to others",
            where=str(path),
            why=f"mode {stat.S_IMODE(found.st_mode):04o}",
            hint="set KM_RUNTIME_DIR to a directory of your own",
        )


def write_private(path: Path, text: str) -> None:
    """Write a file atomically with mode 0600."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    temporary.replace(path)


def remove_tree(path: Path) -> None:
    """
    Remove a directory tree; nothing there is fine.

    Symbolic links are never followed, directories that the workload made unreadable are opened first,
    and no depth is too deep (`km_core.lifecycle.tree`).

    Raises:
        ProvisionError: something could not be removed.
    """

    def remove(entry: Entry) -> None:
        with contextlib.suppress(FileNotFoundError):
            if entry.is_directory:
                os.rmdir(entry.name, dir_fd=entry.directory)
            else:
                os.unlink(entry.name, dir_fd=entry.directory)

    for attempt in range(_TRIES):
        try:
            walk(path, remove, open_up=True)
            path.rmdir()
        except FileNotFoundError:
            if not os.path.lexists(path):
                return
        except OSError as error:
            if error.errno != errno.ENOTEMPTY or attempt == _TRIES - 1:
                raise ProvisionError(
                    "a directory cannot be removed", where=str(path), why=str(error)
                ) from error
        else:
            return
