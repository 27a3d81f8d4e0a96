"""Verdicts on names, ports and addresses."""

from __future__ import annotations

import time
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.errors import PlanError
from km_core.plan import AddressRule, HostRule, NetworkPlan
from km_core.policy import NetworkPolicy, ai_vendor, compile_pattern, explain_egress, is_public_resolver
from km_core.types import Verdict


def policy(*entries, dns=(), addresses=(), https_only=False, **options):
    rules = [compile_pattern(e, dns_list=False, source=f"allowedHosts {e}") for e in entries]
    rules += [compile_pattern(e, dns_list=True, source=f"allowedDNSSuffixes {e}") for e in dns]
    plan = NetworkPlan(hosts=tuple(rules), addresses=tuple(addresses), https_only=https_only)
    return NetworkPolicy.from_plan(plan, **options)


def test_an_empty_policy_denies_everything():
    p = policy()
    assert not p.name("example.org").allow
    assert not p.connect("example.org", 443).allow
    assert not p.address(ip_address("1.1.1.1"), 443).allow


@pytest.mark.parametrize("name", ["github.com", "api.github.com", "a.b.github.com", "GITHUB.COM."])
def test_a_dns_entry_matches_the_name_and_what_is_below_it(name):
    assert policy(dns=["github.com"]).name(name).allow


@pytest.mark.parametrize(
    "name", ["notgithub.com", "github.com.evil.org", "github.co", "com", "evil\0.github.com", "1.2.3.4"]
)
def test_a_suffix_ends_at_a_dot(name):
    assert not policy(dns=["github.com"]).name(name).allow


def test_a_host_entry_without_a_dot_is_exact():
    p = policy("api.anthropic.com")
    assert p.name("api.anthropic.com").allow
    assert not p.name("x.api.anthropic.com").allow


def test_a_star_entry_in_the_host_list_leaves_the_apex_out():
    p = policy("*.nodejs.org")
    assert p.name("dist.nodejs.org").allow
    assert not p.name("nodejs.org").allow


def test_default_ports_are_the_web_ports():
    p = policy("example.org")
    assert [port for port in (22, 53, 80, 443, 853, 8443) if p.connect("example.org", port).allow] == [
        80,
        443,
    ]
    p = policy("example.org", https_only=True)
    assert [port for port in (80, 443) if p.connect("example.org", port).allow] == [443]
    assert p.connect("example.org", 80).rule == "builtin:https-only"


def test_rules_for_one_name_add_their_ports_up():
    p = policy("db.example.org:5432", ".example.org", "db.example.org:6432")
    assert all(p.connect("db.example.org", port).allow for port in (443, 5432, 6432))
    assert p.connect("db.example.org", 5432).rule == "allowedHosts db.example.org:5432"
    assert not p.connect("www.example.org", 5432).allow


def test_a_name_rule_never_opens_an_address():
    p = policy("*")
    for text in ("127.0.0.1", "2130706433", "::1", "10.0.0.1", "1.1.1.1"):
        assert not p.connect(text, 443).allow
        assert not p.name(text).allow
        assert not explain_egress(p, f"https://{'[::1]' if text == '::1' else text}/").allow


def test_public_resolvers_need_an_exact_rule():
    assert not policy("*").name("dns.google").allow
    assert not policy(".cloudflare-dns.com").connect("mozilla.cloudflare-dns.com", 443).allow
    assert policy("dns.google").connect("dns.google", 443).allow
    assert is_public_resolver("abc123.dns.nextdns.io")
    assert not is_public_resolver("google")


@pytest.mark.parametrize(
    "name",
    ["bedrock-runtime.us-east-1.amazonaws.com", "bedrock-runtime-fips.us-gov-west-1.amazonaws.com",
     "vpce-0a-b.bedrock-runtime.eu-west-1.vpce.amazonaws.com", "bedrock-runtime.us-east-1.api.aws",
     "bedrock.us-east-1.amazonaws.com", "runtime.sagemaker.us-east-1.amazonaws.com", "me.openai.azure.com",
     "eu.api.openai.com", "us-central1-aiplatform.googleapis.com", "api.anthropic.com", "openrouter.ai"],
)  # fmt: skip
def test_under_a_ceiling_a_model_host_is_metered_or_denied(name):
    assert ai_vendor(name)
    assert policy("*").name(name).allow
    assert policy("*", ai_ceiling=True).name(name).rule == "builtin:unmetered-ai-host"
    assert not policy(name, ai_ceiling=True).connect(name, 443).allow
    assert policy(name, ai_ceiling=True, metered_hosts=[name]).connect(name, 443).allow
    assert not policy(ai_ceiling=True, metered_hosts=[name]).connect(name, 443).allow


@pytest.mark.parametrize(
    "name", ["s3.us-east-1.amazonaws.com", "api.anthropic.com.evil.org", "xapi.openai.org", "googleapis.com"]
)
def test_other_hosts_are_no_model_hosts(name):
    assert ai_vendor(name) is None


