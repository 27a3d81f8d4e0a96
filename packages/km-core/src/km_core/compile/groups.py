"""
Egress groups: resolving ``@name`` entries from the operator's own package-client configuration.

Resolution happens before compilation and its outcome is an explicit input of the plan, so compiling
stays pure.  No index host stands in this repository: the default index is asked of the operator's own
pip.
"""

from __future__ import annotations

import ipaddress
import json
import shutil
import socket
import subprocess
import sys
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from km_core.errors import PlanError
from km_core.types import EgressGroup, GroupResolution

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from km_core.types.group import GroupResolution as Resolution

# Run by an interpreter that has pip: prints pip's effective settings and its built-in default hosts.
_ASK_PIP = """
import json, subprocess, sys
from pip._internal.models.index import PyPI
lines = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
json.dump({"settings": lines.splitlines(), "index": PyPI.simple_url, "files": PyPI.file_storage_domain}, sys.stdout)
"""


def core_groups() -> dict[str, EgressGroup]:
    """Return the groups that km-core itself offers."""
    return {
        "@python-packages": EgressGroup(
            "@python-packages", "the operator's Python package index", resolve_python_packages
        )
    }


def resolve_groups(names: Iterable[str], groups: Mapping[str, EgressGroup]) -> tuple[Resolution, ...]:
    """
    Resolve the groups a profile names, sorted by name.

    Raises:
        PlanError: a group is not offered by anything installed, or cannot be resolved.
    """
    result = []
    for name in sorted(set(names)):
        if name not in groups:
            raise PlanError(
                f"nothing installed offers the egress group {name}",
                where="spec.network.egress.allowedHosts",
                hint="offered: " + (", ".join(sorted(groups)) or "none"),
            )
        result.append(groups[name].resolve())
    return tuple(result)


def resolve_python_packages(ask: Callable[[], Mapping[str, object]] | None = None) -> GroupResolution:
    """
    Resolve ``@python-packages`` from the operator's pip configuration.

    Indexes reached over ``https`` or ``http`` become ``host:port`` entries; local ``file:`` indexes are
    left out, since they do not exist inside.  When the built-in index is used its file host is added.

    Raises:
        PlanError: no pip is found, or an index needs credentials (they never enter a sandbox).
    """
    answer = (ask or _ask_pip)()
    settings = _settings([str(line) for line in _list(answer.get("settings"))])
    index = settings.get("index-url", "") or str(answer.get("index", ""))
    extra = settings.get("extra-index-url", "").split()
    hosts: set[str] = set()
    urls: list[str] = []
    for url in [index, *extra]:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            continue
        if parts.username or parts.password:
            raise PlanError(
                "the package index needs credentials, which do not enter a sandbox",
                where="@python-packages",
                hint="configure pip with an index URL without user and password",
            )
        hosts.add(f"{parts.hostname.lower()}:{parts.port or (443 if parts.scheme == 'https' else 80)}")
        urls.append(url)
    if not settings.get("index-url"):
        hosts.add(f"{str(answer.get('files', '')).lower()}:443")
    if not urls:
        raise PlanError(
            "pip is configured with local indexes only, so there is no host to allow",
            where="@python-packages",
            hint="remove @python-packages from allowedHosts",
        )
    env = [("PIP_DISABLE_PIP_VERSION_CHECK", "1"), ("PIP_INDEX_URL", urls[0])]
    if len(urls) > 1:
        env.append(("PIP_EXTRA_INDEX_URL", " ".join(urls[1:])))
    return GroupResolution(
        name="@python-packages",
        hosts=tuple(sorted(hosts)),
        private=_private_addresses(hosts),
        source="the operator's pip configuration",
        env=tuple(env),
    )


def _ask_pip() -> Mapping[str, object]:
    tried = []
    for candidate in (shutil.which("python3"), sys.executable, "/usr/bin/python3"):
        if not candidate or candidate in tried:
            continue
        tried.append(candidate)
        run = subprocess.run(
            [candidate, "-c", _ASK_PIP],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            stdin=subprocess.DEVNULL,
        )
        if run.returncode == 0:
            answer: Mapping[str, object] = json.loads(run.stdout)
            return answer
    raise PlanError(
        "no Python with pip is found, so @python-packages cannot be resolved",
        where="@python-packages",
        why="tried " + ", ".join(tried),
        hint="install pip (on Debian: python3-pip)",
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


def _private_addresses(hosts: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return exactly the private addresses that a mirror's name has now, as host routes."""
    found = set()
    for entry in hosts:
        host, _, port = entry.rpartition(":")
        try:
            answers = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError:
            continue
        for answer in answers:
            address = ipaddress.ip_address(str(answer[4][0]).partition("%")[0])
            if address.is_private and not address.is_loopback and not address.is_link_local:
                found.add((host, f"{address}/{address.max_prefixlen}"))
    return tuple(sorted(found))


def _list(value: object) -> list[object]:
    return value if isinstance(value, list) else []
