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
    Offer enforcement modes (``spec.network.enforcement``).

    A plugin that offers a mode is what stands behind promise and claim of it: its sidecars carry it out
    on the sandbox's host.

    Shape: offer.
    Called: once per process, when claims are checked: ``km validate --substrate``, ``compile``,
        ``create``.
    Runs in: the operator's ``km``.
    Order: irrelevant; a mode may be offered once.
    Failure: this plugin is disabled with a warning; a profile that asks for its mode is refused.

    Returns:
        Mode names: ``proxy``, ``ebpf`` or ``both``.

    Example:
        from km_core import hookimpl

        KM_PLUGIN_API = 1

        @hookimpl
        def km_enforcers() -> list[str]:
            return ["ebpf"]
    """


@hookspec
def km_sidecars() -> Iterable[Sidecar]:
    """
    Offer long-running processes for ``km-sidecar NAME``.

    Shape: offer.
    Called: once per process by ``km-sidecar`` at start, and when a plan's requirements are computed.
    Runs in: ``km-sidecar`` on the sandbox's host, and the operator's ``km``.  The module behind *target*
        is imported by ``km-sidecar`` only.
    Order: irrelevant; names must be unique across all plugins.
    Failure: this plugin is disabled with a warning; a host that needs one of its runners does not
        start the sandbox.

    Returns:
        Sidecars; *target* names a function that takes the remaining arguments and returns an exit code.

    Example:
        from km_core import hookimpl
        from km_core.types import Sidecar

        KM_PLUGIN_API = 1

        def main(argv: list[str]) -> int:
            return 0 if argv else 2

        @hookimpl
        def km_sidecars() -> list[Sidecar]:
            return [Sidecar("recorder", "km_recorder.main:main", "records what passes")]
    """
