"""What a workload sees and may do."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from km_host import trust

pytestmark = pytest.mark.namespaces


def test_workload_is_an_ordinary_user_without_capabilities(sandbox):
    out = sandbox.sh("id -u; id -g; id -G; id -un; grep -E 'Cap|NoNewPrivs|Seccomp:' /proc/self/status")
    words = out.split()
    assert words[:4] == ["1000", "1000", "1000", "sandbox"]
    assert out.count("0000000000000000") == 5
    assert "NoNewPrivs:\t1" in out
    assert "Seccomp:\t2" in out


def test_workload_is_not_root_on_the_host(sandbox):
    host = sandbox.box.state_dir / "workspace"
    sandbox.sh("touch /workspace/mine")
    owner = (host / "mine").stat().st_uid
    if os.getuid() == 0:
        assert 0x70000000 <= owner < 0x78000000
    else:
        assert owner == os.getuid()


def test_root_directories_hold_nothing_of_the_host(sandbox):
    assert sandbox.sh("ls -A /").split() == sorted(
        name
        for name in (
            [
                "bin",
                "dev",
                "etc",
                "home",
                "lib",
                "lib32",
                "lib64",
                "libx32",
                "opt",
                "proc",
                "root",
                "run",
                "sbin",
                "tmp",
                "usr",
                "var",
                "workspace",
            ]
        )
        if name not in {"lib32", "lib64", "libx32"} or Path("/" + name).exists()
    )
    assert sandbox.sh("ls -A /root /home /run /tmp /var/tmp /home/sandbox") == (
        "/home:\nsandbox\n\n/home/sandbox:\n\n/root:\n\n/run:\n\n/tmp:\n\n/var/tmp:\n"
    )
    assert sandbox.sh("ls /opt") == "km\n"


def test_operators_files_and_credentials_are_not_there(sandbox, tmp_path):
    hidden = [
        str(Path.home()),
        str(sandbox.box.config.home),
        str(sandbox.box.config.runtime_dir),
        str(tmp_path),
        "/etc/shadow",
        "/etc/ssh",
        "/etc/docker",
        "/var/run/docker.sock",
        "/run/dbus",
        "/sys",
    ]
    for path in hidden:
        if path != "/root":
            assert sandbox.run("/bin/ls", "-d", path)[0] != 0, path


def test_no_file_inside_is_private_to_the_operator(sandbox):
    out = sandbox.sh(
        "find /etc /opt -type f -not -perm -o+r 2>&1; find /etc /opt -type d -not -perm -o+rx 2>&1; true"
    )
    assert out == ""


def test_etc_is_generated(sandbox):
    assert sandbox.sh("cat /etc/hostname; hostname").split() == [sandbox.box.id] * 2
    assert "nameserver 127.0.0.1\n" in sandbox.sh("cat /etc/resolv.conf")
    assert sandbox.sh("cut -d: -f1 /etc/passwd").split() == ["root", "sandbox", "nobody"]
    assert "127.0.0.1 localhost" in sandbox.sh("cat /etc/hosts")


def test_system_is_read_only_and_own_places_are_writable(sandbox):
    for path in (
        "/usr/x",
        "/etc/x",
        "/x",
        "/opt/km/x",
        "/etc/ssl/certs/ca-certificates.crt",
        "/proc/sys/kernel/hostname",
    ):
        code, _, err = sandbox.run("/bin/sh", "-c", f"echo x > {path}")
        assert code != 0, path
        assert "Read-only" in err or "Permission denied" in err
    for path in ("/workspace/x", "/home/sandbox/x", "/tmp/x", "/run/x", "/var/tmp/x", "/dev/shm/x"):
        assert sandbox.sh(f"echo x > {path} && cat {path} && rm {path}") == "x\n"


def test_mounts_cannot_be_made_writable_or_set_uid(sandbox):
    lines = sandbox.sh("cat /proc/self/mountinfo").splitlines()
    for line in lines:
        options = line.split()[5].split(",")
        assert "nosuid" in options or line.split()[4].startswith("/proc"), line
    assert sandbox.run("/bin/mount", "-o", "remount,rw", "/usr")[0] != 0


def test_files_are_where_the_operator_looks(sandbox):
    (sandbox.box.state_dir / "workspace" / "from-host").write_text("hello")
    (sandbox.box.state_dir / "workspace" / "from-host").chmod(0o644)
    assert sandbox.sh("cat /workspace/from-host") == "hello"
    sandbox.sh("echo back > /workspace/from-inside; echo home > /home/sandbox/note")
    assert (sandbox.box.state_dir / "workspace" / "from-inside").read_text() == "back\n"
    assert (sandbox.box.state_dir / "home" / "note").read_text() == "home\n"
    sandbox.sh("rm /home/sandbox/note")


def test_files_made_inside_are_readable_to_others(sandbox):
    assert sandbox.sh("umask") == "0022\n"


def test_environment_is_the_documented_one(sandbox):
    env = dict(line.split("=", 1) for line in sandbox.sh("env -0 | tr '\\0' '\\n'").splitlines())
    assert env["HOME"] == "/home/sandbox"
    assert env["KM_SANDBOX_ID"] == sandbox.box.id
    assert {name: env.get(name) for name in trust.CA_VARIABLES} == dict.fromkeys(
        trust.CA_VARIABLES, "/etc/ssl/certs/ca-certificates.crt"
    )
    assert not [
        name for name in env if "PROXY" in name.upper() or "TOKEN" in name or name in {"KM_HOME", "KM_POD"}
    ]


def test_the_sandboxs_ca_is_among_the_system_ones(sandbox):
    bundle = sandbox.sh("cat /etc/ssl/certs/ca-certificates.crt")
    own = sandbox.sh("cat /etc/ssl/km-ca.pem")
    assert "ZmFrZQ==" in own
    assert bundle.endswith(own)
    host = Path("/etc/ssl/certs/ca-certificates.crt")
    if host.exists():
        assert bundle.count("BEGIN CERTIFICATE") == host.read_text().count("BEGIN CERTIFICATE") + 1
    assert (
        sandbox.sh("readlink -f /etc/ssl/cert.pem /etc/pki/tls/certs/ca-bundle.crt").split()
        == ["/etc/ssl/certs/ca-certificates.crt"] * 2
    )


def test_the_token_is_nowhere_a_process_can_be_looked_at(sandbox):
    token = sandbox.box.token.encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            for name in ("cmdline", "environ"):
                try:
                    assert token not in (entry / name).read_bytes()
                except OSError:
                    continue
    for log in (sandbox.box.state_dir / "logs").iterdir():
        assert token not in log.read_bytes()


def test_only_standard_descriptors_are_open(sandbox):
    names = sandbox.python(
        "import os; print(sorted(int(n) for n in os.listdir('/proc/self/fd'))[:3], len(os.listdir('/proc/self/fd')))"
    )
    assert names == "[0, 1, 2] 4"  # the fourth is the directory being listed


def test_the_first_process_cannot_be_looked_into(sandbox):
    assert sandbox.run("/bin/ls", "/proc/1/fd")[0] != 0
    assert sandbox.run("/bin/cat", "/proc/1/environ")[0] != 0
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.ptrace(16, 1, 0, 0), ctypes.get_errno())
"""
    assert sandbox.python(code) == "-1 1"