def test_the_inside_api_is_always_there_and_nothing_below_it():
    p = policy()
    assert p.name("km.internal").allow
    assert p.connect("km.internal", 80).allow
    assert not p.connect("km.internal", 443).allow
    assert not p.resolved("km.internal", ip_address("1.1.1.1")).allow
    assert not policy("*").name("x.km.internal").allow
    assert not policy("*").name("localhost").allow


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "::1", "169.254.169.254", "169.254.1.1", "fd00:ec2::254", "fe80::1", "0.0.0.0", "198.18.1.0",
             "::ffff:127.0.0.1", "64:ff9b::7f00:1", "224.0.0.1", "168.63.129.16"]
)  # fmt: skip
def test_no_address_rule_opens_what_is_never_reachable(text):
    ip = ip_address(text)
    rules = [
        AddressRule(c)
        for c in ("0.0.0.0/0", "::/0", "127.0.0.0/8", "169.254.0.0/16", "169.254.169.254/32", "::1/128")
    ]
    assert policy("*", addresses=rules).address(ip, 443).rule == "builtin:forbidden-address"


def test_a_private_address_needs_a_rule_that_names_its_range():
    assert not policy(addresses=[AddressRule("0.0.0.0/0")]).address(ip_address("10.1.2.3"), 443).allow
    p = policy(addresses=[AddressRule("0.0.0.0/0"), AddressRule("10.1.0.0/16", (8080,), source="cidr")])
    assert p.address(ip_address("10.1.2.3"), 8080).rule == "cidr"
    assert p.address(ip_address("::ffff:10.1.2.3"), 8080).allow
    assert not p.address(ip_address("10.1.2.3"), 443).allow
    assert not p.address(ip_address("10.2.0.1"), 8080).allow
    assert p.address(ip_address("93.184.216.34"), 443).allow
    assert not p.address(ip_address("2606:4700::1111"), 443).allow


def test_a_rule_bound_to_a_name_opens_no_literal_address():
    p = policy("mirror.test", addresses=[AddressRule("10.0.0.5/32", (), "mirror.test", "group")])
    assert not p.address(ip_address("10.0.0.5"), 443).allow
    assert p.resolved("mirror.test", ip_address("10.0.0.5")).rule == "group"
    assert not p.resolved("mirror.test", ip_address("10.0.0.6")).allow
    assert not p.resolved("other.test", ip_address("10.0.0.5")).allow


def test_https_only_closes_an_exception_for_port_80_and_does_not_widen_it():
    rule = AddressRule("10.0.0.5/32", (80,), host="mirror.test", source="group")
    p = policy("mirror.test", addresses=[rule], https_only=True)
    for port in (None, 80, 443, 22):
        assert not p.resolved("mirror.test", ip_address("10.0.0.5"), port).allow


@pytest.mark.parametrize(
    "text", ["10.0.0.1", "127.0.0.1", "169.254.169.254", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::",
             "100.64.1.1", "198.18.0.1", "::10.0.0.1"]
)  # fmt: skip
def test_a_name_that_resolves_inside_is_rebinding(text):
    verdict = policy("*", addresses=[AddressRule("10.0.0.0/8")]).resolved("evil.test", ip_address(text))
    assert not verdict.allow
    assert verdict.rule == "builtin:private-address"


def test_an_operator_exception_holds_for_its_range_only():
    p = policy("*", private_hosts=[("m.test", "127.0.0.1/32"), ("w.test", "0.0.0.0/0"), ("l.test", "169.254.0.0/16"),
                                   ("x.test", "169.254.169.254/32")])  # fmt: skip
    assert p.resolved("m.test", ip_address("127.0.0.1")).allow
    assert not p.resolved("m.test", ip_address("127.0.0.2")).allow
    assert not p.resolved("w.test", ip_address("10.0.0.1")).allow
    assert p.resolved("l.test", ip_address("169.254.9.9")).allow
    assert not p.resolved("l.test", ip_address("169.254.169.254")).allow
    assert p.resolved("x.test", ip_address("169.254.169.254")).allow


def test_public_addresses_may_be_dialled():
    assert policy().resolved("a.test", ip_address("93.184.216.34")).allow


@pytest.mark.parametrize(
    "plan",
    [
        NetworkPlan(hosts=(HostRule("GitHub.com", "exact"),)),
        NetworkPlan(hosts=(HostRule("github.com", "regex"),)),
        NetworkPlan(hosts=(HostRule("github.com", "any"),)),
        NetworkPlan(hosts=(HostRule("github.com", "exact", (0,)),)),
        NetworkPlan(addresses=(AddressRule("10.0.0.1/8"),)),
        NetworkPlan(addresses=(AddressRule("ten"),)),
    ],
)
def test_a_damaged_plan_makes_no_policy(plan):
    with pytest.raises(PlanError):
        NetworkPolicy.from_plan(plan)


