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
import sys
from typing import TYPE_CHECKING, Any

from km_core.types import Delivery, Event

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


def main() -> int:
    """Read the events, deliver them, print what came of it."""
    from km_core.plugins import load_plugins

    request = json.load(sys.stdin)
    # What a notifier prints must not get into the answer.
    with contextlib.redirect_stdout(sys.stderr):
        notifiers = {
            impl.plugin_name: _caller(impl.function, impl.argnames)
            for impl in load_plugins().manager.hook.km_notify.get_hookimpls()
        }
        results = {str(item["number"]): deliver(item, notifiers) for item in request["events"]}
    sys.stdout.write(json.dumps({"notifiers": sorted(notifiers), "results": results}))
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
            results[name] = {"ok": False, "detail": type(error).__name__}
            continue
        ok = answer is None or (isinstance(answer, Delivery) and answer.delivered)
        results[name] = {"ok": ok, "detail": answer.detail[:200] if isinstance(answer, Delivery) else ""}
    return results


def _caller(function: Callable[..., Any], names: tuple[str, ...]) -> Callable[[Event], Any]:
    # A hook implementation takes the subset of parameters that it needs.
    return (lambda event: function(event=event)) if "event" in names else (lambda _event: function())


if __name__ == "__main__":
    sys.exit(main())
