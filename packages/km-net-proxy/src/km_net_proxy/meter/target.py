"""Classifying a request target: what is not recognised exactly is not metered and not free."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core.types import Endpoint, EndpointKind

if TYPE_CHECKING:
    from collections.abc import Mapping

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that never start a model."""

_OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override")


def refused_outright(path: str, headers: Mapping[str, str]) -> Endpoint | None:
    """Return why a request is refused whatever it asks for, or None."""
    if not path:
        return Endpoint("unusual", EndpointKind.REFUSED, "the path can be read in more than one way")
    if "upgrade" in headers or "sec-websocket-key" in headers:
        return Endpoint("websocket", EndpointKind.REFUSED, "a WebSocket reports no usage that can be read")
    if any(name in headers for name in _OVERRIDES):
        return Endpoint("override", EndpointKind.REFUSED, "a header asks for another method")
    return None


def free(name: str) -> Endpoint:
    """Return an endpoint that bills nothing."""
    return Endpoint(name, EndpointKind.FREE)


def metered(name: str, model: str = "") -> Endpoint:
    """Return an endpoint whose answer reports usage."""
    return Endpoint(name, EndpointKind.METERED, model=model)


def refused(name: str, reason: str) -> Endpoint:
    """Return an endpoint that may bill without saying so."""
    return Endpoint(name, EndpointKind.REFUSED, reason)
