from __future__ import annotations

import os
import socket
import threading
import time

import pytest

from km_core.errors import ProvisionError
from km_host import listeners
from km_host.inside import frames

pytestmark = [pytest.mark.namespaces, pytest.mark.usefixtures("need_namespaces")]


class Gate:
    """Answers on the listeners: TCP says the destination it saw, DNS says which address was asked."""

    def __init__(self, made: listeners.Listeners) -> None:
        self.made = made
        made.tcp.settimeout(0.2)
        made.dns.settimeout(0.2)
        self.ended = False
        self.threads = [threading.Thread(target=work) for work in (self.tcp, self.dns)]
        for thread in self.threads:
            thread.start()

    def tcp(self):
        while not self.ended:
            try:
                connection, _ = self.made.tcp.accept()
            except TimeoutError:
                continue
            with connection:
                address, port = connection.getsockname()[:2]
                connection.sendall(f"{address.removeprefix('::ffff:')} {port}".encode())

    def dns(self):
        while not self.ended:
            try:
                data, ancillary, _, peer = self.made.dns.recvmsg(2000, 256)
            except TimeoutError:
                continue
            local = [item for item in ancillary if item[:2] == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)]
            assert len(local) == 1
            self.made.dns.sendmsg([b"answer " + data], local, 0, peer)

    def close(self):
        self.ended = True
        for thread in self.threads:
            thread.join()


@pytest.fixture(scope="module", params=["tproxy", "redirect"])
def sandbox(request):
    process = request.getfixturevalue("inside" if request.param == "tproxy" else "redirected")
    assert process.listeners.how == request.param
    gate = Gate(process.listeners)
    yield process
    gate.close()


CONNECT = """
import socket
def see(family, address, bind=None, protocol=0, port=443):
    with socket.socket(family, socket.SOCK_STREAM, protocol) as s:
        s.settimeout(5)
        if bind: s.bind(bind)
        s.connect((address, port))
        return s.recv(200).decode()
"""
DESTINATIONS = [
    ("AF_INET", "192.0.2.1"),
    ("AF_INET", "198.18.1.7"),
    ("AF_INET", "10.0.0.1"),
    ("AF_INET", "172.17.0.1"),
    ("AF_INET", "169.254.169.254"),
    ("AF_INET", "1.1.1.1"),
    ("AF_INET6", "2001:db8::1"),
    ("AF_INET6", "fdc0:6b6d::1"),
    ("AF_INET6", "::ffff:192.0.2.9"),
]


@pytest.mark.parametrize(("family", "address"), DESTINATIONS, ids=[a for _, a in DESTINATIONS])
def test_every_destination_reaches_the_gate(sandbox, family, address):
    answer = sandbox.run(CONNECT + f"result = see(socket.{family}, {address!r})")
    if sandbox.listeners.how == "tproxy":
        assert answer == f"{address.removeprefix('::ffff:')} 443"
    else:
        assert answer.endswith(" 3128")


@pytest.mark.parametrize("port", [1, 22, 25, 53, 80, 853, 8080, 65535])
def test_every_port_reaches_the_gate(sandbox, port):
    answer = sandbox.run(CONNECT + f"result = see(socket.AF_INET, '192.0.2.1', port={port})")
    assert answer.endswith(f" {port}" if sandbox.listeners.how == "tproxy" else " 3128")


@pytest.mark.parametrize(
    ("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET", "127.9.9.9"), ("AF_INET6", "::1")]
)
def test_dns_over_tcp_to_loopback_reaches_the_gate(sandbox, family, address):
    answer = sandbox.run(CONNECT + f"result = see(socket.{family}, {address!r}, port=53)")
    assert answer.split()[1] in {"53", "3128"}


@pytest.mark.parametrize(
    ("family", "address"), [("AF_INET", "127.0.0.1"), ("AF_INET6", "::1"), ("AF_INET", "192.0.2.1")]
)
def test_the_listeners_own_port_leads_to_the_gate_and_says_so(sandbox, family, address):
    answer = sandbox.run(CONNECT + f"result = see(socket.{family}, {address!r}, port=3128)")
    # A redirect rewrites an outside address; what was meant is told by SO_ORIGINAL_DST then.
    assert answer in {f"{address} 3128", "127.0.0.1 3128"}


def test_loopback_services_of_the_sandbox_are_its_own(sandbox):
    code = """
import socket
with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
    accepted, _ = server.accept()
    accepted.send(b"mine")
    accepted.close()
    result = client.recv(10).decode()
"""
    assert sandbox.run(code) == "mine"


def test_an_odd_source_address_changes_nothing(sandbox):
    answer = sandbox.run(CONNECT + "result = see(socket.AF_INET, '192.0.2.1', bind=('127.0.0.6', 0))")
    assert answer.split()[0] in {"192.0.2.1", "127.0.0.1"}


