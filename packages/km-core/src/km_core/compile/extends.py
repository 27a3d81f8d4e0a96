"""
Inheritance: one parent, at most three hops, whole sections (spec/profile.md section 7).

A section the child writes replaces the parent's, whatever it holds; one it leaves out is taken over.
Only ``metadata.labels`` is merged key by key.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from km_core.compile.load import Document, ancestry, load_document
from km_core.errors import ProfileError
from km_core.profile.grammar import NAME_PATTERN
from km_core.profile.kinds import join
from km_core.types import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

MAX_HOPS = 3
"""Longest way from the loaded file to its last ancestor."""


@frozen
class Merged:
    """
    The outcome of inheritance.

    Attributes:
        data: the merged document without ``extends``, only what is written.
        chain: the documents, the loaded one first.
        owners: dotted path of each section or metadata field to the document it came from.
        complete: whether every parent was found, so that missing fields are really missing.
        problems: what is wrong with the inheritance itself, with places.
    """

    data: dict[str, Any]
    chain: tuple[Document, ...]
    owners: Mapping[str, Document]
    complete: bool
    problems: tuple[Problem, ...] = ()

    def owner(self, path: str) -> Document:
        """Return the document that *path* came from; the loaded one for what none of them wrote."""
        for candidate in ancestry(path):
            if candidate in self.owners:
                return self.owners[candidate]
        return self.chain[0]


@define
class _Chain:
    documents: list[Document]
    names: list[str]
    problems: list[Problem] = field(factory=list)

    def stop(self, message: str, hint: str = "") -> bool:
        document = self.documents[-1]
        problem = Problem("extends", message, Severity.ERROR, hint, code="profile-extends")
        self.problems.append(document.placed(problem))
        return False


def resolve_extends(
    document: Document,
    *,
    name: str,
    directory: Path | None,
    search_paths: Sequence[str | Path] = (),
    builtins: Mapping[str, str] | None = None,
) -> Merged:
    """
    Load the ancestors of *document* and merge them.

    Args:
        document: the loaded document.
        name: its name: the stem of its file.
        directory: where its file is; None when it has none.
        search_paths: directories looked in after the document's own; ``~`` is expanded.
        builtins: name to YAML text; a built-in name is never shadowed by a file.
    """
    chain = _Chain([document], [name])
    directories = [path for path in (directory, *(Path(text).expanduser() for text in search_paths)) if path]
    complete = _climb(chain, directories, builtins or {})
    data, owners = _merge(chain.documents)
    return Merged(data, tuple(chain.documents), owners, complete, tuple(chain.problems))


def _climb(chain: _Chain, directories: list[Path], builtins: Mapping[str, str]) -> bool:
    near: Path | None = None
    while True:
        child = chain.documents[-1]
        parent = child.data.get("extends")
        if "extends" not in child.data:
            return True
        if not isinstance(parent, str) or re.fullmatch(NAME_PATTERN, parent) is None:
            return False  # the model reports it, with the value it found
        if parent in chain.names:
            return chain.stop(f"forms a cycle: {' -> '.join([*chain.names, parent])}")
        if len(chain.documents) > MAX_HOPS:
            way = " -> ".join([*chain.names, parent])
            return chain.stop(f"depth exceeded: at most {MAX_HOPS} parents, this is {way}")
        places = [near, *directories] if near is not None else directories
        try:
            document, near = _find(parent, places, builtins)
        except ProfileError as error:
            return chain.stop(f"parent {parent} fails to load: {error}")
        if document is None:
            return chain.stop(f"parent {parent} is not found", _not_found_hint(parent, places, builtins))
        errors = [problem for problem in document.problems if problem.severity is Severity.ERROR]
        if not document.usable:
            return chain.stop(f"parent {parent} fails to load: {errors[0]}")
        if not _same_version(chain, document, parent):
            return False
        _compare_name(chain, document, parent)
        chain.documents.append(document)
        chain.names.append(parent)


def _find(
    name: str, directories: Sequence[Path], builtins: Mapping[str, str]
) -> tuple[Document | None, Path | None]:
    if name in builtins:
        return load_document(builtins[name], file=f"<built-in {name}>"), None
    for directory in directories:
        path = directory / f"{name}.yaml"
        try:
            found = path.is_file()
        except OSError as error:
            raise ProfileError(
                "the directory cannot be read", where=str(directory), why=str(error)
            ) from error
        if found:
            return load_document(path), directory
    return None, None


def _not_found_hint(name: str, directories: Sequence[Path], builtins: Mapping[str, str]) -> str:
    tried = ", ".join(str(directory / f"{name}.yaml") for directory in dict.fromkeys(directories))
    known = f"built-ins: {', '.join(sorted(builtins))}" if builtins else ""
    return "; ".join(part for part in (f"looked for {tried}" if tried else "", known) if part)


def _same_version(chain: _Chain, parent: Document, name: str) -> bool:
    ours, theirs = chain.documents[-1].data.get("apiVersion"), parent.data.get("apiVersion")
    if not isinstance(ours, str) or ours == theirs:
        return True
    message = f"parent {name} ({parent.file}) has apiVersion {theirs}, this document {ours}"
    return chain.stop(message, "all documents of a chain have the same apiVersion")


def _compare_name(chain: _Chain, parent: Document, name: str) -> None:
    metadata = parent.data.get("metadata")
    written = metadata.get("name") if isinstance(metadata, dict) else None
    if isinstance(written, str) and written != name:
        message = f"is {written}, but the profile is extended by its file name, {name}"
        problem = Problem("metadata.name", message, Severity.WARNING, code="profile-extends")
        chain.problems.append(parent.placed(problem))


def _merge(chain: Sequence[Document]) -> tuple[dict[str, Any], dict[str, Document]]:
    child = chain[0]
    data = {key: value for key, value in child.data.items() if key != "extends"}
    owners: dict[str, Document] = {}
    if len(chain) == 1:
        return data, owners
    data["metadata"] = _merge_metadata(chain, owners)
    if data["metadata"] is None:
        del data["metadata"]
    if "spec" not in child.data or isinstance(child.data["spec"], dict):
        spec: dict[str, Any] = {}
        for document in chain:
            sections = document.data.get("spec")
            for key, value in sections.items() if isinstance(sections, dict) else ():
                if key not in spec:
                    spec[key] = value
                    owners[f"spec.{key}"] = document
        if spec or "spec" in child.data:
            data["spec"] = spec
    return data, owners


def _merge_metadata(chain: Sequence[Document], owners: dict[str, Document]) -> Any:
    own = chain[0].data.get("metadata", {})
    if not isinstance(own, dict):
        return own
    merged: dict[str, Any] = {}
    labels: dict[str, Any] = {}
    for document in chain:
        part = document.data.get("metadata")
        if not isinstance(part, dict):
            continue
        for key, value in part.items():
            inherited = key == "prefix" or document is chain[0]
            if key == "labels" and isinstance(value, dict):
                for label, text in value.items():
                    if label not in labels:
                        labels[label] = text
                        owners[join("metadata.labels", label)] = document
            elif inherited and key not in merged:
                merged[key] = value
                owners[f"metadata.{key}"] = document
    if labels and not isinstance(merged.get("labels", {}), dict):
        return merged
    if labels:
        merged["labels"] = labels
    return merged if merged or "metadata" in chain[0].data else None
