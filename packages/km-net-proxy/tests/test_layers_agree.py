"""
One policy on every layer: whatever names a host, in whatever spelling, gets the same answer.

The gate's own judging functions are asked: the DNS filter, the transparent path, CONNECT, the absolute URL of
an explicit proxy, the Host field, a WebSocket upgrade, the server name in TLS; and ``km explain``.
"""

from __future__ import annotations

import ipaddress
import socket
from types import SimpleNamespace

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from km_core.errors import PlanError
from km_core.plan import AddressRule, Grant, HostRule, NetworkPlan
from km_core.policy import (
    NetworkPolicy,
    canonical_name,
    compile_address,
    compile_pattern,
    explain_egress,
    parse_address,
    with_grants,
)
from km_net_proxy.dns import answer as wire
from km_net_proxy.dns.server import DnsServer, Lookup
from km_net_proxy.dns.upstream import Resolver
from km_net_proxy.http.connections import Connection
from km_net_proxy.http.context import GateContext
from km_net_proxy.http.dispatch import Dispatcher
from km_net_proxy.http.head import HeadError, parse_request
from km_net_proxy.http.hello import ClientHello
from km_net_proxy.http.judge import Judge
from km_net_proxy.http.scope import RequestRefused, Scope
from km_net_proxy.http.session import Session

LABELS = ("a", "b", "com", "test", "xn--bcher-kva", "_srv", "localhost", "internal", "km", "dns", "google")
PORTS = (80, 443, 8443, 22, 53, 3128, 1, 65535)

names = st.lists(st.sampled_from(LABELS), min_size=1, max_size=4).map(".".join)
addresses = st.sampled_from(
    [
        "192.0.2.1",
        "10.0.0.1",
        "127.0.0.1",
        "169.254.169.254",
        "198.18.0.1",
        "[2001:db8::1]",
        "[::1]",
        "[::ffff:10.0.0.1]",
        "2130706433",
        "0x7f.1",
        "0177.0.0.1",
        "10.1",
        "[fd00:ec2::254]",
        "1.2.3.4.5",
    ]
)


def spelled(text: str) -> st.SearchStrategy[str]:
    """Other spellings of a name, right and wrong ones."""
    return st.sampled_from(
        [
            *(
                text,
                text.upper(),
                text.title(),
                f"{text}.",
                f"{text}..",
                f".{text}",
                f"user@{text}",
                f" {text}",
            ),
            *(text.replace(".", "%2e"), text.replace(".", ".."), f"{text}\\x", f"[{text}]", f"{text}\t"),
        ]
    )


hosts = st.one_of(names.flatmap(spelled), addresses)
ports = st.sampled_from([*map(str, PORTS), "", "0", "080", "65536", "https", "443:80", "-1"])
patterns = st.one_of(names, names.map("*.{}".format), names.map(".{}".format), st.just("*"))
entries = st.builds(
    lambda p, port: f"{p}:{port}" if port else p, patterns, st.sampled_from(["", *map(str, PORTS)])
)
literals = st.sampled_from(["192.0.2.0/24", "192.0.2.1:8443", "10.0.0.0/8", "2001:db8::/32", "0.0.0.0/0"])


@st.composite
def policies(draw):
    rules = []
    for index, entry in enumerate(draw(st.lists(entries, max_size=4))):
        rules.append(compile_pattern(entry, dns_list=False, source=f"allowedHosts[{index}] {entry}"))
    for index, entry in enumerate(draw(st.lists(patterns, max_size=2))):
        rules.append(compile_pattern(entry, dns_list=True, source=f"allowedDNSSuffixes[{index}] {entry}"))
    addressed = [compile_address(entry, source=entry) for entry in draw(st.lists(literals, max_size=2))]
    plan = NetworkPlan(https_only=draw(st.booleans()), hosts=tuple(rules), addresses=tuple(addressed))
    granted = [Grant(entry, 10.0) for entry in draw(st.lists(entries, max_size=1))]
    return NetworkPolicy.from_plan(with_grants(plan, granted, now=0.0), ai_ceiling=draw(st.booleans()))


class Evidence:
    def __init__(self):
        self.verdicts = []

    def decided(self, verdict, *_args, **_fields):
        self.verdicts.append(verdict)

    def event(self, *_args, **_fields):
        pass


