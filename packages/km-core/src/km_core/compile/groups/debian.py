"""``@debian-packages``: the package sources of the operator's apt."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.compile.groups.mirrors import Mirrors, ask, private_addresses
from km_core.errors import PlanError
from km_core.types import GroupResolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

NAME = "@debian-packages"
_LOCAL = frozenset({"file", "copy", "cdrom"})
_ONE_LINE = re.compile(r"deb(?:-src)?\s+(?:\[[^\]]*\]\s*)?(\S+)\s+\S")


def resolve_debian_packages(ask: Callable[[], Iterable[str]] | None = None) -> GroupResolution:
    """
    Resolve ``@debian-packages`` from the operator's apt sources (sources.list(5)).

    Every enabled ``http`` and ``https`` source becomes a ``host:port`` entry, Debian's own and others;
    sources on this machine's disks are left out.  apt has no variable for its sources: the sandbox's
    image must use the same mirrors.

    Args:
        ask: returns the URIs of the enabled sources; for tests.

    Raises:
        PlanError: there is no apt, none of its sources is reached over the network, one is reached in a
            way that names no host (``mirror+…``), or one holds credentials.
    """
    mirrors = Mirrors(NAME, "apt")
    for uri in sorted(set((ask or _ask_apt)())):
        scheme = uri.partition(":")[0].lower()
        if not mirrors.add(uri) and scheme not in _LOCAL:
            raise mirrors.refusal(
                f"apt reaches a source by {scheme}, which does not say which hosts that are",
                hint="configure apt with http or https sources",
            )
    if not mirrors.hosts:
        raise mirrors.refusal(
            "apt has no source that is reached over the network, so there is no host to allow",
            hint=f"remove {NAME} from allowedHosts",
        )
    return GroupResolution(
        name=NAME,
        hosts=tuple(sorted(mirrors.hosts)),
        private=private_addresses(mirrors.hosts),
        source="the operator's apt sources",
    )


def _ask_apt() -> Iterable[str]:
    apt = shutil.which("apt-get")
    if apt is not None:
        # indextargets would be the nicer question, but knows only what was downloaded before; this one
        # says what `apt-get update` would ask for, and asks nobody.
        text = ask([apt, "--print-uris", "update"], group=NAME)
        if text is not None:
            return [line.split("'")[1] for line in text.splitlines() if line.startswith("'")]
    etc = Path("/etc/apt")
    if not etc.is_dir():
        raise PlanError(
            f"this machine has no apt, so {NAME} cannot be resolved",
            where=NAME,
            why="the mirrors are read from apt's own sources",
            hint="name your Debian mirror's host in allowedHosts instead",
        )
    return source_uris(etc)


def source_uris(etc: Path) -> list[str]:
    """
    Return the URIs of the enabled sources below apt's configuration directory.

    Both forms of sources.list(5) are read: ``*.list`` in one line each, ``*.sources`` in stanzas.

    Args:
        etc: ``/etc/apt``.
    """
    parts = etc / "sources.list.d"
    uris: list[str] = []
    for path in (etc / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))):
        try:
            text = path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            continue
        except OSError as error:
            raise PlanError(
                "a file of apt's sources cannot be read", where=str(path), why=error.strerror or ""
            ) from error
        uris += _stanzas(text) if path.suffix == ".sources" else _lines(text)
    return uris


def _lines(text: str) -> Iterator[str]:
    for line in text.splitlines():
        match = _ONE_LINE.match(line.strip())
        if match is not None:
            yield match[1]


def _stanzas(text: str) -> Iterator[str]:
    """Yield the URIs of deb822 stanzas; a field goes on in lines that start with a blank."""
    for stanza in re.split(r"\n[ \t]*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line.startswith("#"):
                continue
            if line[:1] in {" ", "\t"} and name:
                fields[name] += " " + line.strip()
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        if fields.get("enabled", "yes").lower() not in {"no", "false", "without", "off", "disable", "0"}:
            yield from fields.get("uris", "").split()
