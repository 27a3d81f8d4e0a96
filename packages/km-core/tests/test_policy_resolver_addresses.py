"""Public resolvers by address: a range does not open them."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from km_core.plan import AddressRule, NetworkPlan
from km_core.policy import NetworkPolicy


def policy(*rules):
    return NetworkPolicy.from_plan(NetworkPlan(addresses=tuple(AddressRule(*rule) for rule in rules)))


@pytest.mark.parametrize("port", [443, 853, 53])
@pytest.mark.parametrize("address", ["8.8.8.8", "1.1.1.1", "::ffff:9.9.9.9", "2606:4700:4700::1111"])
def test_a_range_around_a_public_resolver_does_not_open_it(address, port):
    wide = policy(("0.0.0.0/0", (443, 853, 53)), ("::/0", (443, 853, 53)))
    verdict = wide.address(ip_address(address), port)
    assert (verdict.allow, verdict.rule) == (False, "builtin:public-resolver")
    assert wide.address(ip_address("93.184.216.34"), port).allow


def test_a_rule_for_the_very_address_opens_it_on_its_ports():
    exact = policy(("8.8.8.8/32", (443,)), ("8.8.8.0/24", (443, 853)))
    assert exact.address(ip_address("8.8.8.8"), 443).allow
    assert exact.address(ip_address("8.8.8.8"), 853).rule == "builtin:port"
    assert exact.address(ip_address("8.8.8.9"), 853).allow
