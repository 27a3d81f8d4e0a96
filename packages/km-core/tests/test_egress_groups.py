"""Egress groups: what the operator's package clients say is what opens, and nothing besides."""

from __future__ import annotations

import json
import os
import shutil
import socket
import types
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core import hookimpl
from km_core.compile.draft import network_plan
from km_core.compile.groups import (
    core_groups,
    mirrors,
    resolve_debian_packages,
    resolve_groups,
    resolve_npm_packages,
    resolve_python_packages,
    resolve_with_plugins,
)
from km_core.compile.groups.debian import source_uris
from km_core.compile.groups.mirrors import Mirrors, host_entry
from km_core.compile.pipeline import Overrides, check_file, egress_rules, plan_from_file
from km_core.config import load_config
from km_core.errors import PlanError, PluginError
from km_core.plugins import PluginInfo, PluginRegistry, new_manager
from km_core.policy import NetworkPolicy, explain_egress
from km_core.testing.pm import manager_with
from km_core.types import EgressGroup, GroupResolution

needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")
needs_apt = pytest.mark.skipif(shutil.which("apt-get") is None, reason="needs apt")


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """No name is looked up in earnest; a test adds what it needs."""
    known: dict[str, list[str]] = {}

    def getaddrinfo(host, port, **_):
        if host not in known:
            raise socket.gaierror("not known here")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in known[host]]

    monkeypatch.setattr(mirrors.socket, "getaddrinfo", getaddrinfo)
    return known


def npm(**settings_):
    return resolve_npm_packages(lambda: {"registry": "https://registry.invalid/", **settings_})


def npm_list(settings_):
    return resolve_npm_packages(lambda: settings_)


def apt(*uris):
    return resolve_debian_packages(lambda: uris)


def registry(**groups):
    """Return a registry of plugins that offer one group each, by the plugin's name."""
    manager = new_manager()
    infos = []
    for name, group in groups.items():
        module = types.ModuleType(name)
        module.KM_PLUGIN_API = 1
        module.km_egress_groups = hookimpl(lambda offered=group: [offered], specname="km_egress_groups")
        manager.register(module, name=name)
        infos.append(PluginInfo(name, f"km-{name}", "1.0", name, "ok"))
    return PluginRegistry(manager, tuple(infos))


# npm


def test_npms_registry_is_opened_at_its_port_and_handed_to_npm_inside():
    group = npm(registry="https://mirror.invalid:8443/npm/")

    assert group.hosts == ("mirror.invalid:8443",)
    assert group.env == (("npm_config_registry", "https://mirror.invalid:8443/npm/"),)


def test_registries_of_scopes_are_opened_too_and_named_in_the_source():
    group = npm_list(
        {
            "registry": "https://registry.invalid/",
            "@team:registry": "https://npm.team.invalid/",
            "fund": False,
            "@team/x": "https://other.invalid/",
        }
    )

    assert group.hosts == ("npm.team.invalid:443", "registry.invalid:443")
    assert group.source == "the operator's npm configuration (with @team)"


def test_a_local_registry_is_no_host_to_allow():
    with pytest.raises(PlanError, match="no registry"):
        npm(registry="file:///srv/npm")


@needs_npm
def test_the_operators_real_npm_answers(monkeypatch, tmp_path):
    config = tmp_path / "npmrc"
    config.write_text("registry=https://mirror.invalid/npm/\n@team:registry=http://team.invalid:4873/\n")
    monkeypatch.setenv("NPM_CONFIG_USERCONFIG", str(config))

    group = core_groups()["@npm-packages"].resolve()

    assert group.hosts == ("mirror.invalid:443", "team.invalid:4873")


@needs_npm
def test_npms_own_default_counts_where_nothing_is_configured(monkeypatch, tmp_path):
    for name in ("NPM_CONFIG_USERCONFIG", "NPM_CONFIG_GLOBALCONFIG"):
        monkeypatch.setenv(name, str(tmp_path / name))
    for name in [key for key in os.environ if key.lower() == "npm_config_registry"]:
        monkeypatch.delenv(name)

    group = core_groups()["@npm-packages"].resolve()

    assert len(group.hosts) == 1
    assert group.hosts[0].endswith(":443")


@needs_npm
def test_a_project_in_the_current_directory_has_no_say(monkeypatch, tmp_path):
    (tmp_path / "package.json").write_text("{}")
    (tmp_path / ".npmrc").write_text("registry=https://attacker.invalid/\n")
    monkeypatch.chdir(tmp_path)

    assert "attacker.invalid:443" not in core_groups()["@npm-packages"].resolve().hosts


