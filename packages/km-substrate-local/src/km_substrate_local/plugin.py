"""What km-substrate-local offers: the substrate ``local``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from typing import Any

    from km_core.control.substrate import Substrate
    from km_core.types import Problem

KM_PLUGIN_API = 1


@hookimpl
def km_substrates() -> Iterable[Substrate]:
    """Offer local sandboxes."""
    from km_substrate_local.substrate import LocalSubstrate

    return [LocalSubstrate()]


@hookimpl
def km_validate_profile(profile: Mapping[str, Any], substrate: str) -> Iterable[Problem]:
    """Refuse files that no local sandbox has a place for."""
    if substrate != "local":
        return []
    from km_substrate_local.places import file_problems

    return list(file_problems(profile))
