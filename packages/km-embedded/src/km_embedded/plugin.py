"""Hook implementations of km-embedded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core import hookimpl

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.config import Config
    from km_core.control.protocols import Control, ControlPlaneOffer
    from km_core.types import Sidecar

KM_PLUGIN_API = 1


@hookimpl
def km_control_planes() -> Iterable[ControlPlaneOffer]:
    """Offer the embedded control plane."""
    from km_core.control.protocols import ControlPlaneOffer

    def connect(config: Config) -> Control:
        from km_embedded.start import connect as connect_kmd

        return connect_kmd(config)

    yield ControlPlaneOffer("embedded", "kmd on this host: SQLite and files", connect)


@hookimpl
def km_sidecars() -> Iterable[Sidecar]:
    """Offer the control plane's process."""
    from km_core.types import Sidecar

    yield Sidecar("kmd", "km_embedded.kmd:main", "the embedded control plane")