def test_a_package_called_pip_in_the_current_directory_is_not_run(monkeypatch, tmp_path):
    (tmp_path / "pip").mkdir()
    (tmp_path / "pip" / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.chdir(tmp_path)

    core_groups()["@python-packages"].resolve()

    assert not (tmp_path / "ran").exists()


def test_without_npm_the_error_names_the_group_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(PlanError, match="npm is not found") as caught:
        core_groups()["@npm-packages"].resolve()

    assert caught.value.where == "@npm-packages"
    assert "install npm" in caught.value.hint


def test_a_client_that_hangs_or_babbles_ends_in_an_error(monkeypatch, tmp_path):
    client = tmp_path / "npm"
    client.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(mirrors, "_ASK_SECONDS", 0.2)
    with pytest.raises(PlanError, match="does not answer"):
        core_groups()["@npm-packages"].resolve()

    client.write_text("#!/bin/sh\necho '[1]'\n")
    with pytest.raises(PlanError, match="cannot read its configuration"):
        core_groups()["@npm-packages"].resolve()


# apt


def test_every_network_source_is_opened_and_local_ones_are_left_out():
    group = apt(
        "http://deb.invalid/debian/",
        "http://deb.invalid/debian/",
        "https://updates.invalid:444/",
        "file:///srv/mirror",
        "cdrom:[Debian]/",
    )

    assert group.hosts == ("deb.invalid:80", "updates.invalid:444")
    assert group.env == ()


def test_a_source_that_names_no_host_is_refused():
    with pytest.raises(PlanError, match=r"mirror\+http"):
        apt("mirror+http://list.invalid/mirrors.txt")


def test_sources_on_disks_only_leave_nothing_to_allow():
    with pytest.raises(PlanError, match="no host to allow"):
        apt("file:///srv/mirror")


def test_both_forms_of_source_files_are_read(tmp_path):
    parts = tmp_path / "sources.list.d"
    parts.mkdir()
    (tmp_path / "sources.list").write_text(
        "# deb http://commented.invalid/ stable main\n"
        "deb [arch=amd64 signed-by=/x.gpg] https://one.invalid/debian stable main\n"
        "deb-src http://two.invalid/debian stable main # trailing\n"
        "not a source\n"
    )
    (parts / "b.sources").write_text(
        "Types: deb\n# a comment\nURIs: http://three.invalid/debian\n http://four.invalid/debian\n"
        "Suites: stable\nComponents: main\n\n"
        "Types: deb\nURIs: http://off.invalid/\nSuites: x\nEnabled: no\n"
    )
    (parts / "c.list").write_text("deb file:/srv/x ./\n")
    (parts / "ignored.sources.disabled").write_text("Types: deb\nURIs: http://ignored.invalid/\n")

    assert source_uris(tmp_path) == [
        "https://one.invalid/debian",
        "http://two.invalid/debian",
        "file:/srv/x",
        "http://three.invalid/debian",
        "http://four.invalid/debian",
    ]


@needs_apt
def test_the_operators_real_apt_answers(monkeypatch, tmp_path):
    (tmp_path / "sources.list").write_text("deb http://mirror.invalid:3142/debian stable main\n")
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{tmp_path / "sources.list"}";\nDir::Etc::sourceparts "{tmp_path / "none"}";\n'
    )
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("APT_CONFIG", str(config))

    assert core_groups()["@debian-packages"].resolve().hosts == ("mirror.invalid:3142",)


@needs_apt
def test_credentials_in_apts_real_sources_are_refused_and_not_repeated(monkeypatch, tmp_path):
    (tmp_path / "sources.list").write_text("deb http://me:hunter2@mirror.invalid/debian stable main\n")
    config = tmp_path / "apt.conf"
    config.write_text(
        f'Dir::Etc::sourcelist "{tmp_path / "sources.list"}";\nDir::Etc::sourceparts "{tmp_path / "none"}";\n'
    )
    (tmp_path / "none").mkdir()
    monkeypatch.setenv("APT_CONFIG", str(config))

    with pytest.raises(PlanError, match="credentials") as caught:
        core_groups()["@debian-packages"].resolve()

    assert "hunter2" not in json.dumps(caught.value.to_dict())


def test_on_a_machine_without_apt_the_error_names_the_group_and_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(Path, "is_dir", lambda _: False)

    with pytest.raises(PlanError, match="no apt") as caught:
        core_groups()["@debian-packages"].resolve()

    assert caught.value.where == "@debian-packages"
    assert "allowedHosts" in caught.value.hint


