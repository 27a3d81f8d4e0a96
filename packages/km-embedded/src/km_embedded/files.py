"""Private directories and key files of the control plane."""

from __future__ import annotations

import contextlib
import os
import stat
from typing import TYPE_CHECKING

from km_core.errors import ControlError

if TYPE_CHECKING:
    from pathlib import Path

KEY_BYTES = 32


def private_dir(path: Path, *, follow: bool = False, shared: bool = False) -> None:
    """
    Make *path* a directory that only this user can enter, or refuse.

    A directory of ours that others may read is closed to them; one that others could write to is
    refused, because what is inside may not be ours.

    Args:
        path: the directory; its parents are made when absent.
        follow: whether *path* may be a symbolic link (a home directory may, one in ``/tmp`` may not).
        shared: whether a substrate may have opened it to its gate's group with the sticky bit (1770):
            the gate then adds files of its own and can neither remove nor replace ours.

    Raises:
        ControlError: it belongs to somebody else, is a link or no directory, or others may write to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
        descriptor = os.open(path, flags)
    except OSError as error:
        raise ControlError("the directory cannot be used", where=str(path), why=str(error)) from error
    try:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid():
            raise ControlError(
                f"the directory belongs to uid {found.st_uid}, not to uid {os.geteuid()}",
                where=str(path),
                hint="set KM_HOME and KM_RUNTIME_DIR to directories of your own",
            )
        mode = stat.S_IMODE(found.st_mode)
        if shared and mode == 0o1770:
            return
        if mode & 0o022:
            raise ControlError(
                f"others may write to the directory (mode {mode:04o})",
                where=str(path),
                hint="look at what is inside, then chmod 0700",
            )
        if mode != 0o700:
            os.fchmod(descriptor, 0o700)
    finally:
        os.close(descriptor)


def read_key(path: Path) -> bytes | None:
    """
    Return the 32 bytes of a key file, or None when there is none.

    Raises:
        ControlError: it is a link, not ours, open to others, or not 32 bytes long.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ControlError("the key file cannot be read", where=str(path), why=str(error)) from error
    try:
        found = os.fstat(descriptor)
        key = os.read(descriptor, KEY_BYTES + 1)
    finally:
        os.close(descriptor)
    mode = stat.S_IMODE(found.st_mode)
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or mode & 0o077:
        raise ControlError(
            "the key file is open to others",
            where=str(path),
            why=f"uid {found.st_uid}, mode {mode:04o}",
            hint="chmod 0600 it, and replace what it protects if others could read it",
        )
    if len(key) != KEY_BYTES:
        raise ControlError(f"the key file does not hold {KEY_BYTES} bytes", where=str(path))
    return key


def make_key(path: Path) -> bytes:
    """
    Write 32 fresh random bytes to *path*, mode 0600, on the disk when this returns.

    Raises:
        ControlError: the file exists or cannot be written.
    """
    key = os.urandom(KEY_BYTES)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
            os.write(descriptor, key)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        # A link fails when the name exists: two starts can never replace each other's key.
        os.link(temporary, path)
        temporary.unlink()
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise ControlError("the key file cannot be made", where=str(path), why=str(error)) from error
    return key