def test_a_source_port_used_for_v4_serves_v6_next(sandbox):
    code = (
        CONNECT
        + """
first = see(socket.AF_INET, "192.0.2.1", bind=("127.0.0.6", 40001))
second = see(socket.AF_INET6, "2001:db8::5", bind=("::1", 40001))
result = [first, second]
"""
    )
    first, second = sandbox.run(code)
    if sandbox.listeners.how == "tproxy":
        assert (first, second) == ("192.0.2.1 443", "2001:db8::5 443")


RESOLVE = """
import socket
def ask(family, address, connected):
    with socket.socket(family, socket.SOCK_DGRAM) as s:
        s.settimeout(2)
        if connected:
            s.connect((address, 53)); s.send(b"q")
            return [s.recv(100).decode(), address]
        s.sendto(b"q", (address, 53))
        data, peer = s.recvfrom(100)
        return [data.decode(), peer[0] if peer[1] == 53 else f"port {peer[1]}"]
"""


@pytest.mark.parametrize("connected", [True, False], ids=["connected", "unconnected"])
@pytest.mark.parametrize(
    ("family", "address"),
    [
        ("AF_INET", "127.0.0.1"),
        ("AF_INET", "127.0.0.53"),
        ("AF_INET", "192.0.2.53"),
        ("AF_INET", "8.8.8.8"),
        ("AF_INET6", "::1"),
        ("AF_INET6", "2001:db8::53"),
    ],
    ids=lambda value: value,
)
def test_dns_answers_from_the_address_that_was_asked(sandbox, family, address, connected):
    assert sandbox.run(RESOLVE + f"result = ask(socket.{family}, {address!r}, {connected})") == [
        "answer q",
        address,
    ]


@pytest.mark.parametrize("address", ["192.0.2.1", "10.0.0.1", "8.8.8.8"])
@pytest.mark.parametrize("port", [123, 443, 5353, 51820])
def test_datagrams_elsewhere_are_refused_at_once(sandbox, address, port):
    code = f"""
import socket
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
    s.sendto(b"x", ({address!r}, {port}))
"""
    assert sandbox.run(code).startswith("PermissionError")


def test_datagrams_elsewhere_are_refused_over_v6(sandbox):
    code = """
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as s:
    s.sendto(b"x", ("2001:db8::1", 443))
"""
    assert sandbox.run(code).startswith("PermissionError")


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
@pytest.mark.parametrize("family", ["AF_INET", "AF_INET6"])
@pytest.mark.parametrize("address", ["any", "loopback", "outside"])
@pytest.mark.parametrize("option", ["none", "SO_REUSEADDR", "SO_REUSEPORT"])
def test_the_listeners_ports_cannot_be_bound_again(sandbox, kind, family, address, option):
    port = 3128 if kind == "SOCK_STREAM" else 53
    host = {
        "AF_INET": {"any": "0.0.0.0", "loopback": "127.0.0.1", "outside": "192.0.2.1"},
        "AF_INET6": {"any": "::", "loopback": "::1", "outside": "2001:db8::1"},
    }[family][address]
    code = f"""
import socket
with socket.socket(socket.{family}, socket.{kind}) as s:
    if {option!r} != "none": s.setsockopt(socket.SOL_SOCKET, socket.{option if option != "none" else "SO_REUSEADDR"}, 1)
    s.bind(({host!r}, {port}))
    if socket.{kind} == socket.SOCK_STREAM: s.listen()
    result = "bound"
"""
    answer = sandbox.run(code)
    assert answer.startswith(("PermissionError", "OSError: [Errno 98]", "OSError: [Errno 99]")), answer


@pytest.mark.parametrize("option", ["IP_TRANSPARENT", "IPV6_TRANSPARENT", "SO_BINDTODEVICE", "SO_MARK"])
def test_options_that_need_rights_are_refused_or_useless(sandbox, option):
    code = f"""
import socket
with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as s:
    level, number, value = {{
        "IP_TRANSPARENT": (socket.SOL_IP, 19, 1),
        "IPV6_TRANSPARENT": (socket.IPPROTO_IPV6, 75, 1),
        "SO_BINDTODEVICE": (socket.SOL_SOCKET, 25, b"lo"),
        "SO_MARK": (socket.SOL_SOCKET, 36, 1),
    }}[{option!r}]
    s.setsockopt(level, number, value)
    s.bind(("::", 3128))
    s.listen()
"""
    assert sandbox.run(code).startswith(("PermissionError", "OSError: [Errno 98]"))


@pytest.mark.parametrize(
    "command",
    [
        ["/usr/sbin/nft", "flush", "ruleset"],
        ["/usr/sbin/nft", "list", "ruleset"],
        ["/usr/sbin/ip", "link", "add", "d0", "type", "dummy"],
        ["/usr/sbin/ip", "route", "flush", "table", "local"],
        ["/usr/sbin/ip", "link", "set", "lo", "down"],
        ["/usr/sbin/ip", "addr", "add", "10.1.1.1/8", "dev", "lo"],
    ],
    ids=" ".join,
)
def test_the_rules_cannot_be_touched_from_inside(sandbox, command):
    code = f"import subprocess; result = subprocess.run({command!r}, capture_output=True).returncode"
    assert sandbox.run(code) != 0


