"""
Finding, importing and checking the installed plugins.

A plugin that fails any of these steps is recorded with its reason and left out; it never ends a command
that does not need it.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import TYPE_CHECKING, Any

import pluggy

from km_core import KM_PLUGIN_API
from km_core.errors import PluginError
from km_core.plugins.calls import HookTimeoutError, brief, call
from km_core.plugins.registry import PluginInfo, PluginRegistry, warn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

GROUP = "km.plugins"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
_NO_HOOKS: tuple[str, ...] = ()


def new_manager() -> pluggy.PluginManager:
    """Return an empty manager that knows every hook specification."""
    from km_core.hookspecs import FAMILIES

    manager = pluggy.PluginManager("km")
    for family in FAMILIES:
        manager.add_hookspecs(family)
    return manager


@cache
def load_plugins() -> PluginRegistry:
    """
    Load the installed plugins, once per process.

    ``KM_BLOCK_PLUGINS=a,b`` leaves plugins out by name.  A plugin that cannot be imported, states another
    API number, misspells a hook or shares its name with another distribution's is recorded as failed and
    told of on standard error; `PluginRegistry.refuse_broken` ends the commands that need it.
    """
    return load_entries(entry_points(group=GROUP), block=os.environ.get("KM_BLOCK_PLUGINS", ""))


def load_entries(entries: Iterable[EntryPoint], *, block: str = "") -> PluginRegistry:
    """
    Load plugins from entry points.

    Args:
        entries: of the group ``km.plugins``.
        block: names to leave out, separated by commas.
    """
    blocked = {name.strip() for name in block.split(",") if name.strip()}
    found: dict[str, list[EntryPoint]] = {}
    for entry in entries:
        same = found.setdefault(entry.name, [])
        if not any(_same(entry, other) for other in same):
            same.append(entry)
    for name in sorted(blocked - set(found)):
        near = _nearest(name, found)
        meant = f"; did you mean {near}?" if near else ""
        sys.stderr.write(f"warning: KM_BLOCK_PLUGINS names {name!r}, which is not installed{meant}\n")
    manager = new_manager()
    infos: list[PluginInfo] = []
    disabled: dict[str, PluginError] = {}
    for name in sorted(found):
        state, hooks = "ok", _NO_HOOKS
        failure: PluginError | None = None
        if name in blocked:
            state = "blocked"
        else:
            try:
                hooks = _load_one(manager, found[name])
            except PluginError as error:
                state, failure = "failed", error
                disabled[name] = error
                warn(error)
        detail = "KM_BLOCK_PLUGINS" if state == "blocked" else ("" if failure is None else failure.what)
        for entry in found[name]:
            distribution, version = origin(entry)
            infos.append(PluginInfo(name, distribution, version, entry.value, state, detail, hooks))
    return PluginRegistry(manager, tuple(infos), disabled)


def _same(one: EntryPoint, other: EntryPoint) -> bool:
    """Say whether two entries are one distribution seen twice on the path."""
    return one.value == other.value and origin(one)[0] == origin(other)[0]


def _load_one(manager: pluggy.PluginManager, entries: list[EntryPoint]) -> tuple[str, ...]:
    entry = entries[0]
    distribution, version = origin(entry)
    if len(entries) > 1:
        owners = " and by ".join(" ".join(origin(each)).strip() for each in entries)
        raise PluginError(
            f"the name is registered twice: by {owners}; neither is used",
            plugin=entry.name,
            hint="uninstall one of the two",
        )

    def failed(what: str, hint: str = "") -> PluginError:
        return PluginError(what, plugin=entry.name, distribution=distribution, version=version, hint=hint)

    if not _NAME.fullmatch(entry.name):
        raise failed("its name is not made of a-z, 0-9, '.', '_' and '-'", "rename the entry point")
    module = _import(entry, failed)
    for what, hint in problems_of(module):
        raise failed(what, hint)
    try:
        manager.register(module, name=entry.name)
    except (pluggy.PluginValidationError, ValueError) as error:
        manager.unregister(name=entry.name)
        raise failed(f"cannot be registered: {brief(error)}", "km plugins check") from error
    callers = manager.get_hookcallers(module) or []
    return tuple(sorted(caller.name for caller in callers))


def _import(entry: EntryPoint, failed: Callable[[str, str], PluginError]) -> Any:
    outcome = call(entry.load, what="import", plugin=entry.name)
    distribution = origin(entry)[0]
    if isinstance(outcome.error, HookTimeoutError):
        raise failed(f"hangs while it is imported: {outcome.error}", f"report it to {distribution}")
    if outcome.error is not None:
        raise failed(
            f"cannot be imported: {brief(outcome.error)}", f"reinstall {distribution}"
        ) from outcome.error
    if outcome.wrote:
        sys.stderr.write(f"warning: plugin {entry.name} ({distribution}) prints while it is imported\n")
    return outcome.value


def problems_of(module: Any) -> list[tuple[str, str]]:
    """
    Return what is wrong with a plugin module before any hook is called, each with a hint.

    Args:
        module: what the entry point names.
    """
    api_problem = _api_problem(getattr(module, "KM_PLUGIN_API", None))
    found = [api_problem] if api_problem else []
    specs = hook_arguments()
    for name, value in sorted(vars(module).items() if hasattr(module, "__dict__") else ()):
        marked = getattr(value, "km_impl", None) if callable(value) else None
        if marked is None:
            if name in specs and inspect.isfunction(value):
                found.append(
                    (
                        f"defines {name} without @hookimpl, so it is never called",
                        "from km_core import hookimpl",
                    )
                )
            continue
        if name not in specs:
            near = _nearest(name, specs)
            hint = f"did you mean {near}?" if near else "km has: " + ", ".join(specs)
            found.append((f"has a hook that km does not know: {name}", hint))
            continue
        if marked.get("wrapper") or marked.get("hookwrapper"):
            found.append((f"makes {name} a wrapper, which km does not call", "write @hookimpl alone"))
        found += _signature_problems(name, value, specs[name])
    return found


def hook_arguments() -> Mapping[str, tuple[str, ...]]:
    """Return every hook with the names of its arguments, in the order they fire."""
    from km_core.hookspecs import FAMILIES

    return {
        name: tuple(inspect.signature(value).parameters)
        for family in FAMILIES
        for name, value in vars(family).items()
        if name.startswith("km_") and hasattr(value, "km_spec")
    }


def _nearest(word: str, known: Iterable[str]) -> str:
    import difflib

    return next(iter(difflib.get_close_matches(word, list(known), n=1)), "")


def origin(entry: EntryPoint) -> tuple[str, str]:
    """Return name and version of an entry point's distribution."""
    dist = entry.dist
    return (dist.name, dist.version) if dist is not None else ("unknown distribution", "")


