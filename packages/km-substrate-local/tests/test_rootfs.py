"""The generated file system and the numbers behind it, without a sandbox."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from km_core.config import Config
from km_core.errors import ProvisionError
from km_core.plan import NetworkPlan, SandboxPlan, WorkloadPlan
from km_host import caps, trust
from km_substrate_local import host_ids, plugin, rootfs
from km_substrate_local.substrate import LocalSubstrate

PLAN = SandboxPlan("p", "", "sb", "local")
CA = "-----BEGIN CERTIFICATE-----\nZmFrZQ==\n-----END CERTIFICATE-----\n"


@pytest.fixture
def config(tmp_path):
    return Config(home=tmp_path / "home", runtime_dir=tmp_path / "run")


def test_generated_files_can_be_read_by_anybody_whatever_the_umask(tmp_path):
    old = os.umask(0o077)
    try:
        tmp_path.joinpath("r").mkdir()
        rootfs.write_rootfs(tmp_path / "r", "sb-00000001", PLAN, CA)
    finally:
        os.umask(old)
    for place, directories, files in os.walk(tmp_path / "r"):
        for name in [*directories, *files]:
            path = Path(place, name)
            if not path.is_symlink():
                assert path.stat().st_mode & 0o777 == (0o755 if path.is_dir() else 0o644), path


def test_writing_twice_gives_the_same(tmp_path):
    def snapshot():
        return {
            str(path): path.readlink() if path.is_symlink() else path.read_bytes()
            for path in tmp_path.rglob("*")
            if path.is_symlink() or path.is_file()
        }

    rootfs.write_rootfs(tmp_path, "sb-00000001", PLAN, CA)
    first = snapshot()
    rootfs.write_rootfs(tmp_path, "sb-00000001", PLAN, CA)
    assert snapshot() == first


def test_the_bundle_holds_what_the_host_trusts_and_the_sandboxs_ca(tmp_path, monkeypatch):
    bundle = tmp_path / "bundle.pem"
    bundle.write_text("-----BEGIN CERTIFICATE-----\nAA==\n-----END CERTIFICATE-----")
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    rootfs.write_rootfs(tmp_path / "r", "sb-00000001", PLAN, CA)
    text = (tmp_path / "r" / "etc/ssl/certs/ca-certificates.crt").read_text()
    assert text == bundle.read_text() + "\n" + CA
    store = (tmp_path / "r" / "etc/ssl/certs/java/cacerts").read_bytes()
    assert store == trust.java_store(text)


def test_a_host_without_a_bundle_has_the_sandboxs_ca_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(trust, "host_bundle", lambda: None)
    rootfs.write_rootfs(tmp_path, "sb-00000001", PLAN, CA)
    assert (tmp_path / "etc/ssl/certs/ca-certificates.crt").read_text() == CA


def test_every_jdk_of_the_host_finds_the_one_store(tmp_path, monkeypatch):
    places = ["/etc/ssl/certs/java/cacerts", "/etc/pki/java/cacerts", "/usr/lib/jvm/own/lib/security/cacerts"]
    monkeypatch.setattr(trust, "java_stores", lambda: places)
    rootfs.write_rootfs(tmp_path, "sb-00000001", PLAN, CA)
    assert (tmp_path / "etc/pki/java/cacerts").readlink() == Path("/etc/ssl/certs/java/cacerts")
    etc = rootfs.Mount(tmp_path / "etc", "/etc")
    words = rootfs.bubblewrap_arguments(
        "sb-00000001", [("/staged", etc)], environment={}, seccomp_fd=9, scratch_bytes=1
    )
    at = words.index("/usr/lib/jvm/own/lib/security/cacerts")
    assert words[at - 2 : at] == ["--ro-bind", "/staged/ssl/certs/java/cacerts"]


def test_private_host_files_are_left_out(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o640)
    assert rootfs.is_public(secret) is False
    secret.chmod(0o644)
    assert rootfs.is_public(secret) is True
    assert rootfs.is_public(tmp_path / "absent") is False
    tmp_path.chmod(0o700)
    assert rootfs.is_public(tmp_path) is False


def test_a_file_system_that_cannot_be_written_is_said_so(tmp_path):
    (tmp_path / "etc").write_text("in the way")
    with pytest.raises(ProvisionError, match="cannot be generated"):
        rootfs.write_rootfs(tmp_path, "sb-00000001", PLAN, CA)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("relative", "absolute"),
        ("/usr/../etc", "absolute"),
        ("/usr/", "absolute"),
        ("/nonexistent/place", "does not exist"),
        ("/", "own"),
        ("/etc", "own"),
        ("/proc/self", "own"),
        ("/dev/null", "own"),
        ("/sys", "own"),
        ("/run", "own"),
    ],
)
def test_read_only_paths_that_would_uncover_the_host_are_refused(config, path, why):
    assert why in rootfs.read_only_problem(path, config)


def test_read_only_paths_never_show_kms_own_files(config, tmp_path):
    (config.home / "sandboxes").mkdir(parents=True)
    config.runtime_dir.mkdir()
    link = tmp_path / "innocent"
    link.symlink_to(config.home)
    for path in (config.home, config.home / "sandboxes", config.runtime_dir, tmp_path, link):
        assert "km's own files" in rootfs.read_only_problem(str(path), config)


def test_a_link_to_a_private_place_is_refused(config, tmp_path):
    link = tmp_path / "link"
    link.symlink_to("/etc")
    assert "private" in rootfs.read_only_problem(str(link), config)


def test_a_tool_chain_may_be_shown(config, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    assert rootfs.read_only_problem(str(tools), config) == ""
    shown = rootfs.mounts(
        tmp_path / "s",
        Config(home=config.home, runtime_dir=config.runtime_dir, read_only_paths=(str(tools),)),
    )
    assert shown[-1] == rootfs.Mount(tools, str(tools))
    assert [mount.target for mount in shown if mount.writable] == ["/workspace", "/home/sandbox"]


@pytest.mark.namespaces
def test_a_tool_chain_is_there_and_read_only(make_sandbox, tmp_path):
    def config(root):
        tools = root / "private" / "tools"
        tools.mkdir(parents=True)
        (tools / "hello").write_text("#!/bin/sh\necho hello\n")
        (tools / "hello").chmod(0o755)
        tools.parent.chmod(0o700)
        root.chmod(0o755)
        return Config(home=root / "h", runtime_dir=root / "r", read_only_paths=(str(tools),))

    sandbox = make_sandbox(config=config).up()
    (tools,) = sandbox.box.config.read_only_paths
    assert sandbox.sh(f"{tools}/hello") == "hello\n"
    assert sandbox.run("/bin/sh", "-c", f"echo x > {tools}/hello")[0] != 0
    assert sandbox.run("/bin/ls", str(sandbox.box.config.home))[0] != 0


# Ids.


@pytest.fixture
def as_root(monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 0)


def state(tmp_path, name):
    path = tmp_path / "sandboxes" / name
    path.mkdir(parents=True)
    return path


@pytest.mark.usefixtures("as_root")
def test_roots_sandboxes_get_different_ids_of_the_range_and_keep_them(tmp_path):
    found = {}
    for number in range(20):
        directory = state(tmp_path, f"sb-{number:08x}")
        found[directory] = host_ids.host_ids(directory)
    assert len({ids.uid for ids in found.values()}) == 20
    for directory, ids in found.items():
        assert host_ids.host_ids(directory) == ids
        assert ids.uid == ids.gid
        assert host_ids.FIRST_UID <= ids.uid < host_ids.FIRST_UID + host_ids.UIDS


@pytest.mark.usefixtures("as_root")
def test_a_taken_id_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(host_ids, "UIDS", 3)
    uids = [host_ids.host_ids(state(tmp_path, f"sb-{number:08x}")).uid for number in range(3)]
    assert sorted(uids) == [host_ids.FIRST_UID + step for step in range(3)]


@pytest.mark.usefixtures("as_root")
@pytest.mark.parametrize("text", ["0", "1000", "", "-5", "4294967295", "x"])
def test_a_stored_id_outside_the_range_is_refused(tmp_path, text):
    directory = state(tmp_path, "sb-00000001")
    (directory / "rootfs").mkdir()
    (directory / "rootfs" / host_ids.FILE).write_text(text)
    with pytest.raises(ProvisionError, match="damaged"):
        host_ids.host_ids(directory)


def test_an_ordinary_operators_sandboxes_have_the_operators_id(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 1235)
    ids = host_ids.host_ids(tmp_path)
    assert (ids.uid, ids.gid, ids.is_own) == (1234, 1235, True)
    assert list(tmp_path.iterdir()) == []


def test_giving_files_away_never_follows_links(tmp_path):
    if os.getuid() != 0:
        pytest.skip("only root gives files away")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("x")
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(outside)
    (inside / "deep").mkdir()
    (inside / "deep" / "file-link").symlink_to(outside / "file")
    host_ids.give(inside, host_ids.HostIds(1879048200, 1879048200))
    assert (outside.stat().st_uid, (outside / "file").stat().st_uid) == (0, 0)
    assert {path.lstat().st_uid for path in [inside, *inside.rglob("*")]} == {1879048200}


# What the host lacks.


def paths(plan, config):
    return {problem.path for problem in LocalSubstrate().problems(plan, config)}


def test_a_good_plan_has_no_problems(config, need_sandboxes):
    assert paths(PLAN, config) == set()


@pytest.mark.parametrize("mode", ["ebpf", "both"])
def test_modes_that_local_does_not_have_are_refused(config, mode):
    plan = SandboxPlan("p", "", "sb", "local", network=NetworkPlan(enforcement=mode))
    assert "spec.network.enforcement" in paths(plan, config)


def test_a_root_user_is_refused(config):
    plan = SandboxPlan("p", "", "sb", "local", workload=WorkloadPlan(privileged=True))
    assert "spec.execution.privileged" in paths(plan, config)


@pytest.mark.parametrize("shell", ["/bin/no-such-shell", "/root/sh", "/tmp/sh"])
def test_a_shell_that_cannot_be_shown_is_refused(config, shell):
    plan = SandboxPlan("p", "", "sb", "local", workload=WorkloadPlan(shell=shell))
    assert "spec.execution.shell" in paths(plan, config)


def test_a_missing_program_is_named_with_its_package(config, monkeypatch):
    monkeypatch.setattr(caps.listeners, "SYSTEM_PATH", "/nonexistent")
    problems = LocalSubstrate().problems(PLAN, config)
    assert any("bwrap" in p.message and "bubblewrap" in p.hint for p in problems)
    assert {"install the package nftables", "install the package iproute2"} <= {p.hint for p in problems}


def test_the_plugin_offers_local():
    (offer,) = plugin.km_substrates()
    assert offer.name == "local"
    assert "root" not in offer.capabilities
