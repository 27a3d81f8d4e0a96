"""What km-substrate-local offers: the substrate ``local``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.control.substrate import Substrate

KM_PLUGIN_API = 1


@hookimpl
def km_substrates() -> Iterable[Substrate]:
    """Offer local sandboxes."""
    from km_substrate_local.substrate import LocalSubstrate

    return [LocalSubstrate()]