def _api_problem(api: Any) -> tuple[str, str] | None:
    state_it = f"write KM_PLUGIN_API = {KM_PLUGIN_API} in the module"
    if api is None:
        return "states no KM_PLUGIN_API", state_it
    if type(api) is not int:
        return f"states plugin API {api!r:.40}, which is no integer", state_it
    if api > KM_PLUGIN_API:
        return f"states plugin API {api}, this km has {KM_PLUGIN_API}", "install a newer km-core"
    if api < KM_PLUGIN_API:
        return (
            f"states plugin API {api}, this km has {KM_PLUGIN_API}",
            "install a version of the plugin made for this km",
        )
    return None


def _signature_problems(name: str, function: Any, arguments: tuple[str, ...]) -> Iterable[tuple[str, str]]:
    """Say what an implementation asks for that its hook does not give; it may take fewer arguments."""
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        yield f"makes {name} asynchronous; hooks are plain functions", "write def, not async def"
        return
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        yield f"implements {name} with something that has no signature", "write a function"
        return
    for parameter in parameters:
        if parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            yield f"takes {parameter} in {name}; arguments are given by name", _takes(name, arguments)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            yield f"takes {parameter.name} in {name} by position only", _takes(name, arguments)
        elif parameter.name not in arguments and parameter.default is parameter.empty:
            near = _nearest(parameter.name, arguments)
            hint = f"did you mean {near}?" if near else _takes(name, arguments)
            yield f"asks {name} for the argument {parameter.name}, which it does not have", hint


def _takes(name: str, arguments: tuple[str, ...]) -> str:
    return f"{name} gives: {', '.join(arguments) or 'no arguments'}"
