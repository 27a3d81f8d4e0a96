"""What is inspected: an installed plugin, or one in a source tree that is not installed."""

from __future__ import annotations

import tomllib
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import NotFoundError, UsageError
from km_core.plugins import GROUP

if TYPE_CHECKING:
    from collections.abc import Iterable
    from importlib.metadata import EntryPoint


@frozen
class Subject:
    """
    One plugin to be inspected.

    Attributes:
        name: of the entry point.
        module: what the entry point names.
        distribution: who brings it, with its *version*.
        requires: its dependencies as they are written in the metadata.
        licence: whether the metadata names one.
        path: directory to import it from; empty when it is installed.
        rivals: other distributions that register the same name.
    """

    name: str
    module: str
    distribution: str
    version: str
    requires: tuple[str, ...]
    licence: bool
    path: str = ""
    rivals: tuple[str, ...] = ()


def find_subjects(what: str | None) -> list[Subject]:
    """
    Return what is to be inspected, by name.

    Args:
        what: name of an installed plugin, or a directory with a ``pyproject.toml``; None for every
            installed plugin.

    Raises:
        NotFoundError: there is no such plugin or directory.
        UsageError: the directory's ``pyproject.toml`` names no plugin, or cannot be read.
    """
    entries = sorted(entry_points(group=GROUP), key=lambda entry: (entry.name, entry.value))
    if what is None:
        return [_installed(entry, entries) for entry in entries]
    found = [_installed(entry, entries) for entry in entries if entry.name == what]
    if found:
        return found
    directory = Path(what)
    if (directory / "pyproject.toml").is_file():
        return _in_tree(directory)
    from km_core.profile.kinds import nearest

    near = nearest(what, [entry.name for entry in entries])
    raise NotFoundError(
        f"no plugin is called {what!r}, and no directory with a pyproject.toml either",
        hint=f"did you mean {near}?" if near else "km plugins list",
    )


def _installed(entry: EntryPoint, entries: Iterable[EntryPoint]) -> Subject:
    dist = entry.dist
    if dist is None:
        return Subject(entry.name, entry.value, "unknown distribution", "", (), licence=False)
    # Some versions of importlib.metadata return None for a header that is not there, others raise.
    headers = {key.lower() for key in dist.metadata}
    classified = any(text.startswith("License ::") for text in dist.metadata.get_all("Classifier") or ())
    rivals = {
        other.dist.name
        for other in entries
        if other.name == entry.name and other.dist is not None and other.dist.name != dist.name
    }
    return Subject(
        name=entry.name,
        module=entry.value,
        distribution=dist.name,
        version=dist.version,
        requires=tuple(dist.requires or ()),
        licence=classified or bool(headers & {"license", "license-expression", "license-file"}),
        rivals=tuple(sorted(rivals)),
    )


def _in_tree(directory: Path) -> list[Subject]:
    file = directory / "pyproject.toml"
    try:
        project: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")).get("project", {})
    except (OSError, ValueError) as error:
        raise UsageError("the file cannot be read", where=str(file), why=str(error)) from error
    named = project.get("entry-points", {}).get(GROUP, {})
    if not named:
        raise UsageError(
            f"the project has no entry point in the group {GROUP}",
            where=str(file),
            hint=f'add [project.entry-points."{GROUP}"]',
        )
    source = directory / "src"
    classified = any(str(text).startswith("License ::") for text in project.get("classifiers", ()))
    return [
        Subject(
            name=str(name),
            module=str(module),
            distribution=str(project.get("name", "")),
            version=str(project.get("version", "")),
            requires=tuple(str(text) for text in project.get("dependencies", ())),
            licence=classified or "license" in project,
            path=str((source if source.is_dir() else directory).resolve()),
        )
        for name, module in sorted(named.items())
    ]
