"""
Nothing gets out of a sandbox but through the gate: every way we know, tried from inside as the strongest
user, ignoring proxy variables.

What counts is arrival at the canary, never the client's error.  Each attempt first runs outside the
sandbox, where it must arrive: that proves the attempt and the canary.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from standins.world import DENIED, FORBIDDEN_NAMES, ORIGIN, WEB

from km_core.attack import bundle

if TYPE_CHECKING:
    from standins.world import Outcome, Sandbox, World

PROBE = bundle()
ORIGINAL_TOKEN_BYTES = 8


@pytest.fixture(scope="module")
def strongest(box: Sandbox) -> bool:
    """Whether commands can run as root inside; puts the probe there."""
    box.put("probe.py", PROBE)
    return box.run("id", "-u", root=True).code == 0


@pytest.fixture
def inside(box: Sandbox, world: World, strongest: bool) -> Attempts:
    return Attempts(box, world, strongest)


class Attempts:
    """Runs one attempt outside as control and inside for real."""

    def __init__(self, box: Sandbox, world: World, root: bool) -> None:
        self.box = box
        self.world = world
        self.root = root

    def arguments(self, token: str, **extra: Any) -> str:
        canary = self.world.canary
        base: dict[str, Any] = {
            "token": token,
            "addresses": self.world.addresses,
            "tcp_ports": canary.tcp_ports[:1],
            "udp_ports": canary.udp_ports[:1],
            "vsock_port": canary.vsock_port,
            "paths": [canary.unix_path],
            "abstract": [canary.abstract],
            "name": f"{token}.{DENIED}",
        }
        return json.dumps(base | extra)

    def outside(self, probe: str, **extra: Any) -> str:
        """Run the control; returns its token."""
        token = new_token()
        subprocess.run(
            [sys.executable, "-", probe, self.arguments(token, **extra)],
            input=PROBE.encode(),
            check=True,
            capture_output=True,
            timeout=60,
        )
        return token

    def run(self, probe: str, token: str = "", **extra: Any) -> tuple[str, Outcome]:
        """Run the attempt inside; returns its token and the outcome."""
        token = token or new_token()
        outcome = self.box.run("python3", "probe.py", probe, self.arguments(token, **extra), root=self.root)
        assert "Traceback" not in outcome.stderr, outcome
        return token, outcome

    def nothing_arrives(self, probe: str, **extra: Any) -> None:
        control = self.outside(probe, **extra)
        assert self.world.canary.saw(control), (
            f"the control of {probe} did not arrive: the test proves nothing"
        )
        token, outcome = self.run(probe, **extra)
        assert not self.world.canary.saw(token), (probe, self.world.canary.saw(token), outcome)


def new_token() -> str:
    return f"tok{secrets.token_hex(ORIGINAL_TOKEN_BYTES)}"


def test_an_allowed_host_is_reached_without_any_proxy_variable(box: Sandbox, world: World) -> None:
    path = f"/{new_token()}"
    box.put("origin-ca.pem", world.authority.ca_pem.decode())
    outcome = box.run("curl", "-sS", "--cacert", "origin-ca.pem", f"https://{ORIGIN}{path}").assert_ok()
    assert "hello from the stand-in origin" in outcome.stdout
    assert path in [arrival.path for arrival in world.origin.arrivals]


def test_no_proxy_variable_is_set_inside(box: Sandbox) -> None:
    names = {line.partition("=")[0].lower() for line in box.run("env").stdout.splitlines()}
    assert names.isdisjoint({"http_proxy", "https_proxy", "all_proxy", "ftp_proxy"})


def test_raw_ipv4_reaches_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("tcp", addresses=[a for a in inside.world.addresses if ":" not in a])


def test_raw_ipv6_reaches_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("tcp", addresses=[a for a in inside.world.addresses if ":" in a])


def test_v4_mapped_addresses_reach_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("v4_mapped")


def test_web_ports_of_every_host_address_are_not_reached(inside: Attempts) -> None:
    ports = [port for port in inside.world.canary.tcp_ports if port in {80, 443, 53}]
    if not ports:
        pytest.skip("the ports 53, 80 and 443 are taken on this host")
    inside.nothing_arrives("tcp", tcp_ports=ports)


def test_udp_reaches_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("udp")


def test_udplite_reaches_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("udplite")


def test_quic_reaches_no_host_address(inside: Attempts) -> None:
    if 443 not in inside.world.canary.udp_ports:
        pytest.skip("UDP port 443 is taken on this host")
    inside.nothing_arrives("quic")


def test_mptcp_reaches_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("mptcp")


def test_data_in_the_syn_reaches_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("fast_open")


def test_raw_packets_and_frames_reach_no_host_address(inside: Attempts) -> None:
    inside.nothing_arrives("raw_packets")


def test_io_uring_makes_no_connection(inside: Attempts) -> None:
    control = inside.outside("io_uring")
    if not inside.world.canary.saw(control):
        pytest.skip("this kernel gives no io_uring to anybody")
    inside.nothing_arrives("io_uring")


def test_vsock_sockets_cannot_be_made(inside: Attempts) -> None:
    """The peer would be the hypervisor, where no canary can stand: the socket itself is refused."""
    _, outcome = inside.run("vsock_opens")
    result = outcome.json_lines()[-1]
    assert result["sent"] == 0, outcome


def test_vsock_reaches_no_host_listener(inside: Attempts) -> None:
    token, outcome = inside.run("vsock")
    assert outcome.json_lines()[-1]["sent"] == 0, outcome
    assert not inside.world.canary.saw(token)


def test_host_keyrings_are_neither_read_nor_written(inside: Attempts) -> None:
    """The host's key is placed in this process's session and user keyrings, which a child would inherit."""
    key, secret = new_token(), new_token()
    script = (
        "import ctypes,sys; libc=ctypes.CDLL(None)\n"
        "name,value=sys.argv[1].encode(),sys.argv[2].encode()\n"
        "for ring in (-3,-4): libc.syscall(248,b'user',name,value,len(value),ring)\n"
        "import subprocess; sys.exit(subprocess.call(sys.argv[3:]))\n"
    )

    def held_by(*command: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", script, key, secret, *command],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env=inside.world.env,
        )
        return done.stdout

    arguments = inside.arguments(new_token(), key=key)
    probe = inside.world.directory / "probe.py"
    probe.write_text(PROBE)
    assert secret in held_by(sys.executable, str(probe), "keyring", arguments), "the control read no key"
    token = new_token()
    flags = ["--root"] if inside.root else []
    printed = held_by(
        *inside.world.argv("exec", *flags, inside.box.id, "--", "python3", "probe.py", "keyring"),
        inside.arguments(token, key=key),
    )
    assert secret not in printed
    assert json.loads(printed.splitlines()[-1])["sent"] == 0, printed
    assert token not in Path("/proc/keys").read_text()


def test_host_unix_sockets_are_not_reached(inside: Attempts) -> None:
    inside.nothing_arrives("unix")


def test_no_socket_file_of_the_host_can_be_found(inside: Attempts) -> None:
    """The control plane's, the supervisor's and an engine's sockets among them."""
    token, outcome = inside.run("unix", paths=[], abstract=[], search=True)
    assert not inside.world.canary.saw(token)
    assert outcome.json_lines()[-1]["sent_to"] == [], outcome


