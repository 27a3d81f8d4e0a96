"""What root and the sandbox's user can do inside, as the engine's exec runs them too."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from km_substrate_docker.containers import WORKLOAD_CAPABILITIES
from km_substrate_docker.engine import find
from km_substrate_docker.hostfiles import Owners

pytestmark = [pytest.mark.docker, pytest.mark.timeout(120)]

# linux/capability.h
NUMBERS = {"CHOWN": 0, "DAC_OVERRIDE": 1, "FOWNER": 3, "FSETID": 4, "KILL": 5, "SETGID": 6, "SETUID": 7}
NUMBERS |= {"NET_BIND_SERVICE": 10}
FORBIDDEN = {"NET_ADMIN": 12, "NET_RAW": 13, "SYS_MODULE": 16, "SYS_PTRACE": 19, "SYS_ADMIN": 21, "BPF": 39}

PROBE = r"""
import ctypes, errno, json, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    ctypes.set_errno(0)
    result = libc.syscall(number, *arguments)
    return "allowed" if result >= 0 else errno.errorcode[ctypes.get_errno()]
def sock(family, kind, protocol=0):
    try:
        socket.socket(family, kind, protocol).close()
        return "allowed"
    except OSError as error:
        return errno.errorcode[error.errno]
def look(path):
    try:
        with open(path, "rb") as file:
            file.read(1)
        return "allowed"
    except OSError as error:
        return errno.errorcode[error.errno]
