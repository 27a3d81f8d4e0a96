"""Where a working directory may be: it becomes the sandbox user's own, which no system directory may."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Any

from km_core.types import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_TREES = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/proc", "/root", "/run"),
    *("/sbin", "/sys", "/opt/km", "/usr/bin", "/usr/sbin", "/usr/lib", "/usr/lib32", "/usr/lib64"),
    *("/usr/libexec", "/usr/local/bin", "/usr/local/sbin", "/usr/local/lib", "/usr/share", "/var/lib"),
)
_THEMSELVES = ("/usr", "/usr/local", "/var", "/home", "/opt", "/tmp", "/mnt", "/srv")  # noqa: S108 - the image's
"""Directories that are not handed over, though some below them are, such as ``/usr/src/app``."""


def directory_problems(profile: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield the working directory of a merged profile when it is one of the system's."""
    written = ((profile.get("spec") or {}).get("execution") or {}).get("workingDir") or "/"
    # POSIX leaves two slashes at the beginning to the system; here they are one.
    path = posixpath.normpath(f"/{written.lstrip('/')}")
    if path in _THEMSELVES or any(path == tree or path.startswith(f"{tree}/") for tree in _TREES):
        message = "the sandbox's user would own a directory of the system"
        yield Problem("spec.execution.workingDir", message, hint="choose a path such as /workspace")
