"""``@npm-packages``: the registries of the operator's npm."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING

from km_core.compile.groups.mirrors import Mirrors, ask_json, private_addresses
from km_core.errors import PlanError
from km_core.types import GroupResolution

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAME = "@npm-packages"
_SCOPED = re.compile(r"@[^:]+:registry")


def resolve_npm_packages(ask: Callable[[], Mapping[str, object]] | None = None) -> GroupResolution:
    """
    Resolve ``@npm-packages`` from the operator's npm configuration.

    The default registry (npm's own unless configured) and those of scopes (``@team:registry``) become
    ``host:port`` entries.  The default one is also handed to npm inside; a variable cannot name a scope,
    so a profile that uses one writes an ``.npmrc`` in ``configFiles``.

    Args:
        ask: returns npm's effective settings by key, without credentials; for tests.

    Raises:
        PlanError: npm is not found, or a registry's URL holds credentials (they never enter a sandbox).
    """
    settings = (ask or _ask_npm)()
    mirrors = Mirrors(NAME, "npm")
    default = str(settings.get("registry") or "")
    if not mirrors.add(default):
        raise mirrors.refusal(
            "npm names no registry that is reached over https or http",
            hint="look at: npm config get registry",
        )
    scopes = sorted(key for key in settings if _SCOPED.fullmatch(key))
    for key in scopes:
        mirrors.add(str(settings[key] or ""))
    named = [key.partition(":")[0] for key in scopes]
    source = "the operator's npm configuration" + (f" (with {', '.join(named)})" if named else "")
    return GroupResolution(
        name=NAME,
        hosts=tuple(sorted(mirrors.hosts)),
        private=private_addresses(mirrors.hosts),
        source=source,
        env=(("npm_config_registry", default),),
    )


def _ask_npm() -> Mapping[str, object]:
    npm = shutil.which("npm")
    # --json leaves out what npm takes for a credential, and prints its built-in defaults too.
    answer = ask_json([npm, "config", "list", "--json"], group=NAME) if npm else None
    if answer is None:
        raise PlanError(
            f"npm is not found, so {NAME} cannot be resolved"
            if npm is None
            else f"npm cannot read its configuration, so {NAME} cannot be resolved",
            where=NAME,
            why="the registry is read from npm's own configuration",
            hint="install npm, or name your registry's host in allowedHosts instead"
            if npm is None
            else "look at: npm config list",
        )
    return answer