@pytest.mark.parametrize(
    ("target", "allow", "rule"),
    [
        ("https://api.test/path?q=http://x", True, "allowedHosts api.test"),
        ("API.test.", True, "allowedHosts api.test"),
        ("http://api.test", False, "builtin:https-only"),
        ("http://api.test:443/", False, "builtin:https-only"),
        ("http://km.internal/budget", True, "builtin:inside-api"),
        ("https://api.test@evil.org/", False, "builtin:malformed-name"),
        ("https://api.test\\@evil.org/", False, "builtin:malformed-name"),
        ("api.test:8443", False, "builtin:port"),
        ("https://other.test/", False, "builtin:default-deny"),
        ("::1", False, "builtin:forbidden-address"),
        ("gopher://api.test/", False, "builtin:malformed-name"),
    ],
)
def test_explain_says_what_the_wire_would_do(target, allow, rule):
    verdict = explain_egress(policy("api.test", https_only=True), target)
    assert (verdict.allow, verdict.rule) == (allow, rule)
    assert set(verdict.to_dict()) == {"verdict", "rule", "layer", "reason"}


LABEL = st.sampled_from(
    ["a", "b", "c", "api", "test", "example", "org", "com", "amazonaws", "bedrock", "dns", "google"]
)
NAME = st.lists(LABEL, min_size=1, max_size=4).map(".".join)
ENTRY = st.tuples(st.sampled_from(["", ".", "*."]), NAME, st.sampled_from(["", ":80", ":443", ":8443"])).map(
    "".join
)


@given(st.lists(ENTRY, max_size=5), NAME, st.booleans(), st.booleans())
def test_name_and_connect_agree(entries, name, https_only, ceiling):
    p = policy(*entries, https_only=https_only, ai_ceiling=ceiling)
    reachable = [port for port in (80, 443, 8443) if p.connect(name, port).allow]
    assert p.name(name).allow == bool(reachable)
    for spelling in (name.upper(), name + "."):
        assert p.name(spelling) == p.name(name)
        assert [port for port in (80, 443, 8443) if p.connect(spelling, port).allow] == reachable


@given(st.lists(ENTRY, max_size=6), NAME)
def test_matching_agrees_with_a_plain_reading_of_the_table(entries, name):
    def matches(entry):
        host = entry.split(":")[0]
        if host.startswith("*."):
            return name.endswith(host[1:])
        if host.startswith("."):
            return name == host[1:] or name.endswith(host)
        return name == host

    expected = any(matches(entry) for entry in entries)
    verdict = policy(*entries).name(name)
    assert verdict.allow == expected or verdict.rule == "builtin:public-resolver"


@given(st.text(max_size=40), st.integers(-1, 70000))
def test_questions_never_raise(text, port):
    p = policy("*")
    assert isinstance(p.name(text), Verdict)
    assert isinstance(p.connect(text, port), Verdict)
    assert isinstance(p.resolved(text, ip_address("10.0.0.1")), Verdict)
    assert isinstance(explain_egress(p, text), Verdict)


def test_ten_thousand_rules_cost_what_ten_do():
    def cost(count):
        p = policy(*[f".s{i}.example" for i in range(count)])
        best = float("inf")
        for _ in range(5):
            start = time.perf_counter()
            for i in range(500):
                p.name(f"h{i}.blocked.test")
            best = min(best, time.perf_counter() - start)
        return best

    assert cost(10_000) < 2 * cost(10)


def test_a_wide_range_opens_no_private_address_to_a_name():
    policy = NetworkPolicy.from_plan(
        NetworkPlan(
            hosts=(compile_pattern("a.example.org", dns_list=False),),
            addresses=(AddressRule("0.0.0.0/0"), AddressRule("::/0")),
        )
    )

    for text in ("10.0.0.1", "192.168.1.1", "127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00::1"):
        assert not policy.resolved("a.example.org", ip_address(text), 443).allow, text


@pytest.mark.parametrize("name", ["printer", "nas.local", "db.internal", "x.home.arpa", "a.lan", "y.test"])
def test_a_star_opens_no_name_of_the_operators_network(name):
    wide = policy("*")
    assert wide.name(name).rule == wide.connect(name, 443).rule == "builtin:local-name"
    assert explain_egress(wide, f"https://{name}/").rule == "builtin:local-name"
    for entry in (name, f".{name}", f"{name}:8443"):
        assert policy("*", entry).connect(name, 8443 if ":" in entry else 443).allow
    assert policy("*", private_hosts=[(name, "10.0.0.7/32")]).connect(name, 443).allow
    assert not policy(private_hosts=[(name, "10.0.0.7/32")]).connect(name, 443).allow


def test_only_an_exact_rule_leads_a_name_to_a_public_resolver():
    for entry in ("*", ".example.org", "*.example.org"):
        verdict = policy(entry).resolved("x.example.org", ip_address("8.8.8.8"))
        assert (verdict.allow, verdict.rule) == (False, "builtin:public-resolver")
        mapped = policy(entry).resolved("x.example.org", ip_address("::ffff:1.1.1.1"))
        assert mapped.rule == "builtin:public-resolver"
    assert policy("x.example.org").resolved("x.example.org", ip_address("8.8.8.8")).allow