def test_the_docker_socket_is_not_there(inside: Attempts) -> None:
    places = [
        "/var/run/docker.sock",
        "/run/docker.sock",
        "/run/km-engine/docker.sock",
        "/run/containerd/containerd.sock",
    ]
    for place in places:
        assert inside.box.run("test", "-e", place, root=inside.root).code == 1, place
    assert inside.box.run("sh", "-c", "env | grep -i docker_host", root=inside.root).code == 1


def test_dns_to_another_resolver_does_not_arrive(inside: Attempts) -> None:
    if 53 not in inside.world.canary.udp_ports:
        pytest.skip("UDP port 53 is taken on this host")
    inside.nothing_arrives("dns_udp")


def test_dns_over_tcp_to_another_resolver_does_not_arrive(inside: Attempts) -> None:
    if 53 not in inside.world.canary.tcp_ports:
        pytest.skip("TCP port 53 is taken on this host")
    inside.nothing_arrives("dns_tcp")


def test_a_denied_name_is_never_asked_for_upstream(inside: Attempts) -> None:
    token, outcome = inside.run("ask_resolver")
    asked = [name for name in inside.world.names.queries if token in name]
    assert asked == []
    answers = [line for line in outcome.json_lines() if "rcode" in line]
    assert answers, outcome
    assert all(answer["rcode"] in {3, 5} for answer in answers), outcome


def test_an_allowed_name_is_asked_for_upstream(inside: Attempts) -> None:
    """Control of the test above: the same probe with an allowed name does reach the name server."""
    inside.run("ask_resolver", name="metadata.test")
    assert inside.world.names.queries["metadata.test"] > 0


def test_metadata_is_not_reached_by_address(inside: Attempts) -> None:
    """In the network that plays the host the canary itself answers at 169.254.169.254."""
    token = new_token()
    addresses = ["169.254.169.254", "169.254.170.2", "fd00:ec2::254"]
    urls = [[address, 80, f"/{token}", address] for address in addresses]
    if "169.254.169.254" in inside.world.addresses:
        control = inside.outside("http", urls=[[a, 80, "/control", a] for a in addresses])
        assert control
        assert inside.world.canary.saw("/control")
    _, outcome = inside.run("http", urls=urls)
    assert not inside.world.canary.saw(token)
    assert "canary" not in outcome.stdout


