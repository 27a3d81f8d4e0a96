"""
The process that hands events to notifiers: ``python -m km_embedded.deliver``.

Notifiers are plugins: they may block, crash or hold on to memory, so they run here and not in kmd.
Input on stdin is one JSON document ``{"events": [{"number", "event": {kind, sandbox_id, at, detail},
"done": [plugin…]}]}``; the answer on stdout is ``{"notifiers": [plugin…], "results": {number: {plugin:
{"ok", "detail"}}}}``.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from km_core.plugins.calls import HookTimeoutError
from km_core.types import Delivery, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from km_core.errors import PluginError
    from km_core.plugins import PluginRegistry


def main() -> int:
    """Read the events, deliver them, print what came of it."""
    from km_core.plugins import load_plugins

    request = json.load(sys.stdin)
    # What a notifier prints must not get into the answer, nor what one prints that was given up on, or a
    # program that it has started: from here on nobody else has the descriptor.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    with answer, contextlib.redirect_stdout(sys.stderr):
        plugins = load_plugins()
        notifiers = {
            impl.plugin_name: notifier(plugins, impl.plugin_name, impl.function, impl.argnames)
            for impl in plugins.manager.hook.km_notify.get_hookimpls()
        }
        results = {str(item["number"]): deliver(item, notifiers) for item in request["events"]}
        answer.write(json.dumps({"notifiers": sorted(notifiers), "results": results}))
    return 0


def deliver(
    item: Mapping[str, Any], notifiers: Mapping[str, Callable[[Event], Any]]
) -> dict[str, dict[str, Any]]:
    """
    Hand one event to every notifier that has not had it; one's failure does not stop another.

    Returns:
        ``{"ok", "detail"}`` by plugin name.  A notifier that is not configured for the event has had it.
    """
    event = Event(**item["event"])
    results: dict[str, dict[str, Any]] = {}
    for name in sorted(notifiers):
        if name in item.get("done", ()):
            continue
        try:
            answer = notifiers[name](event)
        except Exception as error:  # noqa: BLE001 - a plugin may raise anything; it is recorded by name
            # Only the kind: the text may hold what the notifier was configured with.
            results[name] = {"ok": False, "detail": type(error.__cause__ or error).__name__}
            continue
        ok = answer is None or (isinstance(answer, Delivery) and answer.delivered)
        results[name] = {"ok": ok, "detail": answer.detail[:200] if isinstance(answer, Delivery) else ""}
    return results


def notifier(
    plugins: PluginRegistry, name: str, function: Callable[..., Any], arguments: tuple[str, ...]
) -> Callable[[Event], Any]:
    """Return a call that is limited in time and checked; one that hung is not made again in this process."""
    gone: list[PluginError] = []

    def notify(event: Event) -> Any:
        if gone:
            raise gone[0]
        # A hook implementation takes the subset of parameters that it needs.
        given = {"event": event} if "event" in arguments else {}
        answer, failure = plugins.ask("km_notify", name, function, given)
        if failure is not None:
            if isinstance(failure.__cause__, HookTimeoutError):
                gone.append(failure)
            raise failure
        return answer[0] if answer else None

    return notify


if __name__ == "__main__":
    sys.exit(main())