def test_connections_wait_while_no_gate_accepts(own_inside):
    frames.send(own_inside.channel, {"code": CONNECT + "result = see(socket.AF_INET, '192.0.2.1')"})
    time.sleep(0.3)
    gate = Gate(own_inside.listeners)
    try:
        assert frames.receive(own_inside.channel)[0]["result"] == "192.0.2.1 443"
    finally:
        gate.close()


# The checks of a hand-over.


def duplicates(*socks: socket.socket) -> list[int]:
    return [os.dup(sock.fileno()) for sock in socks]


def refused(message: dict[str, object], descriptors: list[int]) -> str:
    with pytest.raises(ProvisionError) as caught:
        listeners.check_listeners(message, descriptors)
    for descriptor in descriptors:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
    return caught.value.why


def test_swapped_sockets_are_refused(inside):
    tcp, dns = inside.listeners.tcp, inside.listeners.dns
    assert "of family" in refused({"how": "tproxy"}, duplicates(dns, tcp))


def test_one_socket_is_refused(inside):
    assert "1 sockets" in refused({"how": "tproxy"}, duplicates(inside.listeners.tcp))


@pytest.mark.parametrize("how", ["", "none", None, 3, "TPROXY"])
def test_an_unknown_way_is_refused(inside, how):
    refused({"how": how}, duplicates(inside.listeners.tcp, inside.listeners.dns))


def test_the_helpers_own_error_is_told(inside):
    assert refused({"error": "nft is missing"}, []) == "nft is missing"


def own(kind: socket.SocketKind, port: int, *, listen: bool = True, v6only: bool = False) -> socket.socket:
    sock = socket.socket(socket.AF_INET6, kind)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("::", port))
    if listen and kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


def test_a_socket_of_the_hosts_namespace_is_refused(inside):
    try:
        with own(socket.SOCK_STREAM, 3128) as tcp:
            assert "two network namespaces" in refused(
                {"how": "tproxy"}, duplicates(tcp, inside.listeners.dns)
            )
    except OSError:
        pytest.skip("port 3128 is taken on this host")


def test_a_socket_on_another_port_is_refused(inside):
    with own(socket.SOCK_STREAM, 0) as tcp:
        assert "is bound to" in refused({"how": "tproxy"}, duplicates(tcp, inside.listeners.dns))


def test_a_socket_that_does_not_listen_is_refused(inside):
    try:
        with own(socket.SOCK_STREAM, 3128, listen=False) as tcp:
            assert "does not listen" in refused({"how": "tproxy"}, duplicates(tcp, inside.listeners.dns))
    except OSError:
        pytest.skip("port 3128 is taken on this host")


def test_a_file_in_place_of_a_socket_is_refused():
    null = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]
    with pytest.raises((ProvisionError, OSError)):
        listeners.check_listeners({"how": "tproxy"}, null)


def test_a_peer_of_another_uid_is_refused():
    left, right = socket.socketpair()
    with left, right, pytest.raises(ProvisionError, match=f"uid {os.getuid()}, not 4242"):
        listeners.receive_listeners(left, 4242)


def test_a_helper_that_ends_early_is_refused():
    left, right = socket.socketpair()
    right.close()
    with left, pytest.raises(ProvisionError, match="without handing anything over"):
        listeners.receive_listeners(left, os.getuid())


def test_a_namespace_with_a_device_is_refused(monkeypatch):
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo"), (2, "eth0")])
    with pytest.raises(listeners.ListenerError, match="eth0"):
        listeners.make_listeners()


def test_the_hosts_own_namespace_is_refused():
    if [name for _, name in socket.if_nameindex()] == ["lo"]:
        pytest.skip("this machine has no device but loopback")
    with pytest.raises(listeners.ListenerError, match="devices besides loopback"):
        listeners.make_listeners()


def test_a_missing_program_is_named(monkeypatch):
    monkeypatch.setattr(socket, "if_nameindex", lambda: [(1, "lo")])
    monkeypatch.setattr(listeners, "SYSTEM_PATH", "/nonexistent")
    with pytest.raises(listeners.ListenerError, match="install the package iproute2"):
        listeners.make_listeners()


def test_the_program_form_reports_its_error_to_the_other_side(short_dir):
    path = short_dir / "s"
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()

    def fail():
        raise listeners.ListenerError("no tproxy here")

    with server:
        assert listeners.main([str(path)], make=fail) == 1
        connection, _ = server.accept()
        with connection, pytest.raises(ProvisionError, match="no tproxy here"):
            listeners.receive_listeners(connection, os.getuid())


def test_the_program_form_wants_one_argument(capsys):
    assert listeners.main([]) == 2
    assert "usage" in capsys.readouterr().err
