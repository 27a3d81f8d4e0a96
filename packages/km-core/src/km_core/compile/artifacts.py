"""Writing what a compilation makes: whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.errors import KmError

if TYPE_CHECKING:
    from collections.abc import Mapping


def write_artifacts(directory: Path, files: Mapping[str, str]) -> None:
    """
    Write text files into *directory*, so that no reader ever sees half of one.

    A directory that does not exist appears with everything in it; in one that does, each file is replaced
    in one step and what else is there stays.

    Args:
        directory: where to; its parents are made.
        files: text by plain file name.

    Raises:
        KmError: the directory or a file cannot be written.
    """
    directory = directory.absolute()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Beside the directory, since a rename does not cross file systems.
        fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
        try:
            for name, text in files.items():
                _write(fresh / name, text)
            if directory.exists():
                for name in files:
                    (fresh / name).replace(directory / name)
            else:
                fresh.chmod(0o777 & ~_umask())
                fresh.rename(directory)
        finally:
            with contextlib.suppress(FileNotFoundError):
                shutil.rmtree(fresh)
    except OSError as error:
        why = error.strerror or type(error).__name__
        raise KmError("the output cannot be written", where=str(directory), why=why) from error


def _write(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())


def _umask() -> int:
    """Return the process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
