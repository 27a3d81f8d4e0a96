"""What a workload tries against its walls, with real namespaces."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import attrs
import pytest
from km_core.config import Config
from km_core.control.substrate import Box
from km_core.errors import GuardError, ProvisionError
from km_core.plan import BudgetPlan, GitPlan, HostRule, LimitsPlan, NetworkPlan, SandboxPlan
from km_core.testing.probes import short_directory

from km_substrate_offline import kernel
from km_substrate_offline.checks import check_namespaces
from km_substrate_offline.claims import claims
from km_substrate_offline.processes import first_of, processes_of
from km_substrate_offline.substrate import OfflineSubstrate

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(
    not kernel.supported() or check_namespaces().status != "OK", reason="this host makes no namespaces"
)
PLAN = SandboxPlan(
    profile="walls", profile_digest="", prefix="sb", substrate="offline", limits=LimitsPlan(pids=64)
)
ROOT = {"bin", "dev", "etc", "home", "lib", "lib32", "lib64", "libx32", "proc", "run", "sbin"} | {
    *("tmp", "usr", "var", "workspace")
}
ATTACK = """
import ctypes, json, os, socket
found = {}
for name, family, kind in (("vsock", 40, 1), ("packet", 17, 3), ("alg", 38, 5), ("bluetooth", 31, 1)):
    try:
        socket.socket(family, kind)
        found[name] = "made"
    except OSError as error:
        found[name] = error.errno
def connect(address):
    with socket.socket() as sock:
        sock.settimeout(3)
        return sock.connect_ex(address)
found["out"] = connect(("192.0.2.1", 80))
libc = ctypes.CDLL(None, use_errno=True)
for name, number in (("io_uring", 425), ("bpf", {"x86_64": 321, "aarch64": 280}[os.uname().machine])):
    found[name] = (libc.syscall(number, 0, 0, 0), ctypes.get_errno())
