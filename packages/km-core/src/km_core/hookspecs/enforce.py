"""Enforce family: how egress is enforced, and the processes that do it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.types import Sidecar

hookspec = HookspecMarker("km")


@hookspec
def km_enforcers() -> Iterable[str]:
    """
    Offer enforcement modes (`spec.network.enforcement`).

    Shape: offer.  Called once per process, when a plan is made.
    Failure: an exception disables this plugin; a profile that asks for its mode is refused.

    Returns:
        Mode names (`proxy`, `ebpf`, `both`) that the plugin can enforce.
    """


@hookspec
def km_sidecars() -> Iterable[Sidecar]:
    """
    Offer long-running processes for `km-sidecar NAME`.

    Shape: offer.  Called by the runner at start.
    Failure: an exception disables this plugin; a plan that needs one of its runners is refused.

    Returns:
        Sidecars; names must be unique.
    """