print(json.dumps({
    "vsock": sock(40, socket.SOCK_STREAM), "packet": sock(17, socket.SOCK_RAW), "raw": sock(2, socket.SOCK_RAW, 1),
    "alg": sock(38, socket.SOCK_SEQPACKET), "xdp": sock(44, socket.SOCK_RAW), "netfilter": sock(16, socket.SOCK_RAW, 12),
    "inet": sock(2, 1), "inet6": sock(10, 1), "unix": sock(1, 1),
    "io_uring": call(425, 1, 0), "keyctl": call(250, 0, -3, 0), "bpf": call(321, 0, 0, 0),
    "unshare": call(272, 0x10000000), "setns": call(308, 0, 0), "mount": call(165, 0, 0, 0, 0, 0),
    "ptrace": call(101, 16, 1, 0, 0), "mem": look("/proc/1/mem"), "environ": look("/proc/1/environ"),
}))
"""


def capabilities(status, which="CapEff"):
    value = int(next(line.split()[1] for line in status.splitlines() if line.startswith(which)), 16)
    return {number for number in range(64) if value >> number & 1}


def field(status, name):
    return next(line.split()[1] for line in status.splitlines() if line.startswith(name + ":"))


def test_root_has_the_few_capabilities_and_none_that_reaches_out(live_pod, run_inside):
    pod = live_pod().up()

    _, status = run_inside(pod.context, "cat", "/proc/self/status")

    assert capabilities(status) == {NUMBERS[name] for name in WORKLOAD_CAPABILITIES}
    assert capabilities(status).isdisjoint(FORBIDDEN.values())
    assert (field(status, "NoNewPrivs"), field(status, "Seccomp")) == ("1", "2")


def test_the_sandboxs_user_has_no_capability_and_its_own_name(live_pod, run_inside):
    pod = live_pod().up()

    _, status = run_inside(pod.context, "cat", "/proc/self/status", user="sandbox")
    _, name = run_inside(pod.context, "id", user="sandbox")

    assert capabilities(status) == set()
    uid, gid = Owners.here().sandbox
    assert f"uid={uid}(sandbox) gid={gid}(sandbox)" in name


def test_the_filter_holds_for_commands_of_the_engines_own_exec(live_pod):
    pod = live_pod().up()
    name = f"km-{pod.context.id}-main"

    for user in ("0", "sandbox"):
        done = subprocess.run(
            ["docker", "exec", "-u", user, name, "python3", "-c", PROBE],
            capture_output=True,
            text=True,
            check=True,
        )
        seen = json.loads(done.stdout)

        assert {seen.pop(key) for key in ("inet", "inet6", "unix")} == {"allowed"}
        assert "allowed" not in seen.values(), seen


def test_a_privileged_exec_is_still_behind_the_gate(live_pod):
    pod = live_pod().up()

    # The operator may always ask the engine for more; even that process has only loopback to go to.
    done = subprocess.run(
        ["docker", "exec", "--privileged", f"km-{pod.context.id}-main", "cat", "/proc/net/dev"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert [line.split(":")[0].strip() for line in done.stdout.splitlines()[2:]] in (["lo"], [])


def test_process_one_is_out_of_reach_even_for_root(live_pod, run_inside, engine):
    pod = live_pod().up()

    run_inside(
        pod.context,
        "/bin/sh",
        "-c",
        "kill -KILL 1; kill -TERM 1; kill -HUP 1; kill -INT 1; sleep 0.3",
        check=False,
    )

    states = {
        c.name.rpartition("-")[2]: c.status for c in find(engine, pod.context.config.home, pod.context.id)
    }
    assert states == {"main": "running", "gate": "running", "pause": "running"}


def test_there_is_only_loopback_and_no_host_directory_but_the_three(live_pod, run_inside):
    pod = live_pod().up()

    _, devices = run_inside(pod.context, "cat", "/proc/net/dev")
    _, mounts = run_inside(pod.context, "cat", "/proc/self/mountinfo")

    assert [line.split(":")[0].strip() for line in devices.splitlines()[2:]] == ["lo"]
    host = {line.split()[4] for line in mounts.splitlines() if str(pod.context.config.home) in line}
    assert host <= {"/workspace", "/home/sandbox", "/etc/resolv.conf"}
    assert "docker.sock" not in mounts


def test_no_variable_of_the_host_enters_a_container(make_context, live_pod, engine, monkeypatch, home):
    (home / "config.json").write_text('{"proxies": {"default": {"httpProxy": "http://user:secret@proxy:1"}}}')
    monkeypatch.setenv("DOCKER_CONFIG", str(home))
    monkeypatch.setenv("KM_TEST_SECRET", "hunter2")
    pod = live_pod().up()

    for container in find(engine, pod.context.config.home, pod.context.id):
        text = json.dumps(container.attrs)
        assert "hunter2" not in text
        assert "secret@proxy" not in text


def test_the_gates_container_is_unprivileged_and_shares_three_directories(live_pod, engine):
    pod = live_pod().up()
    gate = find(engine, pod.context.config.home, pod.context.id, "gate")[0]
    status = Path(f"/proc/{gate.attrs['State']['Pid']}/status").read_text()

    assert capabilities(status) == capabilities(status, "CapBnd") == set()
    assert field(status, "Uid") != "0"
    assert (field(status, "NoNewPrivs"), field(status, "Seccomp")) == ("1", "2")
    assert gate.attrs["HostConfig"]["ReadonlyRootfs"]
    writable = {m["Source"] for m in gate.attrs["HostConfig"]["Mounts"] if not m.get("ReadOnly")}
    assert writable == {
        str(pod.context.runtime_dir / "gate"),
        str(pod.context.state_dir / "gate"),
        str(pod.context.audit_dir),
    }
    assert gate.attrs["Args"] == [] or "token" not in " ".join(gate.attrs["Args"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only an operator who is root gives the gate a user of its own")
def test_the_gate_cannot_remove_another_writers_audit_file(live_pod, engine):
    pod = live_pod().up()
    evidence = pod.context.audit_dir / "kmd.jsonl"
    evidence.write_text("evidence")
    evidence.chmod(0o600)
    gate = find(engine, pod.context.config.home, pod.context.id, "gate")[0]

    code, _ = gate.exec_run(
        ["/bin/sh", "-c", f"rm -f {evidence}; cat {evidence}; mv {evidence} {evidence}.x"]
    )

    assert code != 0
    assert evidence.read_text() == "evidence"
    assert (pod.context.audit_dir / "gate.proof").read_text() == "here"


def test_limits_are_those_of_the_plan(live_pod, engine, run_inside):
    pod = live_pod().up()
    host = find(engine, pod.context.config.home, pod.context.id, "main")[0].attrs["HostConfig"]

    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (512 << 20, 512 << 20, 128)
    assert host["NanoCpus"] == 1_000_000_000
    assert pod.backend.describe()["limits"] == "enforced"
    bomb = "import os\ntry:\n  for _ in range(300):\n    os.fork() or __import__('time').sleep(2)\nexcept BlockingIOError: print('refused')"
    assert "refused" in run_inside(pod.context, "python3", "-c", bomb, check=False)[1]
    code, _ = run_inside(pod.context, "python3", "-c", "x = bytearray(700 << 20)", check=False)
    assert code == 137


def test_one_sandbox_cannot_reach_another(live_pod, run_inside, engine):
    one, two = live_pod().up(), live_pod().up()
    server = (
        "import socket,time; t=socket.create_server(('::',7777),family=socket.AF_INET6,dualstack_ipv6=True);"
        "u=socket.socket(socket.AF_UNIX); u.bind('\\0km-test'); u.listen(); time.sleep(30)"
    )
    main = find(engine, one.context.config.home, one.context.id, "main")[0]
    main.exec_run(["python3", "-c", server], detach=True)
    probe = (
        "import socket\nfor make, to in ((socket.AF_INET, ('127.0.0.1', 7777)), (socket.AF_UNIX, '\\0km-test')):\n"
        "  try:\n    socket.socket(make).connect(to); print('reached')\n"
        "  except OSError as error: print(type(error).__name__)"
    )

    def own():
        return run_inside(one.context, "python3", "-c", probe, check=False)[1]

    for _ in range(50):
        if own().count("reached") == 2:
            break

    assert own().count("reached") == 2
    assert run_inside(two.context, "python3", "-c", probe)[1].split() == ["ConnectionRefusedError"] * 2
    _, processes = run_inside(two.context, "ps", "-eo", "args")
    assert "km-test" not in processes


def test_the_sandboxs_ca_is_among_those_trusted(live_pod, run_inside):
    pod = live_pod().up()

    _, bundle = run_inside(pod.context, "cat", "/etc/ssl/certs/ca-certificates.crt")
    _, variable = run_inside(pod.context, "/bin/sh", "-c", "echo $SSL_CERT_FILE")

    assert bundle.endswith("-----BEGIN CERTIFICATE-----\nfake\n-----END CERTIFICATE-----\n")
    assert bundle.count("BEGIN CERTIFICATE") > 50
    assert variable.strip() == "/etc/ssl/certs/ca-certificates.crt"


def test_the_resolver_file_is_ours_and_read_only(live_pod, run_inside):
    pod = live_pod().up()

    _, text = run_inside(pod.context, "cat", "/etc/resolv.conf")
    code, _ = run_inside(
        pod.context, "/bin/sh", "-c", "echo nameserver 192.0.2.1 >/etc/resolv.conf", check=False
    )

    assert text.startswith("nameserver 127.0.0.1\n")
    assert code != 0
