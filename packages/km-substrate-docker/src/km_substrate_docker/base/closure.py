"""
What Python code the gate needs: a closure over the installed distributions.

The gate in a container runs exactly the code and the versions of the km that starts it, so the base
image's name ends in a digest of them.  A changed file or version is another name, an image that is
not there, and a refusal that says how to build it: never a gate that is older than its policy.
"""

from __future__ import annotations

import hashlib
import json
import re
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution, entry_points
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from attrs import frozen

from km_core.errors import ProvisionError
from km_core.types import canonical_distribution

if TYPE_CHECKING:
    from collections.abc import Iterator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"\bextra\s*==")
_TAG = re.compile(
    r"(?:py3|py2\.py3|cp(?P<cp>3\d+))-(?P<abi>none|abi3|cp3\d+)-(?:any|manylinux_(?P<major>\d+)_(?P<minor>\d+)_(?P<arch>\w+))"
)
_OUTSIDE = ("km-substrate-", "km-embedded")


@frozen
class Target:
    """The image a wheel must fit: Python and glibc as (major, minor), the machine as in wheel tags."""

    python: tuple[int, int]
    glibc: tuple[int, int]
    machine: str


@frozen
class Part:
    """
    One distribution of the closure.

    Attributes:
        fingerprint: changes whenever what would be copied changes.
        editable: it is worked on in place (its files are elsewhere and change under one version).
        tags: the wheel tags it was installed from.
    """

    name: str
    version: str
    fingerprint: str
    editable: bool
    tags: tuple[str, ...]

    def fits(self, target: Target) -> bool:
        """Tell whether the installed files are those an installer would put into *target*."""
        return any(_fits(tag, target) for tag in self.tags)


def gate_closure() -> tuple[Part, ...]:
    """
    Return the distributions of the gate, by name.

    Roots are the plugins that may act in a gate: all but control planes and substrates, which drive
    it from outside.  A plugin of a third party is one of them, so its meters work in containers too.

    Raises:
        ProvisionError: a required distribution is not installed.
    """
    roots = {point.dist.name for point in entry_points(group="km.plugins") if point.dist is not None}
    todo = [
        canonical_distribution(name)
        for name in roots
        if not canonical_distribution(name).startswith(_OUTSIDE)
    ]
    found: dict[str, Part] = {}
    while todo:
        name = todo.pop()
        if name in found:
            continue
        dist = _distribution(name)
        if dist is None:
            raise ProvisionError(
                f"the gate needs the distribution {name}, which is not installed",
                hint="repair the environment of km",
            )
        found[name] = _part(name, dist)
        todo += _requirements(dist)
    return tuple(found[name] for name in sorted(found))


@cache
def base_digest() -> str:
    """Return 12 hex digits over the closure and the programs that run in the image."""
    digest = hashlib.sha256()
    for part in gate_closure():
        digest.update(f"{part.name}\0{part.version}\0{part.fingerprint}\n".encode())
    for path in sorted((Path(__file__).parent / "inside").glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:12]


def files_of(part: Part) -> Iterator[tuple[str, Path]]:
    """
    Yield (path below the library directory, file) for everything a part brings.

    Scripts and byte code are left out: the image has its own interpreter.
    """
    dist = distribution(part.name)
    for path in dist.files or ():
        if path.parts[0] == ".." or "__pycache__" in path.parts or path.suffix in {".pyc", ".pth"}:
            continue
        located = Path(str(dist.locate_file(path)))
        if located.is_file():
            yield str(path), located
    for root in _editable_roots(dist):
        yield from _tree(root)


def _tree(root: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(root.rglob("*")):
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".pyc":
            yield str(path.relative_to(root)), path


def _part(name: str, dist: Distribution) -> Part:
    wheel = dist.read_text("WHEEL") or ""
    tags = tuple(line.removeprefix("Tag:").strip() for line in wheel.splitlines() if line.startswith("Tag:"))
    roots = _editable_roots(dist)
    digest = hashlib.sha256()
    if roots:
        digest.update((dist.read_text("entry_points.txt") or "").encode())
        for root in roots:
            for relative, path in _tree(root):
                digest.update(relative.encode() + b"\0" + path.read_bytes())
    else:
        digest.update((dist.read_text("RECORD") or "").encode())
    return Part(name, dist.version, digest.hexdigest(), bool(roots), tags)


def _editable_roots(dist: Distribution) -> list[Path]:
    """Return the source directories of an editable distribution (PEP 660 path files), or nothing."""
    url = json.loads(dist.read_text("direct_url.json") or "{}")
    if not (url.get("dir_info") or {}).get("editable"):
        return []
    home = Path(unquote(urlsplit(url["url"]).path))
    roots = []
    for path in dist.files or ():
        if path.suffix == ".pth":
            lines = Path(str(dist.locate_file(path))).read_text(encoding="utf-8").splitlines()
            roots += [Path(line) for line in lines if line.strip() and Path(line).is_dir()]
    # Without path files (an import hook) the layout of this workspace is the only sound guess.
    return roots or [root for root in (home / "src",) if root.is_dir()]


def _requirements(dist: Distribution) -> list[str]:
    names = []
    for line in dist.requires or ():
        text, _, marker = line.partition(";")
        match = _NAME.match(text.strip())
        if match is None or _EXTRA.search(marker):
            continue
        name = canonical_distribution(match[0])
        # The installer evaluated the marker for this machine: what it left out is not needed.
        if not marker or _distribution(name) is not None:
            names.append(name)
    return names


def _distribution(name: str) -> Distribution | None:
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def _fits(tag: str, target: Target) -> bool:
    """Judge one wheel tag (PEP 425, PEP 600)."""
    match = _TAG.fullmatch(tag)
    if match is None:
        return False
    if match["arch"] and (
        match["arch"] != target.machine or (int(match["major"]), int(match["minor"])) > target.glibc
    ):
        return False
    if match["cp"] is None:
        return match["abi"] == "none"
    needs = (3, int(match["cp"][1:]))
    return needs <= target.python if match["abi"] == "abi3" else needs == target.python
