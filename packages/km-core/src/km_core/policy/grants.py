"""Grants of the operator (``km allow``) as rules beside those of a plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import evolve

from km_core.policy.patterns import compile_address, compile_pattern

if TYPE_CHECKING:
    from collections.abc import Iterable

    from km_core.plan import AddressRule, Grant, HostRule, NetworkPlan


def grant_rule(grant: Grant) -> HostRule | AddressRule:
    """Return the rule of one grant; raises `ValueError` when its entry is none."""
    address = compile_address(grant.entry, source=grant.source)
    if address is not None:
        return address
    return compile_pattern(grant.entry, dns_list=False, source=grant.source)


def with_grants(network: NetworkPlan, grants: Iterable[Grant], *, now: float) -> NetworkPlan:
    """
    Return the network rules with those grants added that have not expired.

    What no rule opens stays closed: a grant is an allow rule like one of the profile.

    Args:
        network: of the plan.
        grants: of the control plane.
        now: Unix seconds.

    Raises:
        ValueError: an entry is none.
    """
    from km_core.plan import HostRule

    hosts, addresses = list(network.hosts), list(network.addresses)
    for grant in grants:
        if now >= grant.expires_at:
            continue
        rule = grant_rule(grant)
        if isinstance(rule, HostRule):
            hosts.append(rule)
        else:
            addresses.append(rule)
    return evolve(network, hosts=tuple(hosts), addresses=tuple(addresses))
