"""``@python-packages``: the package indexes of the operator's pip."""

from __future__ import annotations

import shutil
import sys
from typing import TYPE_CHECKING

from km_core.compile.groups.mirrors import Mirrors, ask_json, private_addresses
from km_core.errors import PlanError
from km_core.types import GroupResolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

NAME = "@python-packages"

# Run by an interpreter that has pip: prints pip's effective settings and its built-in default hosts.
_ASK_PIP = """
import json, subprocess, sys
from pip._internal.models.index import PyPI
lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
json.dump({"settings": lines.splitlines(), "index": PyPI.simple_url, "files": PyPI.file_storage_domain}, sys.stdout)
"""


def resolve_python_packages(ask: Callable[[], Mapping[str, object]] | None = None) -> GroupResolution:
    """
    Resolve ``@python-packages`` from the operator's pip configuration.

    Indexes reached over ``https`` or ``http`` become ``host:port`` entries; local ``file:`` indexes are
    left out, since they do not exist inside.  When the built-in index is used its file host is added.

    Raises:
        PlanError: no pip is found, or an index needs credentials (they never enter a sandbox).
    """
    answer = (ask or _ask_pip)()
    lines = answer.get("settings")
    settings = _settings(str(line) for line in (lines if isinstance(lines, list) else ()))
    mirrors = Mirrors(NAME, "pip")
    for url in [settings.get("index-url") or str(answer.get("index", "")), *_extra(settings)]:
        mirrors.add(url)
    if not settings.get("index-url"):
        mirrors.add_host(str(answer.get("files", "")), 443)
    if not mirrors.urls:
        raise mirrors.refusal(
            "pip is configured with local indexes only, so there is no host to allow",
            hint=f"remove {NAME} from allowedHosts",
        )
    first, *more = mirrors.urls
    # uv does not read pip's configuration.
    env = [("PIP_DISABLE_PIP_VERSION_CHECK", "1"), ("PIP_INDEX_URL", first), ("UV_DEFAULT_INDEX", first)]
    if more:
        env += [("PIP_EXTRA_INDEX_URL", " ".join(more)), ("UV_INDEX", " ".join(more))]
    return GroupResolution(
        name=NAME,
        hosts=tuple(sorted(mirrors.hosts)),
        private=private_addresses(mirrors.hosts),
        source="the operator's pip configuration",
        env=tuple(env),
    )


def _extra(settings: Mapping[str, str]) -> list[str]:
    return settings.get("extra-index-url", "").split()


def _ask_pip() -> Mapping[str, object]:
    tried = []
    for candidate in (shutil.which("python3"), sys.executable, "/usr/bin/python3"):
        if not candidate or candidate in tried:
            continue
        tried.append(candidate)
        answer = ask_json([candidate, "-c", _ASK_PIP], group=NAME)
        if answer is not None:
            return answer
    raise PlanError(
        f"no Python with pip is found, so {NAME} cannot be resolved",
        where=NAME,
        why="tried " + ", ".join(tried),
        hint="install pip (on Debian: python3-pip), or name your index's host in allowedHosts instead",
    )


def _settings(lines: Iterable[str]) -> dict[str, str]:
    """Read ``pip config list``: later sources win, the environment over every file."""
    result: dict[str, str] = {}
    from_env: dict[str, str] = {}
    for line in lines:
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        text = " ".join(value.strip().strip("'\"").replace("\\n", " ").split())
        if section == ":env:":
            from_env[name] = text
        elif section in {"global", "install"}:
            result[name] = text
    return result | from_env