def test_there_is_no_controlling_terminal(sandbox):
    assert sandbox.run("/bin/sh", "-c", "exec 3</dev/tty")[0] != 0


def test_processes_of_the_host_are_out_of_sight(sandbox):
    pids = sandbox.sh("ls /proc | grep -E '^[0-9]+$'").split()
    assert len(pids) < 10
    assert sandbox.run("/bin/sh", "-c", f"kill -0 {os.getpid()}")[0] != 0


def test_session_keyring_is_its_own_and_unreachable(sandbox):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(250, 0, -3, 0), ctypes.get_errno())
"""
    assert sandbox.python(code) == "-1 1"


def test_the_hosts_keyring_is_not_shared(make_sandbox):
    if not Path("/proc/keys").exists():
        pytest.skip("this kernel has no keyrings")
    box = make_sandbox().up()
    leftovers = [item for item in box.substrate.leftovers(box.box.config) if item.what == "process"]
    assert leftovers
    # The holder joined a session keyring of its own: the kernel names such a ring after the process.
    assert "_ses" in Path("/proc/keys").read_text()


@pytest.mark.parametrize(
    "command", [["unshare", "-U", "true"], ["unshare", "-n", "true"], ["unshare", "-m", "true"]]
)
def test_new_namespaces_are_refused(sandbox, command):
    assert sandbox.run(*command)[0] != 0


@pytest.mark.parametrize("family", [40, 38, 17, 30, 31, 21])
def test_socket_families_beyond_the_list_are_refused(sandbox, family):
    code = f"import socket\ntry: socket.socket({family}, 2)\nexcept OSError as e: print(e.errno)\nelse: print('open')"
    assert sandbox.python(code) in {"97", "22"}


def test_io_uring_is_refused(sandbox):
    code = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
print(libc.syscall(425, 8, 0), ctypes.get_errno())
"""
    assert sandbox.python(code) == "-1 1"


