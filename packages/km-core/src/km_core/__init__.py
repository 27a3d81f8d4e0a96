"""
km: policy-driven sandboxes for AI agents.

`hookimpl` marks a plugin's hook implementations and `KM_PLUGIN_API` is the number a plugin module
states to say which contract it was written for.  Importing this package imports nothing heavy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

KM_PLUGIN_API = 1
"""The plugin contract's number; a plugin that states another one is refused."""

__all__ = ["KM_PLUGIN_API", "__version__", "hookimpl"]

if TYPE_CHECKING:
    from pluggy import HookimplMarker

    hookimpl: HookimplMarker
    __version__: str


def __getattr__(name: str) -> Any:
    if name == "hookimpl":
        from pluggy import HookimplMarker

        return HookimplMarker("km")
    if name == "__version__":
        from importlib.metadata import version

        return version("km-core")
    raise AttributeError(name)
