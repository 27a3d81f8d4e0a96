"""Meter family: recognising, bounding and pricing model calls."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pluggy import HookspecMarker

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.types import Meter

hookspec = HookspecMarker("km")


@hookspec
def km_meters() -> Iterable[Meter]:
    """
    Offer meters.

    Shape: offer.  Called once by the gate at start and by `km explain usage`.
    Order: irrelevant; a host may be owned by one meter only.
    Failure: an exception disables this plugin; hosts it would own are refused under a ceiling.

    Returns:
        Meters; *name* is the provider name in the ledger.
    """