def gate(policy):
    """A gate's context with no part that a decision does not need."""
    parts = dict.fromkeys(["connections", "names", "dialer", "upstreams", "authority", "budget", "secrets"])
    return GateContext(
        sandbox_id="sb-0123abcd",
        policy=policy,
        evidence=Evidence(),
        lease=SimpleNamespace(valid=True),
        inside=SimpleNamespace(added=lambda _path: None),
        aws=None,
        **parts,
    )


class Door(Dispatcher):
    """The dispatcher up to its decision."""

    passed = False

    async def _serve_name(self, *_args):
        self.passed = True

    async def _serve_literal(self, *_args):
        self.passed = True

    async def _http(self, *_args):
        self.passed = True

    async def _refuse(self, *_args, **_options):
        self.passed = False


class Talk(Session):
    """A session up to its decision."""

    passed = False

    async def forward(self, *_args, **_options):
        self.passed = True
        return True

    async def _inside(self, request, target):
        self.passed = self.gate.policy.connect("km.internal", 80, "http").allow
        return True


def run(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a decision waits for something")


def connection():
    made = Connection.__new__(Connection)
    made.destination, made.peer, made.unopened, made.number, made.expires = None, "", False, 1, 0.0
    return made


def by_connect(policy, text):
    """What CONNECT answers."""
    shared = gate(policy)
    head = f"CONNECT {text} HTTP/1.1\r\nHost: {text}\r\n\r\n".encode("latin-1")
    return isinstance(Door(shared)._judge_connect(head, more=False), Scope), shared.evidence.verdicts


def by_address(policy, host, port):
    """What a transparent connection gets, to the synthetic address of a name or to an address."""
    shared = gate(policy)
    door = Door(shared)
    literal = parse_address(host.strip("[]"))
    with socket.socket() as sock:
        if literal is None:
            run(door.to_name(connection(), sock, host, port, layer="tcp"))
        else:
            run(door._to_literal(connection(), sock, literal, port, layer="tcp"))
    return door.passed


def by_request(policy, scope, target, host, extra=""):
    """What a request gets; returns whether it passes, its status and the verdicts on it."""
    shared = gate(policy)
    talk = Talk(shared, connection(), None, scope)
    try:
        request = parse_request(f"GET {target} HTTP/1.1\r\nHost: {host}\r\n{extra}\r\n".encode("latin-1"))
        run(talk._answer(request))
    except HeadError:
        return False, 400, shared.evidence.verdicts
    except RequestRefused as refused:
        return False, refused.status, shared.evidence.verdicts
    return talk.passed, 200, shared.evidence.verdicts


def by_dns(policy, name):
    """Whether the DNS filter would answer a name, given in wire form."""
    dns = DnsServer(policy, SimpleNamespace(lookup=lambda _address: None), Resolver([]), lambda *_: None)
    packet = b"\0\1\1\0\0\1\0\0\0\0\0\0" + wire.wire_name(name) + b"\0\1\0\1"
    found = dns.respond(packet)
    return isinstance(found, Lookup) or found[3] & 15 == wire.NOERROR


UPGRADE = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: c2l4dGVlbiBieXRlcyBvaw==\r\nSec-WebSocket-Version: 13\r\n"


@settings(max_examples=600, deadline=None)
@given(policies(), hosts, ports)
@example(NetworkPolicy.from_plan(NetworkPlan(hosts=(HostRule("*", "any"),))), "KM.internal.", "80")
@example(NetworkPolicy.from_plan(NetworkPlan(addresses=(AddressRule("0.0.0.0/0"),))), "2130706433", "443")
def test_every_layer_gives_the_same_answer_about_an_authority(policy, host, port):
    text = f"{host}:{port}" if port else host
    plain = explain_egress(policy, f"http://{text}/")
    proxied, status, verdicts = by_request(
        policy, Scope("", None, 3128, explicit=True), f"http://{text}/", text
    )
    assert proxied == plain.allow, (text, status, verdicts, plain)

    upgraded, _, seen = by_request(
        policy, Scope("", None, 3128, explicit=True), f"http://{text}/", text, UPGRADE
    )
    assert upgraded == proxied
    if not proxied:
        assert [v.rule for v in seen] == [v.rule for v in verdicts]

    if not port or parse_address(text) is not None:
        return
    told = explain_egress(policy, text)
    connected, verdicts = by_connect(policy, text)
    assert connected == told.allow, (text, verdicts, told)
    if told.allow:
        assert verdicts[-1].rule == told.rule
    # Plain HTTP differs from a connection in one thing: that it is plain.
    assert not (plain.allow and not told.allow)
    if told.allow and not plain.allow:
        assert plain.rule == "builtin:https-only"

    try:
        name, number = canonical_name(host), int(port)
    except ValueError:
        name = host if parse_address(host.strip("[]")) is not None else ""
        number = int(port) if port.isdigit() and 0 < int(port) < 65536 and port[0] != "0" else 0
    if name and 0 < number < 65536 and port[0] not in "0-":
        if not (host.isdigit() and int(host) < 65536):
            assert by_address(policy, name, number) == told.allow, (name, number, told)
        if told.allow and parse_address(host.strip("[]")) is None:
            assert by_dns(policy, name), "what may be reached resolves"


def is_same(text, name):
    """Whether *text* is a spelling of a canonical name."""
    try:
        return canonical_name(text) == name
    except ValueError:
        return False


@settings(max_examples=400, deadline=None)
@given(policies(), names, names.flatmap(spelled), st.sampled_from([80, 8443]), st.booleans())
def test_a_server_name_and_a_host_field_pass_only_as_the_name_that_was_dialled(
    policy, name, other, port, tls
):
    if not is_same(name, name):
        return
    assert Judge(gate(policy)).hello(
        ClientHello(other, (), False, 0), Scope(name, None, 443)
    ).allow == is_same(other, name)

    scope = Scope(name, None, 443 if tls else port, tls=tls)
    suffix = "" if scope.port == (443 if tls else 80) else f":{scope.port}"
    field = f"{other}{suffix}"
    passed, status, _ = by_request(policy, scope, "/", field)
    # Blanks around a field's value are no part of it (RFC 9110 section 5.5).
    same = is_same(field.strip(" \t").removesuffix(suffix), name)
    if not same:
        assert (passed, status) in {(False, 400), (False, 421)}, (name, field)
    else:
        url = f"{scope.scheme}://{name}:{scope.port}/"
        told = explain_egress(policy, url)
        assert passed == told.allow, (url, status, told)


@settings(max_examples=400, deadline=None)
@given(policies(), names.flatmap(spelled))
def test_a_name_resolves_exactly_when_some_port_of_it_is_open(policy, text):
    try:
        name = canonical_name(text)
    except ValueError:
        assert not policy.name(text).allow
        return
    assert by_dns(policy, name) == policy.name(text).allow
    opened = any(policy.connect(name, port).allow for port in PORTS)
    assert policy.name(text).allow == opened, name


@given(st.sampled_from(["bücher.test", "BÜCHER.test.", "bu\u0308cher.test"]))
def test_explain_takes_a_name_as_people_write_it_for_the_one_that_travels(text):
    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=(HostRule("xn--bcher-kva.test", "exact"),)))
    assert explain_egress(policy, f"https://{text}/") == explain_egress(policy, "https://xn--bcher-kva.test/")
    assert not by_connect(policy, text.encode().decode("latin-1") + ":443")[0]