# what all have in common

RESOLVERS = {
    "pip": lambda url: resolve_python_packages(
        lambda: {"settings": [f"global.index-url='{url}'"], "index": "", "files": ""}
    ),
    "npm": lambda url: npm(registry=url),
    "apt": apt,
}


@pytest.mark.parametrize("client", RESOLVERS)
@pytest.mark.parametrize(
    "url",
    ["https://me:hunter2@mirror.invalid/", "https://hunter2@mirror.invalid/", "https://m.invalid/?t=hunter2"],
)
def test_credentials_in_a_url_are_refused_and_not_repeated(client, url):
    with pytest.raises(PlanError, match="credentials") as caught:
        RESOLVERS[client](url)

    assert "hunter2" not in json.dumps(caught.value.to_dict())


@pytest.mark.parametrize("client", RESOLVERS)
@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://localhost:3141/", "this machine"),
        ("http://127.0.0.1:3141/", "loopback"),
        ("http://169.254.169.254/", "metadata"),
        ("http://[::1]:80/", "loopback"),
        ("http://bad_host-.invalid/", "host name"),
        ("http://h.invalid:99999/", "cannot be read"),
    ],
)
def test_a_mirror_where_no_sandbox_gets_is_refused(client, url, why):
    with pytest.raises(PlanError, match=why):
        RESOLVERS[client](url)


@pytest.mark.parametrize("client", RESOLVERS)
def test_a_private_mirror_is_excepted_for_exactly_its_addresses(client, names):
    names["mirror.corp.invalid"] = ["10.1.2.3", "fd12::7", "192.0.2.9"]
    group = RESOLVERS[client]("https://mirror.corp.invalid/")

    assert group.private == (("mirror.corp.invalid", "10.1.2.3/32"), ("mirror.corp.invalid", "fd12::7/128"))

    policy = NetworkPolicy.from_plan(network_plan({}, [group]))
    assert policy.resolved("mirror.corp.invalid", ip_address("10.1.2.3"), 443).allow
    assert not policy.resolved("mirror.corp.invalid", ip_address("10.1.2.4"), 443).allow
    assert not policy.resolved("other.invalid", ip_address("10.1.2.3"), 443).allow
    assert not explain_egress(policy, "https://10.1.2.3/").allow


def test_a_resolver_cannot_open_metadata_or_loopback_through_a_mirrors_name(names):
    names["mirror.invalid"] = ["169.254.169.254", "127.0.0.1", "fd00:ec2::254", "168.63.129.16", "198.18.0.1"]

    assert npm(registry="https://mirror.invalid/").private == ()


def test_a_mirror_named_by_its_address_opens_that_address_at_that_port():
    group = npm(registry="http://10.0.0.5:8080/")
    policy = NetworkPolicy.from_plan(network_plan({}, [group]))

    assert group.hosts == ("10.0.0.5:8080",)
    assert explain_egress(policy, "http://10.0.0.5:8080/").allow
    assert not explain_egress(policy, "http://10.0.0.5/").allow
    assert not explain_egress(policy, "http://10.0.0.6:8080/").allow
    assert npm(registry="http://[2001:db8::5]:8080/").hosts == ("[2001:db8::5]:8080",)


@settings(max_examples=400, deadline=None)
@given(
    st.tuples(
        st.sampled_from(["http://", "https://", "HTTPS://", "//", "", "file:///", "mirror+http://"]),
        st.text(alphabet="aA0.-_:/@[]?#%é \\", max_size=14),
    ).map("".join)
)
def test_any_text_for_a_url_is_refused_or_becomes_canonical_entries(url):
    found = Mirrors("@x", "test")
    try:
        taken = found.add(url)
    except PlanError:
        return
    assert taken == bool(found.hosts)
    for entry in found.hosts:
        host, _, port = entry.rpartition(":")
        assert host_entry(host, int(port)) == entry
        assert "@" not in entry


# plugins


def answer(name="@corp-mirror", hosts=("mirror.corp.invalid:8443",), private=()):
    return EgressGroup(name, "a mirror", lambda: GroupResolution(name, hosts, private, "corp's inventory"))


PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: t}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: local, instanceType: none, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  sourceAccess: {mode: none}
  network: {egress: {allowedDNSSuffixes: %s, allowedHosts: %s}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


@pytest.mark.parametrize("lists", [('["@corp-mirror"]', "[]"), ("[]", '["@corp-mirror"]')])
def test_a_plugins_group_decides_and_explain_names_group_and_source(tmp_path, lists):
    path = tmp_path / "t.yaml"
    path.write_text(PROFILE % lists)
    config = load_config({"KM_HOME": str(tmp_path)})

    policy = egress_rules(path, config, registry(corp=answer())).policy
    allowed = explain_egress(policy, "https://mirror.corp.invalid:8443/x")
    denied = explain_egress(policy, "https://mirror.corp.invalid/x")

    assert (allowed.allow, allowed.rule) == (
        True,
        "@corp-mirror mirror.corp.invalid:8443 (corp's inventory)",
    )
    assert not denied.allow
    assert "@corp-mirror" in denied.reason
    assert not explain_egress(policy, "https://sub.mirror.corp.invalid:8443/").allow


def test_a_group_that_nothing_offers_names_those_that_are(tmp_path):
    with pytest.raises(PlanError, match="@nobody") as caught:
        resolve_groups(["@nobody"], core_groups())

    assert "@npm-packages" in caught.value.hint
    with pytest.raises(PlanError, match="@npm-package ") as caught:
        resolve_groups(["@npm-package "], core_groups())
    assert caught.value.hint == "did you mean @npm-packages?"


def test_checking_for_a_substrate_finds_a_misspelt_group_and_its_place(tmp_path):
    text = (Path(__file__).parent / "data_quickstart.yaml").read_text()
    head, _, rest = text.partition("allowedHosts: [")
    profile = tmp_path / "slip.yaml"
    profile.write_text(f'{head}allowedHosts: ["@python-package", {rest}')
    config = load_config({"KM_HOME": str(tmp_path)})

    problems, _ = check_file(profile, config, manager_with(), substrate="local")

    (found,) = [problem for problem in problems if problem.code == "group-unknown"]
    assert found.path == "spec.network.egress.allowedHosts[0]"
    assert (found.line, found.hint) == (head.count("\n") + 1, "did you mean @python-packages?")
    assert not any(p.code == "group-unknown" for p in check_file(profile, config, manager_with())[0])


@pytest.mark.parametrize(
    "hosts",
    [
        ("*:443",),
        (".corp.invalid:443",),
        ("mirror.corp.invalid",),
        ("mirror.corp.invalid:0",),
        ("mirror.corp.invalid:65536",),
        ("Mirror.corp.invalid:443",),
        ("mirror.corp.invalid.:443",),
        ("@npm-packages:443",),
        ("10.0.0.0/8:443",),
        ("0x7f.1:443",),
        ("https://mirror.corp.invalid:443",),
        (443,),
    ],
)
def test_a_plugins_answer_that_is_no_host_and_port_is_refused_by_name(hosts):
    with pytest.raises(PluginError, match="@corp-mirror") as caught:
        resolve_with_plugins(["@corp-mirror"], registry(corp=answer(hosts=hosts)))

    assert caught.value.distribution == "km-corp"


@pytest.mark.parametrize(
    "private",
    [
        (("other.invalid", "10.0.0.1/32"),),
        (("mirror.corp.invalid", "10.0.0.0/8"),),
        (("mirror.corp.invalid", "10.0.0.1"),),
        (("mirror.corp.invalid", "anything/32"),),
    ],
)
def test_a_plugins_exception_is_for_one_address_of_its_own_hosts(private):
    with pytest.raises(PluginError, match="exception"):
        resolve_with_plugins(["@corp-mirror"], registry(corp=answer(private=private)))


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("hosts", None, "no tuple"),
        ("hosts", "mirror.corp.invalid:443", "no tuple"),
        ("hosts", (b"mirror.corp.invalid:443",), "HOST:PORT"),
        ("hosts", ("mirror.corp.invalid:443\n",), "HOST:PORT"),
        ("hosts", ("169.254.169.254:80",), "metadata"),
        ("hosts", ("[fd00:ec2::254]:80",), "metadata"),
        ("hosts", ("127.0.0.1:80",), "loopback"),
        ("hosts", tuple(f"h{i}.invalid:443" for i in range(2000)), "2000 entries"),
        ("private", "x", "no tuple"),
        ("private", (("mirror.corp.invalid",),), "pair"),
        ("private", (("mirror.corp.invalid", "169.254.169.254/32"),), "metadata"),
        ("private", (("mirror.corp.invalid", "127.0.0.1/32"),), "loopback"),
        ("source", None, "source"),
        ("source", "two\nlines", "source"),
        ("source", "\x1b[31m", "source"),
        ("env", (("A", 1),), "pair"),
        ("env", (("A", "x\0"),), "pair"),
        ("env", (("A", "x\ny"),), "pair"),
        ("env", (("A B", "x"),), "variable"),
        ("env", (("KM_HOME", "x"),), "reserved"),
        ("env", (("A", "1"), ("A", "2")), "two values"),
    ],
)
def test_every_part_of_a_plugins_answer_is_checked_before_it_gets_into_a_plan(part, value, why):
    parts = {"hosts": ("mirror.corp.invalid:443",), part: value}
    group = EgressGroup("@corp-mirror", "x", lambda: GroupResolution("@corp-mirror", **parts))

    with pytest.raises(PluginError, match=why) as caught:
        resolve_with_plugins(["@corp-mirror"], registry(corp=group))

    assert caught.value.distribution == "km-corp"


