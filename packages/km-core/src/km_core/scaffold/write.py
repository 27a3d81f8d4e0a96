"""Putting a new distribution in place: the whole of it, or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.errors import GuardError, KmError

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_distribution(files: Mapping[str, str], directory: Path) -> None:
    """
    Write *files* below *directory*, which is new or empty.

    They are written beside it first and appear under its name in one step, so that an interruption
    leaves nothing half made there.

    Raises:
        GuardError: something is there already.
        KmError: it cannot be written.
    """
    check_target(directory)
    parent = directory.absolute().parent
    try:
        staging = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=parent))
    except OSError as error:
        raise KmError(
            "the directory cannot be made", where=str(directory), why=error.strerror or str(error)
        ) from error
    try:
        for name, text in files.items():
            path = staging / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8", newline="\n")
        umask = os.umask(0)
        os.umask(umask)
        staging.chmod(0o777 & ~umask)
        # An empty directory gives way to it; one that was filled meanwhile does not (rename(2)).
        staging.rename(directory)
    except BaseException as error:
        shutil.rmtree(staging, ignore_errors=True)
        if isinstance(error, OSError):
            raise KmError(
                "the distribution cannot be written", where=str(directory), why=error.strerror or str(error)
            ) from error
        raise


def check_target(directory: Path) -> None:
    """Raise `GuardError` unless *directory* is free to be made: nothing is there, or nothing in it."""
    if directory.is_symlink() or (directory.exists() and not directory.is_dir()):
        raise GuardError("something else is there", where=str(directory), hint="choose another --out")
    if directory.is_dir() and any(directory.iterdir()):
        raise GuardError("the directory is not empty", where=str(directory), hint="choose another --out")
