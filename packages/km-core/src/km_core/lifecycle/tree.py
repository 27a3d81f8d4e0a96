"""
Walking trees that a workload made, with the operator's rights.

Nothing in such a tree can be trusted: links lead anywhere, directories may be unreadable, and they may
nest deeper than a path is long or than recursion or descriptors go (`shutil.rmtree` and `os.fwalk` hold
one descriptor and one frame for each level).  So the walk goes from directory to directory, holds two
descriptors at a time, and never follows a link.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@frozen
class Entry:
    """
    Something found in a tree.

    Attributes:
        directory: descriptor of the directory it is in; valid during the visit only.
        name: its name there.
        found: what it is; of a link the link itself.
    """

    directory: int
    name: str
    found: os.stat_result

    @property
    def is_directory(self) -> bool:
        """Whether it is a directory itself, not a link to one."""
        return stat.S_ISDIR(self.found.st_mode)


@frozen
class _Level:
    """A directory on the way down: what its parent calls it, who it is, and what is still to do."""

    name: str
    found: os.stat_result
    names: list[str]


def walk(root: Path, visit: Callable[[Entry], None], *, open_up: bool = False) -> None:
    """
    Visit everything below *root*, a directory after what it holds; *root* itself is not visited.

    Called while nothing else changes the tree.

    Args:
        root: a directory; must not be a link.
        visit: called for each entry; may change or remove it.
        open_up: give the owner of each directory, *root* included, all rights over it first.

    Raises:
        OSError: something cannot be looked at, *visit* raised it, or a directory was moved meanwhile.
    """
    if open_up:
        _open_up(None, str(root))
    here = os.open(root, _OPEN)
    try:
        levels = [_Level("", os.fstat(here), _names(here))]
        while levels:
            level = levels[-1]
            if level.names:
                entry = _entry(here, level.names.pop())
                if entry is None:
                    continue
                if not entry.is_directory:
                    visit(entry)
                    continue
                if open_up:
                    _open_up(here, entry.name)
                below = os.open(entry.name, _OPEN, dir_fd=here)
                os.close(here)
                here = below
                levels.append(_Level(entry.name, os.fstat(here), _names(here)))
                continue
            levels.pop()
            if levels:
                above = os.open("..", _OPEN, dir_fd=here)
                os.close(here)
                here = above
                if not os.path.samestat(os.fstat(here), levels[-1].found):
                    raise OSError(errno.ESTALE, "a directory was moved while it was looked at", level.name)
                visit(Entry(here, level.name, level.found))
    finally:
        os.close(here)


def _names(directory: int) -> list[str]:
    with os.scandir(directory) as entries:
        return [entry.name for entry in entries]


def _entry(directory: int, name: str) -> Entry | None:
    try:
        return Entry(directory, name, os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return None


def _open_up(directory: int | None, name: str) -> None:
    # Changing a mode follows links, and a path descriptor cannot be changed: look first, nobody else writes.
    mode = os.stat(name, dir_fd=directory, follow_symlinks=False).st_mode
    if stat.S_ISDIR(mode) and mode & 0o700 != 0o700:
        # Not ours to change: what needs the right will say so.
        with contextlib.suppress(PermissionError):
            os.chmod(name, 0o700, dir_fd=directory)
