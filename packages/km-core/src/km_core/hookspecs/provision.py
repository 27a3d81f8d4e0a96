"""Provision family: places where sandboxes run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.substrate import Substrate

hookspec = HookspecMarker("km")


@hookspec
def km_substrates() -> Iterable[Substrate]:
    """
    Offer places where a sandbox can run.

    Shape: offer.  Called once per process, when a command needs a substrate.
    Order: irrelevant; names must be unique across all plugins.
    Failure: an exception disables this plugin; `km create` then refuses a profile whose
        `runtime.substrate` asks for one of its substrates.

    Returns:
        Substrates; *name* is the word used in the profile and on the command line.
    """
