"""``km explain egress|git``: the same verdicts as the wire's."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.cli.main import main
from km_core.compile.explain import EgressRules, explain_git, explain_target
from km_core.plan import AddressRule, HostRule, NetworkPlan
from km_core.policy import NetworkPolicy, explain_egress, parse_address, parse_authority
from km_core.policy.aws import AwsGuard
from km_core.policy.explain import parse_target
from km_core.secrets import AwsAccess
from km_core.types import Endpoint, EndpointKind, GroupResolution, Verdict

GROUP = GroupResolution("@corp", ("pkg.corp.test:8443",), source="the operator's corp file")
PLAN = NetworkPlan(
    hosts=(
        HostRule("api.test", "exact", (), "h[0]"),
        HostRule("x.test", "suffix", (443, 8443), "h[1]"),
        HostRule("y.test", "subdomains", (), "h[2]"),
        HostRule("meter.test", "exact", (), "h[3]"),
        HostRule("pkg.corp.test", "exact", (8443,), "@corp pkg.corp.test:8443"),
    ),
    addresses=(AddressRule("192.0.2.0/24", (), "", "a[0]"), AddressRule("2001:db8::/32", (443,), "", "a[1]")),
    groups=(GROUP,),
)


class FakeMeter:
    """Knows one endpoint that is metered, one that is free and refuses the rest."""

    name = "fake"
    hosts = ("meter.test",)

    def endpoint(self, method, path, headers):
        if path == "/v1/messages":
            kind = EndpointKind.METERED if method == "POST" else EndpointKind.REFUSED
            return Endpoint("messages", kind)
        return Endpoint("models", EndpointKind.FREE if path == "/v1/models" else EndpointKind.REFUSED)


def rules(ceiling=None, **network):
    policy = NetworkPolicy.from_plan(
        NetworkPlan(hosts=PLAN.hosts, addresses=PLAN.addresses, groups=PLAN.groups, **network),
        ai_ceiling=ceiling is not None,
        metered_hosts=FakeMeter.hosts,
    )
    return EgressRules(policy, PLAN.groups, (FakeMeter(),), ceiling)


hosts = st.one_of(
    st.sampled_from(["api.test", "x.test", "y.test", "km.internal", "localhost", "evil.test", "meter.test"]),
    st.builds(
        "{}.{}".format,
        st.from_regex(r"[a-zA-Z0-9-]{1,8}", fullmatch=True),
        st.sampled_from(["x.test", "y.test", "API.test.", "test", "km.internal"]),
    ),
    st.ip_addresses().map(lambda ip: f"[{ip}]" if ip.version == 6 else str(ip)),
    st.ip_addresses(network="192.0.2.0/24").map(str),
    st.ip_addresses(network="2001:db8::/32").map(lambda ip: f"[{ip}]"),
    st.sampled_from(
        ["[::1]", "0x7f.1", "2130706433", "169.254.169.254", "[::ffff:10.0.0.1]", "[fe80::1%eth0]"]
    ),
    st.text(max_size=12),
)
authorities = st.one_of(
    hosts,
    st.builds("{}:{}".format, hosts, st.one_of(st.integers(0, 70000), st.sampled_from([80, 443, 8443]))),
)


@given(authorities)
def test_the_verdict_on_an_authority_is_the_policys_own(text):
    """What the gate asks of a CONNECT to it, asked here by hand."""
    policy = rules().policy
    try:
        bare = parse_address(text)
        if bare is not None and (":" in text or not text.isdigit()):
            expected = policy.address(bare, 443, "tcp")
        elif "://" in text:
            return
        else:
            authority = parse_authority(text, 443)
            if authority.address is not None:
                expected = policy.address(authority.address, authority.port, "tcp")
            else:
                named = policy.name(authority.host)
                expected = policy.connect(authority.host, authority.port) if named.allow else named
    except ValueError as error:
        expected = Verdict(False, "builtin:malformed-name", "connect", str(error))

    assert explain_egress(policy, text) == expected
    assert explain_target(rules(), text).allow is expected.allow


@given(authorities, st.sampled_from(["https", "http"]), st.sampled_from(["", "/", "/a?b#c", "/@evil.test/x"]))
def test_a_path_never_turns_a_denial_into_an_allowance(text, scheme, path):
    if any(char in text for char in "/?#"):
        return
    verdict = explain_target(rules(5), f"{scheme}://{text}{path}")
    bare = explain_target(rules(5), f"{scheme}://{text}")

    assert not verdict.allow or bare.allow
    assert verdict.allow or verdict.reason


@pytest.mark.parametrize(
    ("target", "allow", "rule"),
    [
        ("[2001:db8::1]:443", True, "a[1]"),
        ("2001:db8::1", True, "a[1]"),
        ("[2001:db8::1]:80", False, "builtin:port"),
        ("[::1]:443", False, "builtin:forbidden-address"),
        ("https://[::1]:443/", False, "builtin:forbidden-address"),
        ("192.0.2.7:80", True, "a[0]"),
        ("192.0.2.7:22", False, "builtin:port"),
        ("x.test:8443", True, "h[1]"),
        ("a.x.test:80", False, "builtin:port"),
        ("https://api.test/any/path?q=1", True, "h[0]"),
        ("ssh://api.test/x", False, "builtin:port"),
        ("https://user@api.test/", False, "builtin:malformed-name"),
        ("https://api.test@evil.test/", False, "builtin:malformed-name"),
        ("ws://api.test/", True, "h[0]"),
        ("wss://api.test/", True, "h[0]"),
        ("http://km.internal/budget", True, "builtin:inside-api"),
        ("https://km.internal/", False, "builtin:port"),
    ],
)
def test_targets_in_every_form(target, allow, rule):
    verdict = explain_target(rules(), target)

    assert (allow, rule) == (verdict.allow, verdict.rule)


def test_a_group_is_shown_with_what_it_resolved_to_and_where_that_is_from():
    verdict = explain_target(rules(), "https://pkg.corp.test:8443/simple/")

    assert verdict.allow
    assert "@corp resolved to pkg.corp.test:8443 from the operator's corp file" in verdict.reason


@pytest.mark.parametrize(
    ("target", "method", "ceiling", "rule"),
    [
        ("https://meter.test/v1/messages", "", 5, "h[3]"),
        ("https://meter.test/v1/messages", "POST", 5, "h[3]"),
        ("https://meter.test/v1/messages", "get", 5, "builtin:ai_endpoint_not_metered"),
        ("https://meter.test/v1/images", "", 5, "builtin:ai_endpoint_not_metered"),
        ("https://meter.test/v1/images", "", None, "h[3]"),
        ("https://meter.test/v1/batches", "", 5, "builtin:ai_path_stores_data"),
        ("https://meter.test/v1/files/x", "GET", None, "builtin:ai_path_stores_data"),
        ("https://meter.test/v1/models", "", 0, "h[3]"),
        ("https://meter.test/v1/messages", "POST", 0, "builtin:ai_budget_exhausted"),
        ("https://meter.test/", "", 5, "h[3]"),
        ("meter.test:443", "", 5, "h[3]"),
        ("http://meter.test/", "", 5, "builtin:intercepted-host"),
        ("http://meter.test/", "", None, "builtin:intercepted-host"),
        ("wss://meter.test/", "", 5, "builtin:upgrade"),
    ],
)
def test_on_a_metered_host_the_path_counts_as_it_does_for_the_gate(target, method, ceiling, rule):
    verdict = explain_target(rules(ceiling), target, method=method)

    assert rule == verdict.rule
    assert verdict.allow is not rule.startswith("builtin:")


def test_a_method_that_is_none_is_a_usage_error():
    with pytest.raises(ValueError, match="method"):
        explain_target(rules(), "api.test", method="GET /")


def test_a_target_is_read_in_its_parts():
    found = parse_target("HTTPS://API.test:8443/a?b#c")

    assert ("https", "api.test", 8443, "/a?b") == (
        found.scheme,
        found.authority.host,
        found.authority.port,
        found.path,
    )
    assert ipaddress.ip_address("::1") == parse_target("[::1]:1").authority.address


GITHUB = {"mode": "allowlist", "github": {"allowedRepos": ["O/n", "o/web-*"], "allowedRefs": ["main", "f/*"]}}


@pytest.mark.parametrize(
    ("access", "question", "allow"),
    [
        (GITHUB, ("fetch", "o/N"), True),
        (GITHUB, ("fetch", "https://github.com/o/n.git"), True),
        (GITHUB, ("fetch", "o/web-api"), True),
        (GITHUB, ("fetch", "o/other"), False),
        (GITHUB, ("fetch", "o/n", "refs/heads/anything"), True),
        (GITHUB, ("push", "o/n", "main"), True),
        (GITHUB, ("push", "o/n", "refs/heads/f/x"), True),
        (GITHUB, ("push", "o/n", "refs/tags/main"), False),
        (GITHUB, ("push", "o/n", "dev"), False),
        (GITHUB, ("push", "o/n"), True),
        (GITHUB, ("push", "o/other", "main"), False),
        (GITHUB | {"mode": "none"}, ("fetch", "o/n"), False),
        ({"mode": "allowlist"}, ("fetch", "o/n"), False),
        ({"mode": "allowlist", "github": {"allowedRepos": ["*"]}}, ("push", "a/b", "refs/tags/v1"), True),
        ({"mode": "allowlist", "github": {"allowedRepos": ["*"], "allowedRefs": []}}, ("push", "a/b"), False),
        ({}, ("push", "a/b"), False),
    ],
)
def test_repositories_and_refs(access, question, allow):
    verdict = explain_git(access, *question)

    assert (allow, "git") == (verdict.allow, verdict.layer)
    assert verdict.reason


@pytest.mark.parametrize(
    ("repo", "ref"), [("no-slash", None), ("o/n/more", None), ("o/n", "a b"), ("o/n", "")]
)
def test_what_names_no_repository_or_ref_is_refused(repo, ref):
    with pytest.raises(ValueError, match=r"owner/name|no ref"):
        explain_git(GITHUB, "push", repo, ref)


def test_the_command_prints_the_four_members(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path))

    assert 1 == main(["explain", "egress", "no-such-profile", "x", "--json"])
    assert "not-found" == json.loads(capsys.readouterr().out)["error"]["code"]
    assert 0 == main(["explain", "git", "hardened", "push", "o/n", "--ref", "main", "--json"])
    data = json.loads(capsys.readouterr().out)
    assert ["verdict", "rule", "layer", "reason"] == list(data)
    assert "deny" == data["verdict"]
    assert 0 == main(["explain", "egress", "hardened", "https://x.amazonaws.com/", "--json"])
    data = json.loads(capsys.readouterr().out)
    # Its suffix opens nothing until the operator says whose requests to AWS pass.
    assert ("deny", "builtin:aws-key") == (data["verdict"], data["rule"])
    assert "section aws" in data["reason"]


AWS = NetworkPlan(
    hosts=(HostRule("amazonaws.com", "subdomains", (), "h[0]"), HostRule("web.test", "exact", (), "h[1]"))
)
ACCESS = AwsAccess(("AKIAQ3EGRMNSEXAMPLEX",), (), ("s3", "sqs"), ("eu-west-1", "us-east-1"), ("ours",))


@pytest.mark.parametrize(
    ("target", "rule", "says"),
    [
        ("https://ours.s3.eu-west-1.amazonaws.com/k", "h[0]", "judged by its signature"),
        ("sqs.eu-west-1.amazonaws.com", "h[0]", "judged by its signature"),
        ("s3.eu-west-1.amazonaws.com", "h[0]", "judged by its signature"),
        ("https://s3.eu-west-1.amazonaws.com/theirs/k", "builtin:aws-bucket", "bucket theirs"),
        ("theirs.s3.eu-west-1.amazonaws.com", "builtin:aws-bucket", "bucket theirs"),
        ("sqs.us-east-1.amazonaws.com", "builtin:aws-scope", "identity.allowedRegions"),
        ("sqs.eu-north-1.amazonaws.com", "builtin:aws-scope", "aws.regions"),
        ("sns.eu-west-1.amazonaws.com", "builtin:aws-scope", "aws.services"),
        ("x.execute-api.eu-west-1.amazonaws.com", "builtin:aws-tenant", "name it exactly"),
        ("http://ours.s3.eu-west-1.amazonaws.com/k", "builtin:intercepted-host", "https only"),
        ("https://web.test/x", "h[1]", "the secret web-key"),
        ("http://web.test/x", "builtin:intercepted-host", "https only"),
    ],
)
def test_what_the_gate_opens_is_explained_by_the_operators_configuration(target, rule, says):
    guard = AwsGuard(AWS.hosts, ACCESS, regions=("eu-west-1",))
    made = EgressRules(NetworkPolicy.from_plan(AWS), aws=guard, credentials={"web.test": "web-key"})
    verdict = explain_target(made, target)
    assert verdict.rule == rule
    assert says in verdict.reason
    assert verdict.allow is rule.startswith("h[")
