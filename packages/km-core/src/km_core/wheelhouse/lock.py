"""The two files that lock a wheelhouse, and checking a directory against them."""

from __future__ import annotations

import hashlib
import json
import os
import re
from typing import TYPE_CHECKING, Any

from attrs import asdict, frozen

from km_core.compile.requirements import split_requirement
from km_core.errors import PlanError
from km_core.wheelhouse.wheels import (
    Wheel,
    WheelhouseError,
    digest_of,
    is_wheel_name,
    read_wheel,
    required_name,
    requirements_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MANIFEST = "wheelhouse.json"
LOCK = "requirements.txt"
FORMAT = 1
_MANIFEST_BYTES = 4 * 1024 * 1024
_HEAD = "# pip install --no-index --find-links DIR --require-hashes -r DIR/requirements.txt\n"
_TEXTS = ("profile", "profile_digest", "substrate", "python", "platform")


@frozen
class Manifest:
    """
    What a wheelhouse is for and what it holds.

    Attributes:
        profile: the profile's name.
        profile_digest: SHA-256 of the effective profile.
        substrate: where its sandboxes run.
        python: tag of the interpreter it was made for (``cp311``).
        platform: of the host it was made for (``linux_x86_64``).
        requirements: the plan's, as ``name==version``.
        wheels: by name.
    """

    profile: str
    profile_digest: str
    substrate: str
    python: str
    platform: str
    requirements: tuple[str, ...]
    wheels: tuple[Wheel, ...]

    def to_json(self) -> str:
        """Return the bytes of ``wheelhouse.json``: sorted keys, no time, no path."""
        data = {"format": FORMAT, **asdict(self)}
        return json.dumps(data, indent=2, sort_keys=True) + "\n"

    def to_lock(self) -> str:
        """Return ``requirements.txt``: each wheel with its version and its SHA-256."""
        lines = [f"{wheel.name}=={wheel.version} --hash=sha256:{wheel.sha256}\n" for wheel in self.wheels]
        return _HEAD + "".join(lines)

    def digest(self) -> str:
        """Return the SHA-256 of ``wheelhouse.json``: it names the whole content."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()


@frozen
class Flaw:
    """One thing that is wrong with a wheelhouse: in which file, and what."""

    file: str
    what: str


def read_manifest(directory: Path) -> Manifest:
    """
    Read ``wheelhouse.json``.

    Raises:
        WheelhouseError: it is missing, damaged or of another format.
    """
    path = directory / MANIFEST
    try:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as source:
            raw = source.read(_MANIFEST_BYTES + 1)
        if len(raw) > _MANIFEST_BYTES:
            raise ValueError("it is too large")
        manifest = _manifest(json.loads(raw))
        if manifest.to_json().encode() != raw:
            raise ValueError("it is not in its one form")
    except FileNotFoundError as error:
        raise WheelhouseError(
            "this is not a wheelhouse", where=str(path), why="the file does not exist"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise WheelhouseError(
            "the list of the wheelhouse is damaged", where=str(path), why=str(error)
        ) from error
    return manifest


def verify_wheelhouse(directory: Path) -> tuple[Manifest, tuple[Flaw, ...]]:
    """
    Check that a directory holds exactly what its manifest lists, complete and with the right hashes.

    Whoever can write to the directory can write another manifest: compare `Manifest.digest` with one
    that came another way.

    Raises:
        WheelhouseError: there is no readable manifest.
    """
    manifest = read_manifest(directory)
    flaws = tuple(_flaws(directory, manifest))
    if not flaws:
        flaws = tuple(Flaw(MANIFEST, missing) for missing in missing_requirements(directory, manifest))
    return manifest, flaws


def _flaws(directory: Path, manifest: Manifest) -> Iterator[Flaw]:
    listed = {wheel.file for wheel in manifest.wheels}
    for name in sorted(path.name for path in directory.iterdir()):
        if name not in listed and name not in {MANIFEST, LOCK}:
            yield Flaw(name, "is not listed")
    try:
        lock = digest_of(directory / LOCK)[0]
    except OSError as error:
        yield Flaw(LOCK, _reason(error))
    else:
        if lock != hashlib.sha256(manifest.to_lock().encode()).hexdigest():
            yield Flaw(LOCK, "is not what the manifest says")
    for wheel in manifest.wheels:
        flaw = _wheel_flaw(directory, wheel)
        if flaw is not None:
            yield flaw
    held = {wheel.name: wheel.version for wheel in manifest.wheels}
    for requirement in manifest.requirements:
        name, version = split_requirement(requirement)
        if name not in held:
            yield Flaw(MANIFEST, f"{requirement} is required and has no wheel")
        elif version not in {"", held[name]}:
            yield Flaw(MANIFEST, f"{requirement} is required, the wheel is version {held[name]}")


def _wheel_flaw(directory: Path, wheel: Wheel) -> Flaw | None:
    path = directory / wheel.file
    try:
        found = read_wheel(path) if digest_of(path) == (wheel.sha256, wheel.size) else None
    except OSError as error:
        return Flaw(wheel.file, _reason(error))
    except WheelhouseError as error:
        return Flaw(wheel.file, error.what)
    return None if found == wheel else Flaw(wheel.file, "is not the wheel that the manifest lists")


def missing_requirements(directory: Path, manifest: Manifest) -> list[str]:
    """
    Return what a wheel requires in any case (without an environment marker) and no wheel provides.

    Markers are left to the installer: the set was resolved by one.
    """
    held = {wheel.name for wheel in manifest.wheels}
    return [
        f"{wheel.name} requires {required_name(line)}, which is not listed"
        for wheel in manifest.wheels
        for line in requirements_of(directory / wheel.file)
        if ";" not in line and required_name(line) not in held
    ]


def _manifest(data: Any) -> Manifest:
    if data["format"] != FORMAT:
        raise ValueError(f"its format is {data['format']!r}, this km reads {FORMAT}")
    texts = {key: data[key] for key in _TEXTS}
    wheels = tuple(_wheel(item) for item in data["wheels"])
    requirements = tuple(data["requirements"])
    if not all(isinstance(text, str) for text in (*texts.values(), *requirements)):
        raise ValueError("a text is expected")
    for requirement in requirements:
        try:
            split_requirement(requirement)
        except PlanError as error:
            raise ValueError(f"{requirement!r} is no requirement") from error
    if len({wheel.name for wheel in wheels}) != len(wheels) or len({wheel.file for wheel in wheels}) != len(
        wheels
    ):
        raise ValueError("a distribution is listed twice")
    return Manifest(requirements=requirements, wheels=wheels, **texts)


def _wheel(item: Any) -> Wheel:
    """Raise `ValueError` unless an entry is safe to use as a path and as a line of the lock."""
    sound = (
        is_wheel_name(item["file"])
        and re.fullmatch(r"[a-z0-9]+(?:-[a-z0-9]+)*", item["name"])
        and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+!_-]*", item["version"])
        and re.fullmatch(r"[0-9a-f]{64}", item["sha256"])
        and type(item["size"]) is int
        and item["size"] >= 0
    )
    if not sound:
        raise ValueError("the entry of a wheel is not valid")
    return Wheel(**item)


def _reason(error: OSError) -> str:
    return (
        "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror or error}"
    )
