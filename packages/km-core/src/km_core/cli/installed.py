"""
What is installed, read from the metadata directories themselves.

`importlib.metadata` parses every installed distribution and imports the mail package: 20 to 100 ms, the
largest part of ``km --help``.  Help, version and completion need two facts only, which stand in files whose
form is fixed (Core metadata and entry points specifications); running a plugin's command still goes
through `importlib.metadata`.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

COMMANDS = "km.commands"


def plugin_commands() -> dict[str, str]:
    """Return the commands that plugins offer, by name, with the distribution's summary."""
    found: dict[str, str] = {}
    for directory in _metadata_directories():
        for name in _entries(_read(directory, "entry_points.txt")):
            found.setdefault(name, _field(_read(directory, "METADATA"), "Summary"))
    return found


def version() -> str:
    """Return km-core's version."""
    for directory in _metadata_directories():
        name, _, rest = os.path.basename(directory).partition("-")  # noqa: PTH119 - a plain string, fast
        if name.lower() == "km_core":
            return rest.removesuffix(".dist-info")
    from importlib.metadata import version as installed

    return installed("km-core")


def _metadata_directories() -> Iterator[str]:
    for path in dict.fromkeys(sys.path):
        try:
            names = sorted(os.listdir(path or "."))  # noqa: PTH208 - a plain string, fast
        except OSError:
            continue
        for name in names:
            if name.endswith(".dist-info"):
                yield f"{path or '.'}/{name}"


def _entries(text: str) -> Iterator[str]:
    """Yield the names of one group of an ``entry_points.txt`` (an INI file)."""
    inside = False
    for line in text.splitlines():
        entry = line.strip()
        if entry.startswith("["):
            inside = entry == f"[{COMMANDS}]"
        elif inside and entry and entry[0] not in "#;" and "=" in entry:
            yield entry.partition("=")[0].strip()


def _field(text: str, name: str) -> str:
    """Return a header of a ``METADATA`` file; the body after the first empty line is not read."""
    for line in text.splitlines():
        if not line:
            break
        if line.startswith(f"{name}: "):
            return line[len(name) + 2 :].strip()
    return ""


def _read(directory: str, name: str) -> str:
    try:
        with open(f"{directory}/{name}", encoding="utf-8") as source:  # noqa: PTH123 - as above
            return source.read()
    except (OSError, UnicodeDecodeError):
        return ""
