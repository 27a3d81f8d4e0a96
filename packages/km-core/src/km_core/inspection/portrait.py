"""What ``km plugins info`` shows of one plugin."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution, entry_points
from typing import TYPE_CHECKING, Any

from km_core.errors import NotFoundError
from km_core.plugins.offers import CONTRACTS

if TYPE_CHECKING:
    from importlib.metadata import Distribution

    from km_core.plugins import PluginRegistry

_COMMANDS = "km.commands"


def portrait(registry: PluginRegistry, name: str) -> dict[str, Any]:
    """
    Describe a plugin as plain JSON data.

    Keys: those of `PluginInfo.to_dict`, but ``hooks`` maps each hook to the names of what it offers; and
    ``summary``, ``api`` (None when it was not loaded), ``requires`` (of its distribution),
    ``requirement`` (its pin in a plan that needs it), ``documentation`` (a link, or empty), ``commands``,
    ``claims`` (how many), ``sidecars`` (name and target).

    Raises:
        NotFoundError: no plugin has this name.
    """
    info = registry.info(name)
    if info is None:
        raise NotFoundError(f"no plugin is called {name!r}", hint="km plugins list")
    try:
        dist: Distribution | None = distribution(info.distribution)
    except (PackageNotFoundError, ValueError):
        dist = None
    module = sys.modules.get(info.module.partition(":")[0])
    offers: dict[str, list[str]] = {}
    for hook in info.hooks:
        owned = registry.owners(hook) if CONTRACTS[hook].offer else {}
        offers[hook] = [offer for offer, plugin in owned.items() if plugin == name]
    claims = 0
    if "km_field_claims" in info.hooks:
        claims = sum(plugin == name for plugin, _ in registry.attributed_claims())
    sidecars = registry.sidecars() if "km_sidecars" in info.hooks else {}
    # Asking may have disabled it: what is told is how it stands now.
    failure = next((error for error in registry.failures if error.plugin == name), None)
    failed = failure is not None and info.status == "ok"
    return {
        **info.to_dict(),
        "status": "failed" if failed else info.status,
        "detail": failure.what if failure is not None and failed else info.detail,
        "summary": _summary(dist),
        "api": getattr(module, "KM_PLUGIN_API", None) if info.status == "ok" else None,
        "requires": list((dist.requires if dist is not None else None) or []),
        "requirement": f"{info.distribution}=={info.version}" if info.version else "",
        "documentation": _documentation(dist),
        "commands": sorted(
            entry.name
            for entry in entry_points(group=_COMMANDS)
            if entry.dist is not None and entry.dist.name == info.distribution
        ),
        "hooks": offers,
        "claims": claims,
        "sidecars": {word: sidecars[word].target for word in offers.get("km_sidecars", [])},
    }


def _summary(dist: Distribution | None) -> str:
    texts = dist.metadata.get_all("Summary") if dist is not None else None
    return str(texts[0]) if texts else ""


def _documentation(dist: Distribution | None) -> str:
    """Return the link that the metadata gives for documentation, else for the home page."""
    links: dict[str, str] = {}
    for text in (dist.metadata.get_all("Project-URL") if dist is not None else None) or ():
        label, _, link = str(text).partition(",")
        links[label.strip().lower()] = link.strip()
    return next((links[label] for label in ("documentation", "docs", "homepage") if label in links), "")
