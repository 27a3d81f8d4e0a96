"""Who makes claims: core's table and, for each distribution, the claims of its plugins and what they offer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.compile.claims.table import core_claims

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.plugins import PluginRegistry
    from km_core.types import Claim


@frozen
class ClaimSource:
    """
    One party that makes claims, and what gives its word weight.

    What a party offers is taken from the plugin manager, never from what its claims say of themselves.

    Attributes:
        name: the distribution.
        claims: what it says.
        substrates: substrates it offers.
        modes: enforcement modes it offers.
        sections: keys below ``spec`` of the profile sections it brings.
        core: whether it is km-core's own table.
    """

    name: str
    claims: tuple[Claim, ...] = ()
    substrates: frozenset[str] = frozenset()
    modes: frozenset[str] = frozenset()
    sections: frozenset[str] = frozenset()
    core: bool = False


def core_source() -> ClaimSource:
    """Return km-core's own table as a source."""
    return ClaimSource("km-core", tuple(core_claims()), core=True)


def claim_sources(plugins: PluginRegistry) -> tuple[ClaimSource, ...]:
    """
    Return every source: core first, then the distributions by name.

    Raises:
        PluginError: a plugin's claims cannot be had.
    """
    claims: dict[str, list[Claim]] = {}
    for plugin, claim in plugins.attributed_claims():
        claims.setdefault(_distribution(plugins, plugin), []).append(claim)
    offered = {
        hook: _by_distribution(plugins, hook)
        for hook in ("km_substrates", "km_enforcers", "km_profile_sections")
    }
    names = sorted({*claims, *(name for offers in offered.values() for name in offers)})
    return (
        core_source(),
        *(
            ClaimSource(
                name,
                tuple(claims.get(name, ())),
                substrates=frozenset(offered["km_substrates"].get(name, ())),
                modes=frozenset(offered["km_enforcers"].get(name, ())),
                sections=frozenset(offered["km_profile_sections"].get(name, ())),
            )
            for name in names
        ),
    )


def _by_distribution(plugins: PluginRegistry, hook: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for offer, plugin in plugins.owners(hook).items():
        found.setdefault(_distribution(plugins, plugin), []).append(offer)
    return found


def _distribution(plugins: PluginRegistry, plugin: str) -> str:
    """Return the distribution of a plugin; a plugin that belongs to none stands for itself."""
    info = plugins.info(plugin)
    return info.distribution if info is not None and info.distribution else plugin


def substrates_of(sources: Iterable[ClaimSource]) -> tuple[str, ...]:
    """Return the substrates that core's table knows, then those that plugins bring, by name."""
    from km_core.profile.model import SUBSTRATES

    brought = {name for source in sources for name in source.substrates}
    return (*SUBSTRATES, *sorted(brought - set(SUBSTRATES)))
