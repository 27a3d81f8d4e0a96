"""
Built-in profiles, and the one rule for what ``FILE`` means on a command line.

The profiles are package data (``builtin/NAME.yaml``) and take part in `extends` under their names.  A
built-in's name always means the built-in: no file that happens to lie in the current directory or on the
search path can stand in for it.
"""

from __future__ import annotations

import re
import stat
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import ProfileError, UsageError
from km_core.profile.grammar import NAME_PATTERN

if TYPE_CHECKING:
    from collections.abc import Sequence

BUILTIN_NAMES = ("open-dev", "restricted-dev", "hardened", "sealed", "goose", "codex", "ao", "learn")
"""In the order of spec/profile.md section 9."""


@cache
def _text(name: str) -> str:
    from importlib.resources import files

    return files("km_core.compile").joinpath("builtin", f"{name}.yaml").read_text(encoding="utf-8")


class _Builtins(Mapping[str, str]):
    """Name to YAML text; a text is read when it is asked for, since most profiles extend none."""

    def __getitem__(self, name: str) -> str:
        if name not in BUILTIN_NAMES:
            raise KeyError(name)
        return _text(name)

    def __contains__(self, name: object) -> bool:
        return name in BUILTIN_NAMES

    def __iter__(self) -> Iterator[str]:
        return iter(BUILTIN_NAMES)

    def __len__(self) -> int:
        return len(BUILTIN_NAMES)


BUILTINS: Mapping[str, str] = _Builtins()
"""The built-in profiles as YAML texts, in the form `km_core.compile.load_profile` takes."""


@frozen
class ProfileSource:
    """
    Where a profile is read from.

    Attributes:
        name: what ``extends`` would call it: a built-in's name or the stem of a file.
        file: how messages name it.
        path: the file; None for a built-in.
    """

    name: str
    file: str
    path: Path | None = None

    @property
    def builtin(self) -> bool:
        """Whether it is part of km."""
        return self.path is None

    @property
    def content(self) -> Path | str:
        """What `km_core.compile.load_document` reads: the file's path, or the text of a built-in."""
        return self.path if self.path is not None else BUILTINS[self.name]


def find_profile(typed: Path | str, search_paths: Sequence[str | Path] = ()) -> ProfileSource:
    """
    Return the profile that *typed* means: the rule of every command that takes ``FILE``.

    A text is, in this order: the name of a built-in; a file; the name of a profile on the search paths
    (``NAME.yaml`` in one of the directories).  ``./hardened`` is the way to name a file ``hardened``.

    Args:
        typed: what was typed; a `Path` always means that file.
        search_paths: directories for profiles by name (`Config.profile_search_paths`); ``~`` is expanded.

    Raises:
        ProfileError: *typed* has the form of a name, and neither a profile nor a file is called so.
        UsageError: it is a directory.
    """
    if isinstance(typed, Path):
        return ProfileSource(typed.stem, str(typed), typed)
    if typed in BUILTINS:
        return ProfileSource(typed, f"<built-in {typed}>")
    path = Path(typed)
    if not _is_name(typed) or (path.exists() and not path.is_dir()):
        if path.is_dir():
            raise UsageError(
                "a profile is a file, this is a directory", where=typed, hint="name a file in it"
            )
        return ProfileSource(path.stem, typed, path)
    for found in profiles_on(search_paths):
        if found.name == typed and found.name not in BUILTINS:
            return found
    import difflib

    near = difflib.get_close_matches(typed, [*BUILTINS, *(p.name for p in profiles_on(search_paths))], n=1)
    hint = f"did you mean {near[0]}?" if near else f"name a file, or a built-in: {', '.join(BUILTINS)}"
    raise ProfileError(f"no profile and no file is called {typed}", where=typed, hint=hint, code="not-found")


def _is_name(text: str) -> bool:
    return not text.endswith((".yaml", ".yml")) and re.fullmatch(NAME_PATTERN, text) is not None


def profiles_on(search_paths: Sequence[str | Path]) -> list[ProfileSource]:
    """
    Return the profiles in the directories of the search path, in its order and by name within each.

    A directory that cannot be read holds none.  Names that an earlier directory or a built-in has are
    listed too; only the first of a name is reached by it.
    """
    found = []
    for text in dict.fromkeys(str(path) for path in search_paths):
        directory = Path(text).expanduser()
        try:
            entries = sorted(directory.glob("*.yaml"))
        except OSError:
            continue
        found += [
            ProfileSource(path.stem, str(path), path)
            for path in entries
            if _is_name(path.stem) and not _is_special(path)
        ]
    return found


def _is_special(path: Path) -> bool:
    """Say whether reading it could wait for ever or ends in a device: what no search may come upon."""
    try:
        return not stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False  # it is listed, and cannot be read


def summary_of(text: str) -> str:
    """Return the first comment of a profile's text, without the editor's modeline; empty without one."""
    for line in text.splitlines():
        stripped = line.strip()
        if not stripped.startswith("#"):
            if stripped:
                break
            continue
        words = stripped.lstrip("#").strip()
        if words and not words.startswith("yaml-language-server:"):
            return words
    return ""