def test_a_password_in_a_plugins_answer_is_not_repeated():
    for parts in ({"hosts": ("me:hunter2@mirror.invalid:443",)}, {"hosts": (), "env": (("A", "hunter2\n"),)}):
        group = EgressGroup("@corp-mirror", "x", lambda p=parts: GroupResolution("@corp-mirror", **p))

        with pytest.raises(PluginError) as caught:
            resolve_with_plugins(["@corp-mirror"], registry(corp=group))

        assert "hunter2" not in str(caught.value.to_dict())


def test_the_order_of_a_plugins_answer_does_not_show_in_the_plan():
    def resolved(*hosts):
        return resolve_with_plugins(["@corp-mirror"], registry(corp=answer(hosts=hosts)))

    assert resolved("b.invalid:1", "a.invalid:1", "b.invalid:1") == resolved("a.invalid:1", "b.invalid:1")


def test_a_group_does_not_replace_a_variable_that_something_else_sets(tmp_path):
    def group(name, value):
        found = GroupResolution(name, ("mirror.invalid:443",), env=(("MIRROR", value),))
        return EgressGroup(name, "x", lambda: found)

    path = tmp_path / "t.yaml"
    path.write_text(PROFILE % ("[]", '["@one", "@two"]'))
    config = load_config({"KM_HOME": str(tmp_path)})

    with pytest.raises(PlanError, match="MIRROR") as caught:
        plan_from_file(
            path,
            config,
            registry(one=group("@one", "1"), two=group("@two", "2")),
            Overrides(),
            for_reading=True,
        )

    assert caught.value.where == "@two"


@pytest.mark.parametrize(
    "url",
    ["https://mirror.inv\nalid/", "https://mirror.invalid/ x", "https://mirror.invalid:0/", "\thttps://a/"],
)
def test_a_url_that_clients_may_read_otherwise_is_refused(url):
    with pytest.raises(PlanError):
        npm(registry=url)


def test_more_mirrors_than_anybody_configures_are_refused_before_they_are_looked_up(monkeypatch):
    monkeypatch.setattr(mirrors.socket, "getaddrinfo", lambda *_, **__: pytest.fail("looked up"))

    with pytest.raises(PlanError, match="more than 64"):
        apt(*(f"https://m{index}.invalid/debian" for index in range(65)))


def test_a_plugins_answer_for_another_group_is_refused():
    liar = EgressGroup("@corp-mirror", "x", lambda: GroupResolution("@npm-packages", ("a.invalid:443",)))

    for offered in (liar, EgressGroup("@corp-mirror", "x", lambda: None)):
        with pytest.raises(PluginError, match="another group"):
            resolve_with_plugins(["@corp-mirror"], registry(corp=offered))


def test_a_plugin_cannot_take_the_place_of_a_group_of_km():
    with pytest.raises(PluginError, match="km itself has") as caught:
        resolve_with_plugins(["@npm-packages"], registry(corp=answer("@npm-packages")))

    assert caught.value.distribution == "km-corp"


def test_a_plugin_that_raises_is_named_and_its_text_is_not_trusted():
    def resolve():
        raise RuntimeError("token=ghp_0123456789abcdef0123456789abcdef0123")

    with pytest.raises(PluginError, match="RuntimeError") as caught:
        resolve_with_plugins(["@x"], registry(corp=EgressGroup("@x", "x", resolve)))

    assert "ghp_0123" not in json.dumps(caught.value.to_dict())


def test_a_profile_without_groups_asks_nobody(monkeypatch, tmp_path):
    path = tmp_path / "t.yaml"
    path.write_text(PROFILE % ("[]", "[a.invalid]"))
    monkeypatch.setattr(mirrors.subprocess, "run", lambda *_a, **_k: pytest.fail("a client was asked"))

    egress_rules(path, load_config({"KM_HOME": str(tmp_path)}), registry())
