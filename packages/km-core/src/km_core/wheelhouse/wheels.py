"""One wheel: its name, its digest, what it requires and what it holds (binary distribution format, PEP 427)."""

from __future__ import annotations

import csv
import hashlib
import os
import re
import stat
import zipfile
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import KmError
from km_core.types import canonical_distribution

if TYPE_CHECKING:
    from collections.abc import Mapping
    from email.message import Message
    from pathlib import Path

_FILE = re.compile(
    r"(?P<name>[A-Za-z0-9](?:[A-Za-z0-9._]*[A-Za-z0-9])?)-(?P<version>[A-Za-z0-9][A-Za-z0-9.+!_]*)"
    r"(?:-[0-9][A-Za-z0-9._]*)?-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+-[A-Za-z0-9_.]+\.whl"
)
_METADATA_BYTES = 16 * 1024 * 1024
"""Bound on a member that is read whole; real ones have kilobytes."""


class WheelhouseError(KmError):
    """A wheelhouse cannot be built, or is not what it says."""

    code = "wheelhouse"


@frozen
class Wheel:
    """
    A wheel as it lies in a directory.

    Attributes:
        file: its file name.
        name: the distribution, canonical (PEP 503).
        version: as its metadata states it.
        sha256: of the file, in hex.
        size: bytes.
    """

    file: str
    name: str
    version: str
    sha256: str
    size: int


def is_wheel_name(file: str) -> bool:
    """Say whether *file* is a plain wheel file name: no directory, nothing an installer reads otherwise."""
    return _FILE.fullmatch(file) is not None


def digest_of(path: Path) -> tuple[str, int]:
    """
    Return SHA-256 and size of a regular file, read in pieces; symbolic links are not followed.

    Raises:
        OSError: it cannot be read, or is no regular file.
    """
    digest, size = hashlib.sha256(), 0
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as source:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a regular file")
        while block := source.read(1 << 20):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


def read_wheel(path: Path) -> Wheel:
    """
    Read a wheel's identity from its metadata and check that its file name says the same.

    Raises:
        WheelhouseError: it is no wheel, or name and metadata differ.
    """
    match = _FILE.fullmatch(path.name)
    if match is None:
        raise WheelhouseError("this is not the name of a wheel", where=path.name)
    metadata = _metadata(path)
    name, version = str(metadata.get("Name") or ""), str(metadata.get("Version") or "")
    if canonical_distribution(name) != canonical_distribution(match["name"]) or _plain(version) != _plain(
        match["version"]
    ):
        raise WheelhouseError(
            "the wheel's name and its metadata differ", where=path.name, why=f"it holds {name} {version}"
        )
    try:
        sha256, size = digest_of(path)
    except OSError as error:
        raise WheelhouseError("the wheel cannot be read", where=path.name, why=str(error)) from error
    return Wheel(path.name, canonical_distribution(name), version, sha256, size)


def requirements_of(path: Path) -> list[str]:
    """Return a wheel's ``Requires-Dist`` lines, those of extras left out."""
    return without_extras([str(line) for line in _metadata(path).get_all("Requires-Dist") or ()])


def without_extras(lines: list[str]) -> list[str]:
    """Return the requirement lines that hold when no extra is asked for."""
    return [line for line in lines if re.search(r"\bextra\s*==", line.partition(";")[2]) is None]


def required_name(line: str) -> str:
    """Return the canonical name that a requirement line (PEP 508) begins with; empty when it has none."""
    match = re.match(r"\s*([A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?)", line)
    return canonical_distribution(match[1]) if match else ""


def content_of(path: Path) -> Mapping[str, str]:
    """
    Return the recorded digest of each file that a wheel installs below the library directory.

    Left out is what an installer writes itself or puts elsewhere (``RECORD``, ``*.data``).
    """
    rows = csv.reader(_member(path, "RECORD").splitlines())
    return {
        row[0]: row[1] for row in rows if len(row) == 3 and row[1] and not re.match(r"[^/]+\.data/", row[0])
    }


def _metadata(path: Path) -> Message:
    from email.parser import HeaderParser

    return HeaderParser().parsestr(_member(path, "METADATA"))


def _member(path: Path, name: str) -> str:
    """Return a file of the wheel's one ``.dist-info`` directory as text."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [
                item
                for item in archive.infolist()
                if re.fullmatch(rf"[^/]+\.dist-info/{name}", item.filename)
            ]
            if len(found) != 1 or found[0].file_size > _METADATA_BYTES:
                raise WheelhouseError(f"the wheel has no usable {name}", where=path.name)
            return archive.read(found[0]).decode("utf-8")
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile) as error:
        raise WheelhouseError("this is not a wheel", where=path.name, why=str(error)) from error


def _plain(version: str) -> str:
    """Return a version as it may stand in a file name (``-`` and ``_`` are one there)."""
    return version.replace("-", "_").lower()
