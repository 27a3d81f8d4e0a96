"""
Discovery and use of plugins.

Entry points of the group ``km.plugins`` name modules with hook implementations; the entry point's name
is the plugin's name.  Every failure is attributed: an error names the plugin, its distribution and its
version.  Nothing here imports a plugin before it is asked for.
"""

from __future__ import annotations

from km_core.plugins.discover import GROUP, load_plugins, new_manager
from km_core.plugins.registry import PluginInfo, PluginRegistry

__all__ = ["GROUP", "PluginInfo", "PluginRegistry", "load_plugins", "new_manager"]
