"""What a refusal offers: an entry that would open it, and never one that would not."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from km_core.plan import GitPlan, Grant, NetworkPlan
from km_core.policy import NetworkPolicy, compile_pattern, parse_authority, with_grants

NAMES = (
    *("a.test", "b.a.test", "localhost", "x.localhost", "km.internal", "x.km.internal", "dns.google"),
    *("api.openai.com", "api.anthropic.com", "github.com", "gist.github.com", "ssh.github.com", "printer"),
)
ADDRESSES = (
    *("192.0.2.1", "10.0.0.1", "127.0.0.1", "169.254.169.254", "198.18.0.1", "8.8.8.8", "224.0.0.1"),
    *("[2001:db8::1]", "[::1]", "[fd00:ec2::254]", "[fdc0:6b6d::5]", "[::ffff:10.0.0.1]", "100.64.0.1"),
)


def compiled(network, options):
    return NetworkPolicy.from_plan(network, metered_hosts=("api.anthropic.com",), **options)


def asked(policy, authority):
    if authority.address is not None:
        return policy.address(authority.address, authority.port)
    return policy.connect(authority.host, authority.port)


@given(
    st.sampled_from([*NAMES, *ADDRESSES]),
    st.sampled_from([80, 443, 8443, 22]),
    st.lists(st.sampled_from(["a.test", ".test", "*", ".google", "*:22"]), max_size=2),
    st.booleans(),
    st.fixed_dictionaries(
        {"ai_ceiling": st.booleans(), "git": st.sampled_from([None, GitPlan("allowlist", ("a/b",))])}
    ),
)
def test_an_entry_is_offered_exactly_when_the_grant_opens_what_was_denied(
    host, port, rules, https_only, options
):
    network = NetworkPlan(
        https_only=https_only,
        hosts=tuple(compile_pattern(rule, dns_list=False, source=rule) for rule in rules),
    )
    policy = compiled(network, options)
    authority = parse_authority(host, port)
    if asked(policy, authority).allow:
        return
    granted = with_grants(network, [Grant(str(authority), 10.0)], now=0.0)
    assert asked(compiled(granted, options), authority).allow == policy.openable(authority)
