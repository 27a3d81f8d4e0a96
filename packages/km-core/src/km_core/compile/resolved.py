"""The merged profile as a text that says where each section came from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.compile.dump import dump_document

if TYPE_CHECKING:
    from collections.abc import Iterator

    from km_core.compile.profile import LoadedProfile

_INDENT = "  "


def resolved_text(loaded: LoadedProfile) -> str:
    """
    Return the merged profile with its defaults as YAML, with the origin of each section above it.

    Reading it gives `LoadedProfile.data` again; the comments are for people.

    Args:
        loaded: a valid profile.
    """
    return "".join(f"{line}\n" for line in _lines(loaded))


def _lines(loaded: LoadedProfile) -> Iterator[str]:
    for key, value in loaded.data.items():
        if key == "spec":
            yield "spec:"
            for section, content in value.items():
                yield _INDENT + _comment(loaded, f"spec.{section}")
                yield from _dumped(section, content, _INDENT)
        else:
            if key == "metadata":
                yield _comment(loaded, key)
            yield from _dumped(key, value, "")


def _comment(loaded: LoadedProfile, path: str) -> str:
    if not loaded.wrote(path):
        return "# default"
    files = dict.fromkeys(loaded.origin(entry) for entry in sorted(loaded.written) if _within(entry, path))
    if path == "metadata":
        # Labels are merged key by key and the prefix is taken over.
        labels = loaded.data["metadata"].get("labels") or {}
        files = dict.fromkeys([loaded.file, *files, *(loaded.label_origin(label) for label in labels)])
    # A file's name may hold anything, and a line break would end the comment.
    return "# from " + ", ".join(name if name.isprintable() else repr(name) for name in files)


def _within(entry: str, path: str) -> bool:
    return entry == path or entry.startswith(f"{path}.")


def _dumped(key: str, value: Any, indent: str) -> Iterator[str]:
    for line in dump_document({key: value}).rstrip("\n").split("\n"):
        yield indent + line if line else line