def test_a_deny_wins_over_every_rule():
    rules = (HostRule("*", "any"), HostRule("google", "suffix"), HostRule("localhost", "exact"))
    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=rules, addresses=(AddressRule("0.0.0.0/0"),)))
    for text in ("localhost:443", "x.localhost:443", "x.km.internal:80", "dns.google:443", "127.0.0.1:443"):
        assert not explain_egress(policy, text).allow, text
        assert not by_connect(policy, text)[0], text
    for name in ("localhost", "x.localhost", "x.km.internal", "dns.google"):
        assert not by_dns(policy, name), name


def test_the_operators_exception_is_for_its_name_its_range_and_nothing_else():
    hosts = (HostRule("mirror.test", "exact"), HostRule("other.test", "exact"))
    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=hosts), private_hosts=[("mirror.test", "10.1.0.0/24")])
    inside, beside = ipaddress.ip_address("10.1.0.9"), ipaddress.ip_address("10.1.1.9")
    assert policy.resolved("mirror.test", inside, 443).allow
    assert not policy.resolved("mirror.test", beside, 443).allow
    assert not policy.resolved("other.test", inside, 443).allow
    assert not by_connect(policy, "10.1.0.9:443")[0]
    with pytest.raises(PlanError):
        NetworkPolicy.from_plan(NetworkPlan(), private_hosts=[("MIRROR..test", "10.1.0.0/24")])
