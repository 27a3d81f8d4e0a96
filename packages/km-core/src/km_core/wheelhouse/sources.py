"""
Where an installed distribution came from, and building its wheel again from there.

Installers write down a direct origin (PEP 610, ``direct_url.json``): a directory for a workspace's
distributions, a wheel file for one that was installed from it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from attrs import frozen

from km_core.audit.redact import redact_text
from km_core.types import canonical_distribution
from km_core.wheelhouse.wheels import (
    WheelhouseError,
    digest_of,
    read_wheel,
    required_name,
    without_extras,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.wheelhouse.wheels import Wheel

EPOCH = 315_532_800
"""1980-01-01, the first moment a zip archive can hold: every member's time, so that bytes repeat."""
_BUILD_S = 300.0
# Calls the backend that pyproject.toml names (PEP 517), in this environment.
_BUILD = """
import importlib, sys, tomllib
with open("pyproject.toml", "rb") as file:
    table = tomllib.load(file).get("build-system", {})
module, _, attribute = table.get("build-backend", "setuptools.build_meta:__legacy__").partition(":")
backend = importlib.import_module(module)
for name in filter(None, attribute.split(".")):
    backend = getattr(backend, name)
backend.build_wheel(sys.argv[1])
"""


@frozen
class Source:
    """
    Where the wheel of an installed distribution is made from.

    Attributes:
        name: canonical name.
        version: the installed version.
        path: a directory with ``pyproject.toml``, or a wheel file.
        sha256: recorded digest of the wheel file; empty when none was recorded.
    """

    name: str
    version: str
    path: Path
    sha256: str = ""


def installed_source(name: str) -> Source | None:
    """Return where an installed distribution came from; None when that is an index or is gone."""
    dist = find(name)
    if dist is None:
        return None
    origin = _origin(dist)
    parts = urlsplit(str(origin.get("url") or ""))
    if parts.scheme != "file" or parts.netloc not in {"", "localhost"}:
        return None
    path = Path(unquote(parts.path))
    if isinstance(origin.get("dir_info"), dict):
        return (
            Source(canonical_distribution(name), dist.version, path)
            if (path / "pyproject.toml").is_file()
            else None
        )
    if path.suffix == ".whl" and path.is_file():
        archive = origin.get("archive_info") or {}
        recorded = str((archive.get("hashes") or {}).get("sha256") or "")
        legacy = str(archive.get("hash") or "")
        return Source(
            canonical_distribution(name), dist.version, path, recorded or legacy.partition("sha256=")[2]
        )
    return None


def find(name: str) -> Distribution | None:
    """Return an installed distribution, or None."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def is_editable(dist: Distribution) -> bool:
    """Say whether what is installed is a link to a source directory."""
    return bool((_origin(dist).get("dir_info") or {}).get("editable"))


def installed_closure(names: Iterable[str]) -> dict[str, str]:
    """Return *names* and what they require in turn, as far as it is installed, with versions."""
    found: dict[str, str] = {}
    todo = [canonical_distribution(name) for name in names]
    while todo:
        name = todo.pop()
        dist = None if name in found else find(name)
        if dist is not None:
            found[name] = dist.version
            todo += [required_name(line) for line in without_extras(dist.requires or [])]
    return found


def build_wheel(source: Source, target: Path) -> Wheel:
    """
    Put a source's wheel into an empty directory; the same source gives the same bytes.

    The backend runs in this environment, without isolation and without the network.

    Raises:
        WheelhouseError: it cannot be built, or is another version than the installed one.
    """
    if source.path.is_dir():
        _call_backend(source, target)
    else:
        shutil.copyfile(source.path, target / source.path.name)
        if source.sha256 and digest_of(target / source.path.name)[0] != source.sha256:
            raise WheelhouseError(
                "the wheel has changed since it was installed",
                where=source.path.name,
                hint="install it again",
            )
    made = sorted(target.iterdir())
    if len(made) != 1:
        raise WheelhouseError("the build made no single wheel", where=source.name)
    wheel = read_wheel(made[0])
    if (wheel.name, wheel.version) != (source.name, source.version):
        raise WheelhouseError(
            f"the source makes {wheel.name} {wheel.version}, but {source.name} {source.version} is installed",
            where=source.name,
            hint="install it again from its source",
        )
    return wheel


def _call_backend(source: Source, target: Path) -> None:
    environment = os.environ | {
        "SOURCE_DATE_EPOCH": str(EPOCH),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "TZ": "UTC",
        "LC_ALL": "C.UTF-8",
    }
    try:
        # -P: the source directory must not shadow the backend (PEP 517).
        done = subprocess.run(
            [sys.executable, "-P", "-c", _BUILD, str(target.absolute())],
            cwd=source.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BUILD_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise WheelhouseError("the wheel cannot be built", where=source.name, why=str(error)) from error
    if done.returncode != 0:
        why = last_line(done.stderr)
        missing = "No module named" in why
        raise WheelhouseError(
            "the wheel cannot be built",
            where=source.name,
            why=why,
            hint="install its build backend beside km (for km's own: hatchling)" if missing else "",
        )


def last_line(text: str) -> str:
    """Return the last line that says something, without secrets."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return redact_text(lines[-1])[:500] if lines else ""


def _origin(dist: Distribution) -> dict[str, Any]:
    try:
        data = json.loads(dist.read_text("direct_url.json") or "{}")
    except ValueError:
        return {}
    return data if isinstance(data, dict) else {}
