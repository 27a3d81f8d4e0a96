"""A registry that holds just the plugins a test names; entry points are never read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.plugins import PluginInfo, PluginRegistry, new_manager

if TYPE_CHECKING:
    from types import ModuleType


def manager_with(*plugins: ModuleType | Any) -> PluginRegistry:
    """
    Return a registry of *plugins*: modules, or objects with hook implementations.

    Raises:
        pluggy.PluginValidationError: one has a hook that km does not know, or unknown arguments.
    """
    manager = new_manager()
    infos = []
    for plugin in plugins:
        name = plugin_name(plugin)
        manager.register(plugin, name=name)
        callers = manager.get_hookcallers(plugin) or []
        hooks = tuple(sorted(caller.name for caller in callers))
        infos.append(PluginInfo(name, name, "0", name, "ok", hooks=hooks))
    manager.check_pending()
    return PluginRegistry(manager, tuple(infos))


def plugin_name(plugin: ModuleType | Any) -> str:
    """Return what a plugin is called here: its module's name, or its class's."""
    return str(getattr(plugin, "__name__", type(plugin).__name__)).replace("_", "-")
