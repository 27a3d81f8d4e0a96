"""``km diff``: what a plan newly allows, by the policy's own matcher."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from km_core.cli.main import main
from km_core.compile.diff import diff_plans
from km_core.plan import (
    AddressRule,
    BudgetPlan,
    GitPlan,
    HostRule,
    LifecyclePlan,
    LimitsPlan,
    NetworkPlan,
    PlanFile,
    SandboxPlan,
    WorkloadPlan,
)
from km_core.policy import NetworkPolicy, compile_address, compile_pattern
from km_core.policy.refs import ref_allowed
from km_core.policy.repos import repo_allowed
from km_core.types import GroupResolution

METERED = ("api.anthropic.com",)


def plan(*hosts, dns=(), git=None, **parts):
    network = NetworkPlan(
        hosts=tuple(
            compile_pattern(entry, dns_list=dns_list, source=f"list[{index}] {entry}")
            for entries, dns_list in ((hosts, False), (dns, True))
            for index, entry in enumerate(entries)
            if compile_address(entry) is None
        ),
        addresses=tuple(a for entry in hosts if (a := compile_address(entry, source=entry)) is not None),
        **parts.pop("network", {}),
    )
    return SandboxPlan("p", "d", "sb", "local", network=network, git=git or GitPlan(), **parts)


def texts(changes, kind=None):
    return [change.text for change in changes if kind in {None, change.kind}]


def loosened(before, after):
    return texts(diff_plans(before, after, metered_hosts=METERED).loosened)


HTTP = "(ports 443, 80)"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        (["api.x.org"], [".x.org"], [f"newly allows x.org and its subdomains {HTTP}"]),
        (["x.org"], [".x.org"], [f"newly allows subdomains of x.org {HTTP}"]),
        ([".x.org"], ["api.x.org"], []),
        ([".x.org"], ["*.x.org"], []),
        (["x.org", "*.x.org"], [".x.org"], []),
        (["*.x.org"], [".x.org"], [f"newly allows x.org {HTTP}"]),
        ([".x.org"], [".api.x.org"], []),
        (["*"], [".x.org", "y.org"], []),
        ([".a.x.org", ".b.x.org"], ["*.x.org"], [f"newly allows subdomains of x.org {HTTP}"]),
        ([".org"], ["*"], [f"newly allows every name {HTTP}"]),
        (["x.org"], ["x.org:8443"], ["newly allows x.org (port 8443)"]),
        (["x.org:443"], ["x.org"], ["newly allows x.org (port 80)"]),
        (["*"], ["dns.google"], [f"newly allows dns.google {HTTP}"]),
        (["*"], ["*", "dns.google:8443"], ["newly allows dns.google (ports 8443, 443, 80)"]),
        (["X.org."], ["x.ORG"], []),
        ([], ["localhost"], []),
        (["10.0.0.0/8"], ["10.1.0.0/16"], []),
        (["0.0.0.0/0"], ["10.0.0.5"], [f"newly allows address 10.0.0.5/32 {HTTP}"]),
        (["0.0.0.0/0"], ["192.0.2.5"], []),
        (["192.0.2.0/25", "192.0.2.128/25"], ["192.0.2.0/24"], []),
        (["192.0.2.0/25"], ["192.0.2.0/24"], [f"newly allows addresses 192.0.2.0/24 {HTTP}"]),
        (["192.0.2.1:443"], ["192.0.2.1:22"], ["newly allows address 192.0.2.1/32 (port 22)"]),
        ([], ["127.0.0.1"], []),
        (["192.0.2.0/24"], ["2001:db8::1"], [f"newly allows address 2001:db8::1/128 {HTTP}"]),
    ],
)
def test_what_is_newly_reached(before, after, expected):
    found = diff_plans(plan(*before), plan(*after))

    assert expected == texts(found.loosened)
    mirrored = [text.replace("newly allows", "no longer allows") for text in expected]
    assert set(mirrored) <= set(texts(diff_plans(plan(*after), plan(*before)).tightened))


def test_a_bare_name_in_the_dns_list_is_a_suffix():
    assert [f"newly allows subdomains of x.org {HTTP}"] == loosened(plan("x.org"), plan(dns=["x.org"]))


def test_dropping_https_only_is_one_line_and_not_one_per_host():
    closed = {"network": {"https_only": True}}

    (text,) = loosened(plan("a.org", "b.org", **closed), plan("a.org", "b.org"))
    assert "plain HTTP is no longer refused" in text
    assert [] == loosened(plan("a.org"), plan("a.org", **closed))
    assert ["newly allows b.org (port 443)"] == loosened(plan("a.org"), plan("a.org", "b.org", **closed))


def test_a_resolver_that_https_only_kept_unnamed_is_told_with_the_ports_it_opens():
    entries = ("*", "dns.google:80")
    found = loosened(plan(*entries, network={"https_only": True}), plan(*entries))

    assert any(text.startswith("plain HTTP is no longer refused") for text in found)
    assert "newly allows dns.google (port 443)" in found


def test_dropping_the_ceiling_names_the_model_hosts_that_open():
    budget = {"budget": BudgetPlan(ai_limit_nusd=5_000_000_000)}
    found = loosened(
        plan("api.mistral.ai", "api.anthropic.com", **budget), plan("api.mistral.ai", "api.anthropic.com")
    )

    assert 2 == len(found)
    assert "newly allows api.mistral.ai: a model host that nothing meters" in found[0]
    assert "$5.00 -> no ceiling" in found[1]


@pytest.mark.parametrize(
    ("old", "new", "loose"),
    [(5, 10, True), (5, None, True), (None, 5, False), (10, 5, False), (0, 1, True), (None, 0, False)],
)
@pytest.mark.parametrize("pool", ["ai_limit_nusd", "compute_limit_nusd"])
def test_more_money_is_looser(pool, old, new, loose):
    found = diff_plans(plan(budget=BudgetPlan(**{pool: old})), plan(budget=BudgetPlan(**{pool: new})))

    assert (1, 0) == (len(found.loosened), len(found.tightened))[:: 1 if loose else -1]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ([], ["o/n"], ["the repository o/n"]),
        (["o/*"], ["o/n", "O/web-*"], []),
        (["o/web-*"], ["o/*"], ["the repositories o/*"]),
        (["o/web-*"], ["o/web-api-*"], []),
        (["o/web-*", "o/n"], ["o/web-*", "github.com/o/N"], []),
        (["o/*"], ["*"], ["every repository"]),
        (["*"], ["a/b", "c/*"], []),
        (["o/*-x"], ["o/*x"], ["the repositories o/*x"]),
        (["o/a*", "o/b*"], ["o/*"], ["the repositories o/*"]),
    ],
)
def test_what_repositories_are_newly_allowed(old, new, expected):
    found = diff_plans(plan(git=GitPlan("allowlist", tuple(old))), plan(git=GitPlan("allowlist", tuple(new))))

    assert [f"newly allows {text}" for text in expected] == texts(found.loosened, "repo")


def test_mode_none_allows_no_repository_whatever_is_listed():
    none, some = plan(git=GitPlan("none", ("o/n",))), plan(git=GitPlan("allowlist", ("o/n",)))

    assert texts(diff_plans(none, some).loosened, "repo")
    assert texts(diff_plans(some, none).tightened, "repo")


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (["main"], ["main", "dev"], ["pushing dev"]),
        (["*"], ["main", "f/*"], []),
        (["f/*"], ["*"], ["pushing *"]),
        (["main"], None, ["pushing every ref"]),
        (None, ["main", "refs/tags/*"], []),
        (["*"], ["refs/tags/v*"], ["pushing refs/tags/v*"]),
        (["refs/*"], ["refs/tags/v*", "main"], []),
        ([], ["main"], ["pushing main"]),
        (["main"], [], []),
        (["*", "refs/tags/*"], None, ["pushing every ref"]),
    ],
)
def test_what_refs_may_newly_be_pushed(old, new, expected):
    def with_refs(refs):
        return plan(git=GitPlan("allowlist", ("o/n",), None if refs is None else tuple(refs)))

    found = diff_plans(with_refs(old), with_refs(new))
    assert [f"newly allows {text}" for text in expected] == texts(found.loosened, "ref")


@pytest.mark.parametrize(
    ("part", "old", "new"),
    [
        ("network", NetworkPlan("both"), NetworkPlan("proxy")),
        ("network", NetworkPlan("proxy"), NetworkPlan("ebpf")),
        ("workload", WorkloadPlan(), WorkloadPlan(privileged=True)),
        ("lifecycle", LifecyclePlan(ttl_s=60), LifecyclePlan(ttl_s=120)),
        ("lifecycle", LifecyclePlan(ttl_s=60), LifecyclePlan()),
        ("lifecycle", LifecyclePlan(idle_timeout_s=60), LifecyclePlan(idle_timeout_s=90)),
        ("lifecycle", LifecyclePlan(max_lifetime_s=60), LifecyclePlan()),
        ("lifecycle", LifecyclePlan(), LifecyclePlan(teardown="retain")),
    ],
)
def test_weaker_promises_are_looser_and_the_other_way_round_tighter(part, old, new):
    before, after = evolve(plan(), **{part: old}), evolve(plan(), **{part: new})

    assert (1, 0) == tuple(
        map(len, (diff_plans(before, after).loosened, diff_plans(before, after).tightened))
    )
    assert (0, 1) == tuple(
        map(len, (diff_plans(after, before).loosened, diff_plans(after, before).tightened))
    )


def test_groups_are_shown_with_what_they_resolved_to():
    def with_group(*hosts):
        rules = tuple(HostRule(h.partition(":")[0], "exact", (443,), f"@g {h}") for h in hosts)
        groups = (GroupResolution("@g", hosts, source="a file"),)
        return evolve(plan(), network=NetworkPlan(hosts=rules, groups=groups))

    found = diff_plans(with_group("a.test:443"), with_group("b.test:443"))

    assert ["newly allows b.test (port 443)"] == texts(found.loosened)
    assert ["@g b.test:443"] == [change.path for change in found.loosened]
    assert ["@g resolves to b.test:443 (a file), before to a.test:443 (a file)"] == texts(
        found.other, "group"
    )
    found = diff_plans(plan(), with_group("b.test:443"))
    assert ["@g is new and resolves to b.test:443 (a file)"] == texts(found.other, "group")
    found = diff_plans(with_group("b.test:443"), plan())
    assert ["@g is gone; it was b.test:443 (a file)"] == texts(found.other, "group")


def test_a_private_mirror_is_an_address_for_one_name():
    def exception(cidr):
        return evolve(plan(), network=NetworkPlan(addresses=(AddressRule(cidr, (), "m.test", "@g m.test"),)))

    assert ["newly allows m.test at address 10.0.0.5/32"] == loosened(plan(), exception("10.0.0.5/32"))
    assert [] == loosened(exception("10.0.0.0/24"), exception("10.0.0.5/32"))


def test_neither_values_of_variables_nor_contents_of_files_are_shown():
    before = plan(workload=WorkloadPlan(env=(("A", "hush1"),), files=(PlanFile("/f", "hush2"),)))
    after = plan(
        workload=WorkloadPlan(
            env=(("A", "hush3"), ("B", "hush4")), files=(PlanFile("/f", "hush5"),), init_commands=("hush6",)
        )
    )
    found = diff_plans(before, after)

    assert "hush" not in json.dumps(found.to_dict()) + repr(found)
    assert ["env: +B, ~A", "configFiles: ~/f", "initCommands: 1 added, 0 removed"] == texts(found.other)


def test_security_comes_first():
    before = plan("x.org", network={"enforcement": "both"})
    after = plan("*", lifecycle=LifecyclePlan(teardown="stop"), git=GitPlan("allowlist", ("o/n",)))
    kinds = [change.kind for change in diff_plans(before, after).loosened]

    assert ["enforcement", "host", "repo", "ref", "lifetime"] == kinds


BASE = plan(
    "x.org",
    labels=(("a", "b"),),
    lifecycle=LifecyclePlan(60, 60, 60),
    limits=LimitsPlan(2**30, 1.0, 5, ("pids",)),
)
OTHERS = {
    "profile": "q",
    "prefix": "x",
    "substrate": "docker",
    "labels": (),
    "lifecycle": LifecyclePlan(61, 60, 60),
    "workload": WorkloadPlan(shell="/bin/sh"),
    "network": NetworkPlan(),
    "git": GitPlan("allowlist"),
    "budget": BudgetPlan(warning_threshold=0.5),
    "limits": LimitsPlan(),
    "runners": (),
    "requirements": ("a",),
    "inert": ("a",),
}


def test_every_part_of_a_plan_is_looked_at():
    assert not diff_plans(BASE, BASE)
    for name, value in OTHERS.items():
        assert diff_plans(BASE, evolve(BASE, **{name: value})), name
    assert set(OTHERS) | {"api", "profile_digest"} == {a.name for a in SandboxPlan.__attrs_attrs__}


words = st.sampled_from(["a", "b", "c"])
entries = st.builds(
    lambda prefix, labels, port: f"{prefix}{'.'.join(labels)}.org{port}",
    st.sampled_from(["", ".", "*."]),
    st.lists(words, min_size=1, max_size=2),
    st.sampled_from(["", ":443", ":8443"]),
)
names = st.lists(words, min_size=1, max_size=4).map(lambda labels: ".".join([*labels, "org"]))


@given(st.lists(entries, max_size=4), st.lists(entries, max_size=4), names, st.sampled_from([80, 443, 8443]))
def test_without_a_loosening_no_name_is_newly_allowed(first, second, name, port):
    before, after = plan(*first), plan(*second)
    old, new = (NetworkPolicy.from_plan(each.network) for each in (before, after))

    if not texts(diff_plans(before, after).loosened, "host"):
        assert old.connect(name, port).allow or not new.connect(name, port).allow
    for change in diff_plans(before, after).loosened:
        assert change.path


patterns = st.builds("o/{}".format, st.text("ab*", min_size=1, max_size=4))


@given(st.lists(patterns, max_size=3), st.lists(patterns, max_size=3), st.text("abz", min_size=1, max_size=4))
def test_without_a_loosening_no_repository_is_newly_allowed(first, second, name):
    before, after = (plan(git=GitPlan("allowlist", tuple(each))) for each in (first, second))

    if not texts(diff_plans(before, after).loosened, "repo"):
        assert repo_allowed(first, f"o/{name}").allow or not repo_allowed(second, f"o/{name}").allow


ref_patterns = st.text("ab/*", min_size=1, max_size=4)


@given(
    st.lists(ref_patterns, max_size=3),
    st.lists(ref_patterns, max_size=3),
    st.text("abz/", min_size=1, max_size=4),
)
def test_without_a_loosening_no_ref_may_newly_be_pushed(first, second, name):
    before, after = (plan(git=GitPlan("allowlist", ("o/n",), tuple(each))) for each in (first, second))

    if not texts(diff_plans(before, after).loosened, "ref"):
        assert ref_allowed(first, name).allow or not ref_allowed(second, name).allow


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path / "home"))

    assert 0 == main(["diff", "hardened", "hardened", "--exit-code"])
    assert "No differences." in capsys.readouterr().out
    assert 1 == main(["diff", "hardened", "learn", "--exit-code", "--json"])
    assert {"loosened", "tightened", "other"} == set(json.loads(capsys.readouterr().out))
    assert 0 == main(["diff", "hardened", "learn"])
    assert capsys.readouterr().out.startswith("loosened:\n")
    assert 1 == main(["diff", "hardened", "no-such-profile", "--json"])
    assert "error" in json.loads(capsys.readouterr().out)


def is_network(text):
    try:
        ip_network(text)
    except ValueError:
        return False
    return True


ranges = st.builds(
    "{}/{}".format,
    st.sampled_from(
        ["0.0.0.0", "10.0.0.0", "10.1.0.0", "192.0.2.0", "192.168.0.0", "2001:db8::", "fc00::", "::"]
    ),
    st.sampled_from([0, 8, 16, 24]),
).filter(is_network)
points = st.one_of(
    st.sampled_from(
        ["10.0.0.5", "10.1.0.5", "192.0.2.9", "8.8.8.8", "127.0.0.1", "169.254.169.254", "fc00::5"]
    ),
    st.ip_addresses().map(str),
)


@given(st.lists(ranges, max_size=4), st.lists(ranges, max_size=4), points, st.sampled_from([80, 443]))
def test_without_a_loosening_no_address_is_newly_allowed(first, second, point, port):
    before, after = plan(*first), plan(*second)
    old, new = (NetworkPolicy.from_plan(each.network) for each in (before, after))
    ip = ip_address(point)

    if not texts(diff_plans(before, after).loosened, "address"):
        assert old.address(ip, port).allow or not new.address(ip, port).allow
