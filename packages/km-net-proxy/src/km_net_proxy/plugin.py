"""Hook implementations of km-net-proxy: the gate, the meters, the mode ``proxy``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl
from km_core.types import Sidecar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.types import Meter

KM_PLUGIN_API = 1


@hookimpl
def km_enforcers() -> Iterable[str]:
    """Offer the mode ``proxy``."""
    return ("proxy",)


@hookimpl
def km_sidecars() -> Iterable[Sidecar]:
    """Offer the gate."""
    return (Sidecar("gate", "km_net_proxy.gate:main", "DNS filter, HTTP(S) proxy and AI metering"),)


@hookimpl
def km_meters() -> Iterable[Meter]:
    """Offer the meters of the AI providers, with the operator's OpenAI-compatible hosts."""
    from km_core.config import load_config
    from km_net_proxy.meter.offers import meters

    return meters(load_config().openai_compatible_hosts)