def test_only_loopback_is_there(sandbox):
    assert sandbox.python("import socket; print([n for _, n in socket.if_nameindex()])") == "['lo']"


def test_every_connection_reaches_the_gate_with_its_destination(sandbox):
    assert sandbox.sh("exec 3<>/dev/tcp/192.0.2.77/8443; cat <&3").startswith("SAW 192.0.2.77 8443 PID ")
    code = "import socket; s = socket.create_connection(('2001:db8::7', 99)); print(s.recv(100).decode())"
    assert sandbox.python(code).startswith("SAW 2001:db8::7 99 PID ")


def test_dns_reaches_the_gate(sandbox):
    code = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(3); s.connect(("127.0.0.1", 53))
s.send(b"ab" + bytes(14)); print(s.recv(100)[:3])
"""
    assert sandbox.python(code) == repr(b"ab\x80")


def test_services_of_the_host_cannot_be_reached(sandbox):
    with socket.create_server(("0.0.0.0", 0)) as server:
        server.settimeout(0.5)
        port = server.getsockname()[1]
        addresses = {"127.0.0.1"}
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(("192.0.2.1", 9))
                addresses.add(probe.getsockname()[0])
            except OSError:
                pass
        for address in addresses:
            code = f"""
import socket
try: print(socket.create_connection(("{address}", {port}), timeout=3).recv(100).decode())
except OSError as e: print("refused", e)
"""
            assert sandbox.python(code).startswith(("refused", f"SAW {address} {port}"))
        with pytest.raises(TimeoutError):
            server.accept()


def test_abstract_sockets_of_the_host_cannot_be_reached(sandbox):
    name = f"\0km-canary-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        code = f"import socket\ntry: socket.socket(socket.AF_UNIX).connect({name!r}); print('open')\nexcept OSError: print('closed')"
        assert sandbox.python(code) == "closed"


def test_two_sandboxes_do_not_see_each_other(sandbox, make_sandbox):
    other = make_sandbox().up()
    sandbox.sh("echo secret > /tmp/only-mine")
    assert other.run("/bin/cat", "/tmp/only-mine")[0] != 0
    if os.getuid() == 0:
        owners = {(box.box.state_dir / "workspace").stat().st_uid for box in (sandbox, other)}
        assert len(owners) == 2


def test_resource_limits_are_bounded(sandbox):
    assert sandbox.sh("ulimit -c; ulimit -Hc").split() == ["0", "0"]
    assert int(sandbox.sh("ulimit -Hn")) <= 65536


def test_bootstrap_carries_the_contract(sandbox):
    message = json.loads((sandbox.box.state_dir / "gate" / "bootstrap.json").read_text())
    assert message["sandbox_id"] == sandbox.box.id
    assert message["how"] == "tproxy"
    assert message["plan"] == sandbox.box.plan.to_data()
    assert message["kmd_socket"] == str(sandbox.box.control_socket)
    assert set(message) == {
        "sandbox_id", "plan", "how", "state_dir", "audit_dir", "kmd_socket", "token", "upstreams", "upstream_dns",
        "dns_name_budget", "upstream_proxy", "private_hosts", "prices", "alias", "openai_compatible_hosts",
        "credentials", "aws",
    }  # fmt: skip


def test_a_thread_heavy_program_runs(sandbox):
    code = "import threading; ts = [threading.Thread(target=lambda: None) for _ in range(50)]; [t.start() for t in ts]; print('ok')"
    assert sandbox.python(code) == "ok"


def test_terminals_can_be_made_inside(sandbox):
    assert (
        sandbox.python("import pty, os; m, s = pty.openpty(); print(os.ttyname(s).startswith('/dev/pts/'))")
        == "True"
    )
