"""The operator's time zone, as an IANA name: what ``km at`` reads wall times in."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.schedule import TimeExpressionError, find_zone

if TYPE_CHECKING:
    from collections.abc import Mapping

_DATABASE = "/zoneinfo/"
_LOCALTIME = Path("/etc/localtime")
_NAME_FILE = Path("/etc/timezone")


def resolve_timezone(
    given: str | None,
    env: Mapping[str, str] | None = None,
    *,
    localtime: Path = _LOCALTIME,
    name_file: Path = _NAME_FILE,
) -> str:
    """
    Return the name of the zone that applies to a text which names none (spec/cli.md section 9.2).

    That is the first of: *given* (``--tz``), config ``timezone``, ``TZ``, the host's zone.

    Raises:
        TimeExpressionError: ``invalid_zone``: a zone is set that is none, or the host's has no IANA name.
        ConfigError: the configuration is wrong.
    """
    env = os.environ if env is None else env
    if given is not None:
        return find_zone(given).name
    from km_core.config import load_config

    configured = load_config(env).timezone
    if configured:
        return find_zone(configured).name
    name = _from_variable(env["TZ"], localtime) if "TZ" in env else _of_host(localtime, name_file)
    if name:
        try:
            return find_zone(name).name
        except TimeExpressionError:
            if "TZ" not in env:
                raise
    raise TimeExpressionError(
        "invalid_zone",
        f"TZ={env['TZ'][:40]!r} is no IANA name" if "TZ" in env else "the host's time zone has no IANA name",
        "give --tz, or set timezone in the configuration, for example Europe/Berlin",
    )


def _from_variable(value: str, localtime: Path) -> str:
    """Return the name in ``TZ`` (POSIX, and ``:NAME`` or a path as the C library takes them)."""
    value = value.removeprefix(":")
    if not value:
        return "UTC"
    if value == str(localtime):
        return _of_link(localtime)
    return value.partition(_DATABASE)[2] if value.startswith("/") else value


def _of_host(localtime: Path, name_file: Path) -> str:
    linked = _of_link(localtime)
    if linked:
        return linked
    try:
        named = name_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        named = ""
    # Without either file the C library's own time is UTC.
    return named or ("" if localtime.exists() else "UTC")


def _of_link(localtime: Path) -> str:
    """Return the zone that a symbolic link into the database names: the first such link, not its target."""
    place = localtime
    for _ in range(8):
        try:
            target = str(place.readlink())
        except OSError:
            return ""
        if _DATABASE in target:
            return target.partition(_DATABASE)[2].removeprefix("posix/")
        place = place.parent / target
    return ""