found["namespaces"] = libc.unshare(0x10000000)
status = dict(line.split(":", 1) for line in open("/proc/self/status") if line.startswith(("Cap", "NoNew")))
found["capabilities"] = sorted({value.strip() for name, value in status.items() if name != "NoNewPrivs"})
found["no_new_privs"] = status["NoNewPrivs"].strip()
found["devices"] = sorted(name for _, name in socket.if_nameindex())
found["descriptors"] = sorted(os.listdir("/proc/self/fd"))[:3]
found["environment"] = sorted(os.environ)
print(json.dumps(found))
"""


@pytest.fixture
def box() -> Iterator[Box]:
    root = short_directory()
    config = Config(home=root / "home", runtime_dir=root / "run")
    state_dir = config.sandbox_dir("sb-0a1b2c3d")
    state_dir.mkdir(parents=True, mode=0o700)
    config.runtime_dir.mkdir(mode=0o700)
    made = Box(
        id="sb-0a1b2c3d",
        plan=PLAN,
        config=config,
        state_dir=state_dir,
        runtime_dir=config.sandbox_runtime_dir("sb-0a1b2c3d"),
        audit_dir=root,
        control_socket=root / "none.sock",
        token="a-token-for-nothing",
    )
    yield made
    OfflineSubstrate().destroy(made)
    subprocess.run(["rm", "-rf", str(root)], check=True)


@pytest.fixture
def running(box: Box) -> Box:
    substrate = OfflineSubstrate()
    substrate.prepare(box)
    substrate.start(box)
    return box


def run(box: Box, *argv: str, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = OfflineSubstrate().exec(box, argv, env={}, cwd="/workspace", root=False, tty=False)
    return code, capfd.readouterr().out


def test_nothing_leads_out(running: Box, capfd: pytest.CaptureFixture[str]) -> None:
    if not Path("/usr/bin/python3").exists():
        pytest.skip("the host has no /usr/bin/python3 to attack with")
    code, out = run(running, "/usr/bin/python3", "-c", ATTACK, capfd=capfd)
    found = json.loads(out)

    assert code == 0
    assert {found.pop(name) for name in ("vsock", "packet", "alg", "bluetooth")} == {97}  # EAFNOSUPPORT
    assert found.pop("out") == 101  # ENETUNREACH
    assert found.pop("io_uring") == found.pop("bpf") == [-1, 1]  # EPERM
    assert found.pop("namespaces") == -1
    assert found.pop("capabilities") == ["0000000000000000"]
    assert found.pop("no_new_privs") == "1"
    assert found.pop("devices") == ["lo"]
    assert found.pop("descriptors") == ["0", "1", "2"]
    assert not [name for name in found.pop("environment") if "TOKEN" in name or name.startswith("KM_H")]
    assert found == {}


def test_nothing_of_the_host_is_there(running: Box, capfd: pytest.CaptureFixture[str]) -> None:
    script = (
        "ls / ; cat /etc/shadow; ls /root; ls /var/run; touch /usr/x /x /etc/x;"
        "echo x > /proc/sys/kernel/core_pattern;"
        f"ls {running.config.home}; ls {running.runtime_dir}; ls -d /proc/[0-9]* | wc -l"
    )
    _, out = run(running, "/bin/sh", "-c", script, capfd=capfd)

    assert set(out.split()[:-1]) <= ROOT
    assert int(out.split()[-1]) <= 5


def test_the_token_is_in_no_process_of_the_sandbox(running: Box) -> None:
    first = first_of(running.runtime_dir)
    assert first is not None
    process = Path("/proc", str(first.pid))

    assert b"a-token" not in (process / "environ").read_bytes() + (process / "cmdline").read_bytes()
    with (process / "maps").open() as maps, (process / "mem").open("rb") as memory:
        for line in maps:
            span, rights, *_ = line.split()
            start, end = (int(part, 16) for part in span.split("-"))
            if rights.startswith("rw"):
                with contextlib.suppress(OSError, ValueError, OverflowError):
                    memory.seek(start)
                    assert b"a-token-for-nothing" not in memory.read(end - start)


def test_a_command_gets_its_words_and_its_code_back(running: Box, capfd: pytest.CaptureFixture[str]) -> None:
    words = ("a b", "--help", "", "'\"$(x)", "two\nlines")

    assert run(running, "printf", "%s|", *words, capfd=capfd) == (0, "|".join(words) + "|")
    assert run(running, "sh", "-c", "exit 7", capfd=capfd)[0] == 7
    assert run(running, "sh", "-c", "kill -9 $$", capfd=capfd)[0] == 137
    assert run(running, "no-such-program", capfd=capfd)[0] == 127
    assert run(running, "/etc/passwd", capfd=capfd)[0] == 126


def test_when_its_keeper_is_killed_the_sandbox_is_gone(running: Box) -> None:
    keepers = [pid for pid, _ in processes_of(running.config)]
    os.kill(min(keepers), 9)

    ends = time.monotonic() + 5
    while OfflineSubstrate().status(running)["running"] and time.monotonic() < ends:
        time.sleep(0.02)
    assert not OfflineSubstrate().status(running)["running"]
    assert [item.what for item in OfflineSubstrate().leftovers(running.config)] == ["runtime directory"]


def test_what_runs_in_the_background_ends_with_a_stop(
    running: Box, capfd: pytest.CaptureFixture[str]
) -> None:
    substrate = OfflineSubstrate()
    run(running, "sh", "-c", "echo kept > file; sleep 1000 >/dev/null 2>&1 &", capfd=capfd)

    substrate.stop(running)

    assert list(processes_of(running.config)) == []
    substrate.resume(running)
    assert run(running, "cat", "file", capfd=capfd) == (0, "kept\n")


def test_a_workload_cannot_pass_for_a_process_of_ours(
    running: Box, capfd: pytest.CaptureFixture[str]
) -> None:
    before = set(processes_of(running.config))
    script = f"exec -a {sys.executable} sleep 3 x km_substrate_offline.keeper"
    run(running, "bash", "-c", f"({script}) >/dev/null 2>&1 &", capfd=capfd)

    assert set(processes_of(running.config)) == before


def test_nothing_runs_before_the_start(box: Box) -> None:
    substrate = OfflineSubstrate()
    substrate.prepare(box)

    assert not substrate.status(box)["running"]
    with pytest.raises(ProvisionError):
        substrate.exec(box, ["true"], env={}, cwd="/", root=False, tty=False)


def test_neither_root_nor_a_terminal_is_given(running: Box) -> None:
    for wish in ({"root": True, "tty": False}, {"root": False, "tty": True}):
        with pytest.raises(GuardError):
            OfflineSubstrate().exec(running, ["true"], env={}, cwd="/", **wish)


@pytest.mark.parametrize(
    ("plan", "path"),
    [
        ({"network": NetworkPlan(hosts=(HostRule("example.org", "exact"),))}, "spec.network.egress"),
        ({"git": GitPlan(mode="allowlist", repos=("*",))}, "spec.sourceAccess.github.allowedRepos"),
        ({"budget": BudgetPlan(ai_limit_nusd=0)}, "spec.budget.ai"),
        ({"limits": LimitsPlan(cpus=1.0, explicit=("cpus",))}, "limits.cpus"),
    ],
)
def test_what_it_cannot_enforce_is_refused_by_name(plan: dict[str, object], path: str, box: Box) -> None:
    problems = OfflineSubstrate().problems(attrs.evolve(PLAN, **plan), box.config)

    assert [problem.path for problem in problems] == [path]


def test_every_claim_is_about_this_substrate_alone() -> None:
    assert {claim.substrates for claim in claims()} == {("offline",)}
