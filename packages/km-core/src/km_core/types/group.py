"""Egress groups: names for sets of hosts that come from the operator's own configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable


@frozen
class GroupResolution:
    """
    What a group resolved to, recorded in the plan as an explicit input.

    Attributes:
        name: ``@python-packages``.
        hosts: ``host:port`` entries, sorted.
        private: ``(host, CIDR)`` exceptions for exactly a private mirror's addresses.
        source: where it was read, for ``km explain`` and ``km diff`` (never a credential).
        env: variables that the client inside needs to use the same mirror (never a credential).
    """

    name: str
    hosts: tuple[str, ...]
    private: tuple[tuple[str, str], ...] = ()
    source: str = ""
    env: tuple[tuple[str, str], ...] = ()


@frozen
class EgressGroup:
    """A group a plugin offers; *resolve* reads the operator's configuration and may raise KmError."""

    name: str
    summary: str
    resolve: Callable[[], GroupResolution]
