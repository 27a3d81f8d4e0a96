"""Notify family: delivery of typed events."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from km_core.types import Delivery, Event

hookspec = HookspecMarker("km")


@hookspec
def km_notify(event: Event) -> Delivery | None:
    """
    Deliver an event.

    Run `km_core.testing.notifier.NotifierContract` on an implementation.

    Shape: tell.
    Called: by the control plane from its outbox, at least once per event and plugin, until it is
        delivered or a day has passed; so the same event may come twice.
    Runs in: a process of its own that the control plane starts for a batch of events.
    Order: events of one sandbox come in the order they happened; plugins are asked by name.
    Failure: an exception, or a `Delivery` that is not *delivered*, is recorded with the plugin's name and
        tried again later; other plugins are not held up.

    Args:
        event: what happened; never holds a secret.

    Returns:
        What was done, or None when the plugin is not configured for this event: it counts as told.

    Example:
        import os
        from pathlib import Path

        from km_core import hookimpl
        from km_core.types import Delivery, Event

        KM_PLUGIN_API = 1

        @hookimpl
        def km_notify(event: Event) -> Delivery | None:
            target = os.environ.get("KM_NOTIFY_FILE")
            if target is None:
                return None
            with Path(target).open("a", encoding="utf-8") as out:
                out.write(event.to_json() + "\\n")
            return Delivery.ok()
    """
