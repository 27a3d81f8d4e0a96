"""The site's sources as one folder: pages from ``docs/``, from the rest of the repository, and generated ones."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from pathlib import Path, PurePosixPath

from sitepages import claims, commands, hooks

ROOT = Path(__file__).resolve().parents[2]
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_PROJECT = {
    "README.md": "index.md",
    "SECURITY.md": "project/security.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "CHANGELOG.md": "project/changelog.md",
}


def generated() -> dict[str, str]:
    """Return the generated pages by path below the site's root."""
    return {**hooks.pages(), **commands.pages(), **claims.pages(), "packages/index.md": _packages_index()}


def written() -> dict[str, str]:
    """Return the repository's own pages: path in the repository to path in the site."""
    found = {
        f"docs/{path}": str(path).replace("README.md", "index.md")
        for path in sorted(
            PurePosixPath(p.relative_to(ROOT / "docs").as_posix()) for p in (ROOT / "docs").rglob("*.md")
        )
    }
    found |= _PROJECT
    for path in sorted([*ROOT.glob("packages/*/README.md"), *ROOT.glob("examples/*/README.md")]):
        found[path.relative_to(ROOT).as_posix()] = f"packages/{path.parent.name}.md"
    return found


def sources() -> dict[str, str]:
    """Return every page of the site by path, with links that hold within the site."""
    made, own = generated(), written()
    places = {f"docs/{path}": path for path in made} | own
    result = dict(made)
    for source, path in own.items():
        if source != "README.md":
            text = (ROOT / source).read_text(encoding="utf-8")
            result[path] = _relinked(text, source, path, places)
    for path in [path for path in result if path.endswith("/index.md")]:
        result[path] += _rest(path, result)
    return result


def resolve(page: str, target: str) -> str:
    """Return the path in the site that a link of *page* leads to."""
    return os.path.normpath((PurePosixPath(page).parent / target).as_posix())


def _rest(index: str, pages: dict[str, str]) -> str:
    """Return a table of contents of the folder's pages that the index does not list itself."""
    folder = PurePosixPath(index).parent
    listed = {
        name
        for body in re.findall(r"^```{toctree}\n(.*?)^```", pages[index], re.MULTILINE | re.DOTALL)
        for name in body.split()
    }
    names = sorted(
        PurePosixPath(path).stem for path in pages if PurePosixPath(path).parent == folder and path != index
    )
    left = [name for name in names if name not in listed]
    return "\n".join(["", "```{toctree}", ":hidden:", "", *left, "```", ""]) if left else ""


def assemble(target: Path) -> None:
    """Write the sources of the site to *target*, with what Sphinx needs; anything else there goes away."""
    pages = sources()
    target.mkdir(parents=True, exist_ok=True)
    for old in target.rglob("*.md"):
        if old.relative_to(target).as_posix() not in pages:
            old.unlink()
    for path, text in pages.items():
        place = target / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text, encoding="utf-8")
    shutil.copyfile(ROOT / "docs" / "conf.py", target / "conf.py")


def digest() -> str:
    """Return a digest of everything that the site is made from."""
    total = hashlib.sha256()
    documented = [*(ROOT / "packages/km-core/src/km_core").rglob("*.py"), *Path(__file__).parent.glob("*.py")]
    for path in sorted([ROOT / "docs" / "conf.py", ROOT / "scripts" / "docs", *documented]):
        total.update(path.read_bytes())
    for name, text in sorted(sources().items()):
        total.update(f"{name}\0{text}\0".encode())
    return total.hexdigest()


def _relinked(text: str, source: str, path: str, places: dict[str, str]) -> str:
    """Make the links of a page hold in the site; one that leaves the site becomes plain text."""

    def link(match: re.Match[str]) -> str:
        target, hash_, anchor = match[3].partition("#")
        if not target or "://" in target or target.startswith("mailto:"):
            return match[0]
        named = os.path.normpath((PurePosixPath(source).parent / target).as_posix())
        found = places.get(named) or places.get(f"{named}/README.md")
        if found is None:
            return match[2]
        near = os.path.relpath(found, PurePosixPath(path).parent)
        return f"{match[1]}[{match[2]}]({near}{hash_}{anchor})"

    pieces = re.split(r"(^```.*?^```[ \t]*$)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(piece if piece.startswith("```") else _LINK.sub(link, piece) for piece in pieces)


def _packages_index() -> str:
    names = sorted(
        path.rpartition("/")[2].removesuffix(".md") for path in written().values() if "packages/" in path
    )
    lines = [
        "# Distributions",
        "",
        "One page each: what it does, which profile fields it owns, what it runs.",
        "",
    ]
    lines += ["```{toctree}", ":maxdepth: 1", "", *names, "```", ""]
    return "\n".join(lines)
