"""Where a profile can have files and its working directory: what cannot be is refused before anything is made."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from km_core.types import Problem
from km_substrate_local.rootfs import HOME, WORKSPACE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_WRITABLE = (WORKSPACE, HOME, "/tmp", "/var", "/run", "/dev/shm")  # noqa: S108 - the sandbox's own
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib64", "/etc")
"""Shown as the host has them, read-only."""
_MADE = ("/", "/root", "/home", "/opt", "/opt/km", "/opt/km/bin", "/dev", "/proc")
_HINT = "choose a path below /workspace, /home/sandbox or /tmp"


def file_problems(profile: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the ``configFiles`` of a merged profile that a local sandbox has no writable place for."""
    execution = (profile.get("spec") or {}).get("execution") or {}
    for path in execution.get("configFiles") or {}:
        if path in _WRITABLE or not _below(path, _WRITABLE):
            message = "a local sandbox cannot write there"
            yield Problem(f'spec.execution.configFiles["{path}"]', message, hint=_HINT)


def directory_problems(directory: str, shown: Sequence[str]) -> Iterator[Problem]:
    """
    Yield what is wrong with a working directory that could be neither found nor made inside.

    Args:
        directory: the profile's.
        shown: host paths that the operator has shown inside, read-only.
    """
    if directory in _MADE or _below(directory, _WRITABLE) or _below(directory, shown):
        return
    if not (_below(directory, _SYSTEM) and Path(directory).is_dir()):
        message = f"a local sandbox has no {directory} and cannot make it"
        yield Problem("spec.execution.workingDir", message, hint=_HINT)


def _below(path: str, trees: Sequence[str]) -> bool:
    return any(PurePosixPath(path).is_relative_to(tree) for tree in trees)
