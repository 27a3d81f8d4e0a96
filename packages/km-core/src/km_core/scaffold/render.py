"""
Filling templates: the files of a new distribution, as text.

Templates are package data below ``templates/``: those of ``common`` and those of the kind.  ``MODULE`` in
a path and ``<<word>>`` in a text are filled in; a word that is not known is an error of the template.  A
kind's ``KIT`` names modules of the conformance kit that its distribution begins with: `km_core.testing`
keeps a small control plane that passes its own contract, and there need not be two.
"""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

from km_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

    from km_core.scaffold.names import Names

SUFFIX = ".tmpl"
_PLACEHOLDER = re.compile(r"<<([a-z_]+)>>")
_AUTHOR = re.compile(r"(?P<name>[^<>\"\\]+?)\s*(?:<(?P<email>[^<>\"\\\s]+@[^<>\"\\\s]+)>)?")


def render(names: Names, *, author: str = "", core_version: str = "") -> dict[str, str]:
    """
    Return the files of a distribution: text by path, in order of the paths.

    Args:
        names: what things are called.
        author: ``Name`` or ``Name <address>``; empty leaves a placeholder.
        core_version: the km-core it is made for; default: the running one.

    Raises:
        UsageError: the author cannot stand in the distribution's metadata.
    """
    if not core_version:
        from km_core import __version__ as core_version
    person, table = _author(author or "Your Name")
    values = {
        "author": person,
        "author_table": table,
        "class": names.class_prefix,
        "core_range": core_range(core_version),
        "dist": names.dist,
        "kind": names.kind,
        "module": names.module,
        "plugin": names.plugin,
        "variable": names.variable,
        "word": names.word,
        "word_upper": names.word.upper().replace("-", "_"),
    }
    root = resources.files("km_core.scaffold") / "templates"
    values |= _words_of_kind(root / names.kind / "WORDS", values)
    files: dict[str, str] = {}
    for folder in ("common", names.kind):
        for path, template in _templates(root / folder):
            target = path.removesuffix(SUFFIX).replace("MODULE", names.module)
            files[target] = _fill(template, values, path)
    files |= _from_kit(root / names.kind / "KIT", names)
    return dict(sorted(files.items()))


def core_range(version: str) -> str:
    """Return the versions of km-core that a plugin made with *version* fits: ``>=0.1,<0.2``, ``>=1.2,<2``."""
    major, minor = (int(part) for part in re.findall(r"\d+", version)[:2])
    return f">=0.{minor},<0.{minor + 1}" if major == 0 else f">={major}.{minor},<{major + 1}"


def _words_of_kind(source: Traversable, values: dict[str, str]) -> dict[str, str]:
    """Read what a kind says of itself: ``name: text`` lines."""
    found = {}
    for line in source.read_text(encoding="utf-8").splitlines():
        key, _, text = line.partition(": ")
        found[key] = _fill(text, values, str(source))
    return found


def _from_kit(listing: Traversable, names: Names) -> dict[str, str]:
    """Return the kit's modules that a kind begins with, under the distribution's own names."""
    if not listing.is_file():
        return {}
    pairs = [line.split() for line in listing.read_text(encoding="utf-8").splitlines()]
    modules = {
        source.removesuffix(".py"): target.rpartition("/")[2].removesuffix(".py") for source, target in pairs
    }
    kit, files = resources.files("km_core.testing"), {}
    for source, target in pairs:
        text = (kit / source).read_text(encoding="utf-8")
        for old, new in modules.items():
            text = text.replace(
                f"from km_core.testing import {old} as {new}", f"from {names.module} import {new}"
            )
            text = text.replace(f"km_core.testing.{old}", f"{names.module}.{new}")
        for old, new in (
            ("FakeControlPlane", f"{names.class_prefix}Plane"),
            ("FakeControl", f"{names.class_prefix}Control"),
            ("FakePolicies", "Policies"),
            ("FakeSockets", "Sockets"),
            ("fake_offer", "offer_of"),
            ("fake-control", names.word),
            ('"fake"', f'"{names.word}"'),
            (", for tests of plugins.", "."),
        ):
            text = text.replace(old, new)
        files[target.replace("MODULE", names.module)] = _own_imports_last(text, names.module)
    return files


def _own_imports_last(text: str, module: str) -> str:
    """Put the imports of *module* behind those of km_core, which are foreign to it."""
    lines = re.sub(r"(\nfrom attrs [^\n]*)\n\n(from km_core)", r"\1\n\2", text).splitlines()
    own = [line for line in lines if line.startswith(f"from {module}")]
    rest = [line for line in lines if line not in own]
    last = max((at for at, line in enumerate(rest) if line.startswith("from km_core")), default=0)
    return "\n".join([*rest[: last + 1], *(["", *own] if own else []), *rest[last + 1 :]]) + "\n"


def _templates(folder: Traversable, path: str = "") -> Iterator[tuple[str, str]]:
    for entry in folder.iterdir():
        place = f"{path}{entry.name}"
        if entry.is_dir():
            yield from _templates(entry, f"{place}/")
        elif entry.name.endswith(SUFFIX):
            yield place, entry.read_text(encoding="utf-8")


def _fill(template: str, values: dict[str, str], where: str) -> str:
    def value(match: re.Match[str]) -> str:
        try:
            return values[match[1]]
        except KeyError:
            raise KeyError(f"{where}: nothing fills <<{match[1]}>>") from None

    return _PLACEHOLDER.sub(value, template)


def _author(text: str) -> tuple[str, str]:
    """Return the author for prose and as a table of ``pyproject.toml``."""
    match = _AUTHOR.fullmatch(text.strip())
    if match is None or not text.isprintable():
        raise UsageError(f"{text!r} cannot be an author", hint='write "Name" or "Name <name@example.org>"')
    email = f', email = "{match["email"]}"' if match["email"] else ""
    return match["name"], f'{{ name = "{match["name"]}"{email} }}'
