"""Capabilities, control groups, inputs, processes and the bootstrap."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from km_core.config import Config, Upstream
from km_core.errors import ConfigError, ProvisionError
from km_core.plan import SandboxPlan
from km_host import bootstrap, caps, cgroup, checks, namespaces, plugin
from km_host.backend import PodContext
from km_host.cgroup import ControlGroup, Hierarchies, Limits, find_hierarchies
from km_host.child import ChildProcess
from km_host.fds import close_other_descriptors
from km_host.pod_inputs import PodInputs
from km_host.processes import command_of, environment_of

# Capabilities.


@pytest.mark.parametrize(
    ("name", "value", "uid", "text"),
    [
        ("user/max_user_namespaces", "0", 1000, "user.max_user_namespaces"),
        ("user/max_user_namespaces", "0", 0, "user.max_user_namespaces"),
        ("kernel/unprivileged_userns_clone", "0", 1000, "for root only"),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", 1000, "AppArmor"),
    ],
)
def test_each_switch_has_its_own_explanation_and_remedy(tmp_path, name, value, uid, text):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(value + "\n")
    error = caps.user_namespace_obstacle(uid=uid, sysctl=tmp_path)
    assert text in error.what
    assert "sysctl" in error.hint


@pytest.mark.parametrize(
    ("name", "value", "uid"),
    [
        ("user/max_user_namespaces", "15000", 1000),
        ("kernel/unprivileged_userns_clone", "1", 1000),
        ("kernel/unprivileged_userns_clone", "0", 0),
        ("kernel/apparmor_restrict_unprivileged_userns", "0", 1000),
        ("kernel/apparmor_restrict_unprivileged_userns", "1", 0),
    ],
)
def test_switches_that_do_not_matter_are_no_obstacle(tmp_path, name, value, uid):
    path = tmp_path / name
    path.parent.mkdir(parents=True)
    path.write_text(value)
    assert caps.user_namespace_obstacle(uid=uid, sysctl=tmp_path) is None


def test_missing_programs_name_their_packages(monkeypatch):
    monkeypatch.setattr(caps.listeners, "SYSTEM_PATH", "/nonexistent")
    hints = [error.hint for error in caps.missing_programs()]
    assert hints == [f"install the package {name}" for name in ("bubblewrap", "nftables", "iproute2")]


@pytest.mark.parametrize(
    ("said", "fine"),
    [("bubblewrap 0.8.0", True), ("bubblewrap 1.0", True), ("bubblewrap 0.4.1", False), ("", False)],
)
def test_an_old_bubblewrap_is_refused(tmp_path, monkeypatch, said, fine):
    program = tmp_path / "bwrap"
    program.write_text(f"#!/bin/sh\necho {said}\n")
    program.chmod(0o755)
    monkeypatch.setattr(caps.listeners, "SYSTEM_PATH", f"{tmp_path}:/bin:/usr/bin")
    assert (caps.bubblewrap_obstacle() is None) is fine


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_namespaces")
def test_the_probe_tries_for_real_and_leaves_no_process():
    children = set(Path("/proc/self/task").glob("*/children"))
    assert caps.probe_namespaces() in {"tproxy", "redirect"}
    assert set(Path("/proc/self/task").glob("*/children")) == children


@pytest.mark.namespaces
def test_the_probe_says_why_it_failed(monkeypatch):
    def refuse(_flags):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(namespaces, "unshare", refuse)
    with pytest.raises(ProvisionError, match=r"may not make namespaces|user namespaces"):
        caps.probe_namespaces()


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_namespaces")
def test_health_checks_answer_and_leave_nothing():
    for check in plugin.km_doctor_checks():
        assert check.run().status in {"OK", "WARN"}
    assert cgroup.groups_with_prefix("km-doctor-") == ()


def test_health_checks_turn_errors_into_answers(monkeypatch):
    def fail():
        raise ProvisionError("no namespaces", hint="use another host")

    monkeypatch.setattr(caps, "probe_namespaces", fail)
    monkeypatch.setattr(caps.listeners, "SYSTEM_PATH", "/nonexistent")
    assert checks.check_namespaces().status == "ERROR"
    assert checks.check_namespaces().remediation == "use another host"
    assert checks.check_programs().status == "ERROR"


# Control groups.


def process(tmp_path, cgroups: str, mountinfo: str) -> Path:
    (tmp_path / "cgroup").write_text(cgroups)
    (tmp_path / "mountinfo").write_text(mountinfo)
    return tmp_path


def test_a_hybrid_host_is_understood(tmp_path):
    found = find_hierarchies(
        process(
            tmp_path,
            "4:memory:/a/b\n3:cpu,cpuacct:/c\n2:freezer:/\n1:name=systemd:/x\n0::/u\n",
            "30 25 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
            "31 25 0:27 / /sys/fs/cgroup/cpu rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n"
            "32 25 0:28 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer\n"
            "33 25 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
            "34 25 0:30 / / rw - ext4 /dev/vda rw\n",
        )
    )
    base = Path("/sys/fs/cgroup")
    assert found.v1 == {"memory": base / "memory/a/b", "cpu": base / "cpu/c", "freezer": base / "freezer"}
    assert (found.v2, found.v2_root) == (base / "unified/u", base / "unified")


def test_a_container_sees_its_own_part_of_the_tree(tmp_path):
    found = find_hierarchies(
        process(
            tmp_path,
            "0::/docker/abc/inner\n",
            "33 25 0:29 /docker/abc /sys/fs/cgroup rw - cgroup2 cgroup rw\n",
        )
    )
    assert found.v2 == Path("/sys/fs/cgroup/inner")


def test_an_unreadable_process_has_no_groups(tmp_path):
    assert find_hierarchies(tmp_path / "absent") == Hierarchies()


@given(st.text(max_size=200), st.text(max_size=200))
def test_odd_kernel_files_never_raise_anything_else(groups, mounts):
    lines = "".join(line + "\n" for line in mounts.splitlines())
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "mountinfo").write_text(lines, errors="replace")
        (place / "cgroup").write_text("0::/\n")
        del groups
        find_hierarchies(place)


def test_without_groups_every_limit_is_missing():
    group = ControlGroup("km-none", Hierarchies())
    assert group.create(Limits(1, 1.0, 1)) == ("memory", "cpu", "pids")
    assert not group.has_freezer
    for act in (group.freeze, group.thaw):
        with pytest.raises(ProvisionError, match="no freezer"):
            act()
    group.kill()
    group.remove()


def test_limits_that_are_not_wanted_are_not_missing():
    assert ControlGroup("km-none", Hierarchies()).create(Limits(pids=5)) == ("pids",)
    assert Limits().wanted == ()


@pytest.fixture
def need_groups():
    group = ControlGroup("km-test-probe")
    missing = group.create(cgroup.default_limits())
    group.remove()
    if missing:
        pytest.skip(f"no control groups for {', '.join(missing)}")


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_a_group_limits_freezes_kills_and_goes():
    group = ControlGroup(f"km-test-{os.getpid()}")
    assert group.create(Limits(64 * 1024 * 1024, 0.5, 32)) == ()
    child = os.fork()
    if child == 0:
        while True:
            signal.pause()
    try:
        group.add(child)
        assert group.processes() == {child}
        group.freeze()
        os.kill(child, signal.SIGTERM)
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        found = ControlGroup.existing(group.name)
        assert set(found.directories) == set(group.directories)
        assert cgroup.groups_with_prefix(group.name) == (group.name,)
        # Removing kills what is in it, frozen or not.
        remover = os.fork()
        if remover == 0:
            found.remove()
            os._exit(0)
        assert os.WIFSIGNALED(os.waitpid(child, 0)[1])
        assert os.waitpid(remover, 0)[1] == 0
        assert not any(directory.exists() for directory in group.directories)
    finally:
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        group.remove()


@pytest.mark.namespaces
@pytest.mark.usefixtures("need_groups")
def test_a_process_that_is_gone_cannot_be_added():
    group = ControlGroup(f"km-test-{os.getpid()}")
    group.create(Limits(pids=5))
    try:
        with pytest.raises(ProvisionError, match="cannot be put into"):
            group.add(2**22)
    finally:
        group.remove()


# Inputs.


def inputs(tmp_path) -> PodInputs:
    config = Config(
        home=tmp_path,
        runtime_dir=tmp_path / "r",
        upstreams={"api.example.org": Upstream("https://127.0.0.1:1", "/ca.pem")},
        private_hosts=(("mirror.example.org", "10.0.0.0/8"),),
        limits={"memory": "1GiB"},
        read_only_paths=("/opt/x",),
    )
    return PodInputs(
        "sb-00000001", config, tmp_path / "s", tmp_path / "r", tmp_path / "a", tmp_path / "k", "hush"
    )


def test_inputs_survive_their_way(tmp_path):
    given_ = inputs(tmp_path)
    assert PodInputs.from_line(given_.to_line()) == given_
    assert given_.to_line().count(b"\n") == 1


def test_the_token_is_not_in_the_repr(tmp_path):
    assert "hush" not in repr(inputs(tmp_path))


@given(st.binary(max_size=100))
def test_damaged_inputs_are_one_kind_of_error(line):
    with pytest.raises(ProvisionError, match="inputs are damaged") as caught:
        PodInputs.from_line(line)
    assert caught.value.__cause__ is None


def test_a_damaged_line_does_not_show_its_token(tmp_path):
    line = inputs(tmp_path).to_line().replace(b'"alias"', b'"sahla"')
    with pytest.raises(ProvisionError) as caught:
        PodInputs.from_line(line)
    assert "hush" not in str(caught.value.to_dict())


# Bootstrap.


def context(tmp_path, **changes) -> PodContext:
    config = Config(home=tmp_path, runtime_dir=tmp_path / "r", **changes)
    plan = SandboxPlan("p", "", "sb", "local")
    return PodContext("sb-00000001", plan, config, tmp_path / "s", tmp_path / "r", tmp_path / "a")


def message(tmp_path, **changes):
    return bootstrap.make_bootstrap(
        context(tmp_path, **changes), how="tproxy", control_socket=tmp_path / "k", token="t"
    )


def test_upstream_cas_and_prices_travel_as_text(tmp_path):
    (tmp_path / "ca.pem").write_text("PEM")
    (tmp_path / "prices.json").write_text('{"models": {}}')
    found = message(
        tmp_path, upstreams={"a.example.org": Upstream("https://127.0.0.1:1", str(tmp_path / "ca.pem"))}
    )
    assert found["upstreams"] == {"a.example.org": {"url": "https://127.0.0.1:1", "ca_pem": "PEM"}}
    assert found["prices"] == {"models": {}}
    json.dumps(found)


@pytest.mark.parametrize(
    "changes",
    [
        {"upstreams": {"a": Upstream("https://x", "/nonexistent/ca.pem")}},
        {"prices_file": "/nonexistent/prices.json"},
        {"upstream_dns": "resolver.example.org"},
        {"upstream_dns": "9.9.9.9:port"},
    ],
    ids=["ca", "prices", "dns name", "dns port"],
)
def test_what_the_configuration_names_and_is_not_there_is_an_error(tmp_path, changes):
    with pytest.raises(ConfigError):
        message(tmp_path, **changes)


@pytest.mark.parametrize("text", ["not json", "[]"])
def test_a_damaged_prices_file_is_an_error(tmp_path, text):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(ConfigError, match="price overlay"):
        message(tmp_path)


@pytest.mark.parametrize(
    ("configured", "expected"),
    [
        ("9.9.9.9", ["9.9.9.9:53"]),
        ("127.0.0.1:5300", ["127.0.0.1:5300"]),
        ("2620:fe::fe", ["[2620:fe::fe]:53"]),
        ("[2620:fe::fe]:54", ["[2620:fe::fe]:54"]),
    ],
)
def test_resolvers_are_addresses_with_ports(configured, expected):
    assert bootstrap.upstream_dns(configured) == expected


def test_the_hosts_resolvers_are_the_default(tmp_path):
    path = tmp_path / "resolv.conf"
    path.write_text(
        "# x\nnameserver 192.0.2.1\nnameserver nonsense\nnameserver 2001:db8::1\nnameserver\nsearch a b\n"
    )
    assert bootstrap.upstream_dns("", path) == ["192.0.2.1:53", "[2001:db8::1]:53"]
    assert bootstrap.upstream_dns("", tmp_path / "absent") == []


# Processes and descriptors.


def test_a_child_is_waited_for_and_signalled():
    async def scenario():
        child = os.fork()
        if child == 0:
            signal.pause()
            os._exit(0)
        process_ = ChildProcess(child)
        assert process_.code is None
        process_.kill()
        assert await process_.wait() == -signal.SIGKILL
        process_.kill()
        return await process_.wait()

    assert asyncio.run(scenario()) == -signal.SIGKILL


def test_exit_codes_are_told():
    async def scenario():
        child = os.fork()
        if child == 0:
            os._exit(7)
        return await ChildProcess(child).wait()

    assert asyncio.run(scenario()) == 7


def test_processes_can_be_looked_at_or_are_empty():
    assert command_of(os.getpid())
    assert environment_of(2**22) == {}
    assert command_of(2**22) == []


def test_other_descriptors_are_closed():
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            kept = os.open("/dev/null", os.O_RDONLY)
            close_other_descriptors((0, 1, 2, writing))
            names = {int(name) for name in os.listdir("/proc/self/fd")}
            os.write(writing, json.dumps([sorted(names - {kept}), writing]).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        names, kept = json.loads(pipe.read())
    os.waitpid(child, 0)
    assert len([name for name in names if name > 2]) <= 2
    assert kept in names


def test_die_with_parent_notices_a_parent_that_is_gone():
    with pytest.raises(ProcessLookupError):
        child = os.fork()
        if child == 0:
            try:
                namespaces.die_with_parent(1 if os.getppid() != 1 else 2)
            except ProcessLookupError:
                os._exit(42)
            os._exit(0)
        if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 42:
            raise ProcessLookupError


def test_mount_errors_name_the_place(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)) as caught:
        namespaces.mount("/nonexistent", str(tmp_path), flags=namespaces.MS_BIND)
    assert stat.S_ISDIR(tmp_path.stat().st_mode)
    assert caught.value.errno
