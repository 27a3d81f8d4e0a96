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

    Shape: tell.  Called by the control plane from its outbox, at least once per event.
    Failure: an exception is recorded with the plugin name and the delivery is tried again; other
        plugins are not held up.

    Args:
        event: what happened; never holds a secret.

    Returns:
        What was done, or None when the plugin is not configured for this event.
    """