@pytest.mark.parametrize("name", sorted(FORBIDDEN_NAMES))
def test_an_allowed_name_that_resolves_to_a_forbidden_address_is_refused(inside: Attempts, name: str) -> None:
    """DNS rebinding: the name is allowed, its address is the host's, a neighbour's or the metadata's."""
    token = new_token()
    for scheme in ("http", "https"):
        inside.box.run("curl", "-sk", "-m", "5", f"{scheme}://{name}/{token}", root=inside.root)
    assert inside.world.names.queries[name] > 0, "the name was never resolved: the test proves nothing"
    assert not inside.world.canary.saw(token)
    refused = [r for r in inside.box.decisions() if r.get("name") == name]
    assert refused, inside.box.decisions()
    assert all(record["rule"] for record in refused)


def test_the_gate_as_explicit_proxy_gives_no_host_address(inside: Attempts) -> None:
    token, outcome = inside.run("explicit_proxy")
    assert not inside.world.canary.saw(token), outcome
    assert " 200" not in outcome.stdout, outcome


def test_an_allowed_name_does_not_open_other_ports(inside: Attempts) -> None:
    token = new_token()
    port = inside.world.canary.tcp_ports[0]
    inside.box.run("curl", "-sk", "-m", "5", f"http://{ORIGIN}:{port}/{token}", root=inside.root)
    assert not inside.world.canary.saw(token)
    assert not [a for a in inside.world.origin.arrivals if token in a.path]


def test_a_denied_name_in_the_tls_hello_is_refused_on_an_allowed_address(
    inside: Attempts, world: World
) -> None:
    """Domain fronting: the connection goes to an allowed name, the TLS name is another."""
    before = len(world.origin.arrivals)
    source = (
        "import socket,ssl,sys\n"
        "c=ssl._create_unverified_context()\n"
        f"s=socket.create_connection(('{WEB}',443),5)\n"
        f"t=c.wrap_socket(s,server_hostname='{DENIED}')\n"
        f"t.sendall(b'GET /front HTTP/1.1\\r\\nHost: {DENIED}\\r\\n\\r\\n'); print(t.recv(99))\n"
    )
    outcome = inside.box.python(source, root=inside.root)
    assert outcome.code != 0, outcome
    assert len(world.origin.arrivals) == before


def test_undoing_the_enforcement_from_inside_changes_nothing(inside: Attempts) -> None:
    """Flush rules, add links and routes, enter namespaces, mount, load programs; then try to get out."""
    token, outcome = inside.run("escape")
    assert not inside.world.canary.saw(token), outcome
    still = inside.box.run(
        "curl", "-s", "-m", "10", "-o", "/dev/null", "-w", "%{http_code}", f"http://{WEB}/"
    )
    assert still.code == 0, still


def test_another_sandbox_is_not_reached(inside: Attempts, world: World, substrate: str) -> None:
    """A listener in a second sandbox, on every address it can have, hears nothing from the first."""
    other = world.create(world.profile("other"), substrate)
    try:
        listener = (
            "import socket,threading,sys\n"
            "s=socket.socket(socket.AF_INET6); s.setsockopt(41,26,0); s.bind(('::',9000)); s.listen()\n"
            "u=socket.socket(socket.AF_UNIX); u.bind('\\0km-neighbour'); u.listen()\n"
            "print('up',flush=True)\n"
            "def serve(l):\n"
            "    while True:\n"
            "        c,_=l.accept(); print(c.recv(200).decode('latin-1'),flush=True); c.close()\n"
            "threading.Thread(target=serve,args=(u,),daemon=True).start(); serve(s)\n"
        )
        other.put("listen.py", listener)
        heard = other.start("python3", "-u", "listen.py")
        assert heard.stdout is not None
        assert heard.stdout.readline().strip() == "up"
        other.put("probe.py", PROBE)
        args = {"tcp_ports": [9000], "paths": [], "abstract": ["km-neighbour"]}
        control = new_token()
        for probe in ("tcp", "unix"):
            other.run(
                "python3", "probe.py", probe, inside.arguments(control, addresses=["127.0.0.1"], **args)
            )
        names = ["127.0.0.1", "::1", "198.18.0.1", "198.18.1.1", "fdc0:6b6d::1", *world.addresses]
        token, _ = inside.run("tcp", addresses=names, **args)
        inside.run("unix", token=token, **args)
        heard.kill()
        printed = heard.communicate(timeout=10)[0]
        assert printed.count(control) == 2, printed
        assert token not in printed
    finally:
        other.destroy()
