"""
The bypass matrix as data: every known way out as a named case, with what it needs and how it is judged.

The rows B-01 to B-58 are the families in which systems of this kind were broken.  A row that nobody can
try against a running sandbox without the internet stands in `ELSEWHERE` with the reason.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping


@frozen
class Case:
    """
    One way out.

    Attributes:
        row: the row of the matrix.
        name: kebab-case, unique within the row.
        layer: which layer has to hold: dns, tcp, udp, connect, http, tls, kernel, identity, policy.
        title: what holds, one sentence.
        attempt: the function of `km_core.attack.inside` that tries it; of a *host* case, of
            `km_core.attack.checks`.
        host: judged on the operator's host, once; otherwise tried inside, as each user.
        control: the same attempt runs on the host first and has to arrive there: an attempt that cannot
            arrive anywhere proves nothing.
        needs: of ``ipv4``, ``ipv6`` (addresses of the host), ``tcp:PORT``, ``udp:PORT`` (the canary got
            it), ``allowed`` (a host that may be dialled), ``rebind`` (a name that leads to this host),
            ``gate`` (it answers as a proxy inside), ``ai`` (a model host that a stand-in plays), ``model``
            (an allowed model host), ``cloud`` (an allowed host of AWS that is judged by signature).
        family: 4 or 6 for addresses of one family, 0 for both.
        tcp: the canary's ports that are tried over TCP; empty for its own.
        udp: over UDP.
        recorded: the audit must hold a denial by this rule; ``token`` for one that names the token.
        extra: further arguments of the attempt.
    """

    row: str
    name: str
    layer: str
    title: str
    attempt: str
    host: bool = field(default=False, kw_only=True)
    control: bool = field(default=False, kw_only=True)
    needs: tuple[str, ...] = field(default=(), kw_only=True)
    family: int = field(default=0, kw_only=True)
    tcp: tuple[int, ...] = field(default=(), kw_only=True)
    udp: tuple[int, ...] = field(default=(), kw_only=True)
    recorded: str = field(default="", kw_only=True)
    extra: Mapping[str, Any] = field(factory=dict, kw_only=True)

    @property
    def id(self) -> str:
        """The row and the name, for people and for ``--row``."""
        return f"{self.row} {self.name}"


_SPLIT = [
    "one byte a segment",
    "one byte a record",
    "name after 1200 bytes",
    "name after 14000 bytes",
    "name after 60000 bytes",
]


def _forms(kind: str, row: str, title: str) -> Case:
    return Case(row, kind, "connect", title, "targets", needs=("gate", "ipv4"), extra={"forms": kind})


CASES: tuple[Case, ...] = (
    Case(
        "B-01",
        "data-in-labels",
        "dns",
        "a name that nothing allows is refused in every type, before anybody is asked",
        "denied_name",
        recorded="token",
    ),
    Case(
        "B-02",
        "other-resolver",
        "dns",
        "a question for another resolver does not reach it",
        "dns_udp",
        control=True,
        needs=("udp:53",),
    ),
    Case(
        "B-03",
        "other-resolver-tcp",
        "dns",
        "neither does one over TCP",
        "dns_tcp",
        control=True,
        needs=("tcp:53",),
    ),
    Case(
        "B-04",
        "doh-names",
        "policy",
        "public resolvers that answer over HTTPS are closed unless they are listed by name",
        "public_resolvers",
        host=True,
    ),
    Case(
        "B-04",
        "doh-address",
        "tls",
        "HTTPS to a resolver's address does not get out",
        "hello_to_canary",
        control=True,
        needs=("tcp:443",),
        tcp=(443,),
        extra={"server_name": True},
    ),
    Case(
        "B-05",
        "dot-and-neighbours",
        "dns",
        "DNS over TLS, mDNS, LLMNR and NetBIOS do not get out",
        "every_port",
        control=True,
        tcp=(853,),
        udp=(853, 5353, 5355, 137),
    ),
    Case(
        "B-06",
        "connected-udp",
        "udp",
        "connected sockets, sendto and sendmsg are all judged",
        "udp_forms",
        control=True,
    ),
    Case(
        "B-07",
        "provider-resolvers",
        "dns",
        "the resolvers of the host and of clouds give nothing",
        "other_resolvers",
    ),
    Case(
        "B-08",
        "types-that-carry-data",
        "dns",
        "only addresses are answered under an allowed name",
        "allowed_types",
        needs=("allowed",),
    ),
    Case(
        "B-10",
        "rebinding",
        "connect",
        "an allowed name that leads to this host is not connected",
        "rebinding",
        needs=("rebind",),
        tcp=(80, 443),
    ),
    Case("B-14", "socks-nul", "connect", "a NUL in a SOCKS name opens nothing", "socks", needs=("gate",)),
    Case(
        "B-15",
        "socks-line-break",
        "connect",
        "a line break in a SOCKS name opens nothing",
        "socks",
        needs=("gate",),
    ),
    Case(
        "B-16",
        "look-alike-names",
        "policy",
        "names that only begin or end like an allowed one are not allowed",
        "look_alikes",
        host=True,
    ),
    Case(
        "B-16",
        "look-alike-asked",
        "connect",
        "the gate refuses them too",
        "unlisted",
        needs=("gate",),
        extra={"targets": "look-alikes"},
    ),
    _forms("brackets", "B-17", "brackets around an address open nothing"),
    _forms("dots-and-case", "B-18", "a trailing dot, case and foreign digits open nothing"),
    _forms("encoded", "B-19", "percent signs, user names, tabs and strange ports open nothing"),
    _forms("numbers", "B-20", "decimal, octal, hexadecimal and short addresses open nothing"),
    _forms("embedded", "B-21", "an IPv4 address inside an IPv6 one opens nothing"),
    Case(
        "B-22",
        "shared-space",
        "connect",
        "carrier-grade NAT space is not public",
        "unlisted",
        needs=("gate",),
        extra={"targets": "shared"},
    ),
    Case(
        "B-23",
        "closed-ranges",
        "policy",
        "no rule of this sandbox opens loopback, metadata or link-local addresses",
        "closed_ranges",
        host=True,
    ),
    Case("B-24", "plain-http", "http", "plain HTTP is judged like CONNECT", "schemes", needs=("gate",)),
    Case(
        "B-24",
        "plain-http-direct",
        "http",
        "plain HTTP to an address does not get out",
        "http_direct",
        needs=("tcp:80",),
        tcp=(80,),
        control=True,
    ),
    Case(
        "B-25",
        "connect-unlisted",
        "connect",
        "CONNECT to what nothing allows is never answered 200",
        "unlisted",
        needs=("gate",),
        extra={"targets": "unlisted"},
    ),
    Case(
        "B-26",
        "relayed",
        "connect",
        "asking through a listener of the sandbox's own changes nothing",
        "relay",
        needs=("gate",),
    ),
    Case(
        "B-27",
        "no-server-name",
        "tls",
        "TLS to an address, without a name, does not get out",
        "hello_to_canary",
        control=True,
        needs=("tcp:443",),
        tcp=(443,),
    ),
    Case(
        "B-28",
        "borrowed-name",
        "tls",
        "an allowed server name towards another address does not get out",
        "hello_to_canary",
        control=True,
        needs=("tcp:443", "allowed"),
        tcp=(443,),
        extra={"server_name": "allowed"},
    ),
    Case(
        "B-29",
        "fronting",
        "tls",
        "another server name than the dialled one is refused",
        "hello_through_allowed",
        needs=("allowed",),
        recorded="builtin:tls-sni-mismatch",
        extra={"shapes": ["whole"]},
    ),
    Case(
        "B-30",
        "shared-address",
        "tls",
        "an allowed name does not open other names at its address",
        "hello_through_allowed",
        needs=("allowed",),
        recorded="builtin:tls-sni-mismatch",
        extra={"shapes": ["after a visit"]},
    ),
    Case(
        "B-31",
        "split-hello",
        "tls",
        "a hello in many segments or records, its name far behind, is read whole",
        "hello_through_allowed",
        needs=("allowed",),
        recorded="builtin:tls-sni-mismatch",
        extra={"shapes": _SPLIT},
    ),
    Case(
        "B-32",
        "encrypted-hello",
        "tls",
        "an encrypted hello is refused",
        "hello_through_allowed",
        needs=("allowed",),
        recorded="builtin:tls-ech",
        extra={"shapes": ["encrypted hello"]},
    ),
    Case(
        "B-33",
        "foreign-cloud-key",
        "http",
        "an allowed cloud host takes nothing for somebody else's key or bucket",
        "foreign_cloud_key",
        needs=("gate", "cloud"),
        recorded="builtin:aws-key",
    ),
    Case(
        "B-34",
        "model-store",
        "http",
        "an allowed model host keeps nothing, whoever's key is sent",
        "model_store",
        needs=("gate", "model"),
        recorded="builtin:ai_path_stores_data",
    ),
    Case(
        "B-35",
        "smuggling",
        "http",
        "a request hidden in another one is not carried out",
        "smuggling",
        needs=("gate",),
    ),
    Case(
        "B-36", "keep-alive", "http", "each request of a connection is judged", "keep_alive", needs=("gate",)
    ),
    Case(
        "B-37",
        "plain-to-intercepted",
        "http",
        "a host whose content is judged is not reached over plain HTTP",
        "plain_to_intercepted",
        needs=("gate", "ai"),
    ),
    Case(
        "B-38",
        "not-tls",
        "tls",
        "what is no TLS does not pass a tunnel to a TLS port",
        "opaque",
        needs=("allowed",),
        recorded="builtin:tunnel-not-tls",
    ),
    Case(
        "B-39",
        "upgrades",
        "http",
        "WebSocket, h2c and HTTP/2 upgrades do not escape",
        "upgrades",
        needs=("gate",),
    ),
    Case(
        "B-41",
        "other-host-field",
        "http",
        "the Host field changes nothing about where a connection goes",
        "other_host",
    ),
    Case(
        "B-42",
        "every-port",
        "tcp",
        "no port of this host is reached",
        "tcp",
        control=True,
        tcp=(80, 443, 53, 853, 3128),
    ),
    Case(
        "B-43",
        "undo-the-rules",
        "kernel",
        "changing rules, links and namespaces from inside opens nothing",
        "escape",
    ),
    Case("B-44", "ipv6", "tcp", "IPv6 does not get out", "tcp", control=True, family=6, needs=("ipv6",)),
    Case(
        "B-44",
        "v4-mapped",
        "tcp",
        "neither does IPv4 through IPv6 sockets",
        "v4_mapped",
        control=True,
        needs=("ipv4",),
    ),
    Case("B-44", "ipv4", "tcp", "IPv4 does not get out", "tcp", control=True, family=4, needs=("ipv4",)),
    Case("B-45", "udp", "udp", "UDP does not get out", "udp", control=True),
    Case("B-45", "quic", "udp", "QUIC does not get out", "quic", control=True, needs=("udp:443",)),
    Case("B-45", "ntp", "udp", "nor does NTP", "udp", control=True, needs=("udp:123",), udp=(123,)),
    Case(
        "B-46",
        "proxy-port-elsewhere",
        "tcp",
        "the gate's port number at another address is not reached",
        "tcp",
        control=True,
        needs=("tcp:3128",),
        tcp=(3128,),
    ),
    Case("B-47", "fast-open", "kernel", "data in the SYN does not get out", "fast_open", control=True),
    Case(
        "B-48",
        "io-uring",
        "kernel",
        "io_uring makes no connection",
        "io_uring",
        control=True,
        needs=("ipv4",),
    ),
    Case("B-49", "mptcp", "kernel", "Multipath TCP does not get out", "mptcp", control=True),
    Case(
        "B-49",
        "raw-packets",
        "kernel",
        "raw and packet sockets do not get out",
        "raw_packets",
        needs=("ipv4",),
    ),
    Case("B-49", "udplite", "kernel", "UDP-Lite does not get out", "udplite", control=True),
    Case("B-49", "sctp", "kernel", "SCTP does not get out", "sctp"),
    Case("B-49", "vsock", "kernel", "vsock sockets cannot be made", "no_vsock"),
    Case("B-50", "leave-the-group", "kernel", "leaving the control group opens nothing", "leave_the_group"),
    Case(
        "B-50",
        "sockets-of-the-host",
        "kernel",
        "no socket of the host, an engine or a bus can be found",
        "host_sockets",
        control=True,
    ),
    Case("B-51", "inherited-sockets", "kernel", "no socket was handed in", "descriptors"),
    Case("B-52", "proxy-variables", "http", "proxy variables change nothing", "variables", control=True),
    Case("B-53", "keys-inside", "identity", "no key is in an environment or a usual file inside", "keys"),
    Case(
        "B-54",
        "gate-elsewhere",
        "identity",
        "the gate answers nobody but its sandbox",
        "gate_elsewhere",
        host=True,
    ),
    Case(
        "B-55",
        "base-url",
        "identity",
        "a base URL that leads to the canary does not get out",
        "base_url",
        control=True,
        tcp=(80, 443),
    ),
    Case(
        "B-56",
        "enforcement-in-force",
        "policy",
        "enforcement is in force, its gate alive",
        "enforcement",
        host=True,
    ),
    Case(
        "B-57",
        "plan-in-force",
        "policy",
        "the stored plan is the one the sandbox was made with",
        "same_plan",
        host=True,
    ),
    Case(
        "B-58",
        "control-plane",
        "identity",
        "the control plane's and the supervisor's sockets are not inside",
        "host_sockets",
        control=True,
    ),
)
"""Every case, by row."""

ELSEWHERE: Mapping[str, str] = MappingProxyType(
    {
        "B-09": "needs a name server of the attacker's that sees what the gate forwards",
        "B-11": "needs a name server that answers wrongly on purpose",
        "B-12": "needs a name server with thousands of addresses",
        "B-13": "needs a name server that sends malformed replies",
        "B-40": "needs an allowed host that redirects",
    }
)
"""Rows that cannot be tried against any running sandbox without another party, each with the reason."""
