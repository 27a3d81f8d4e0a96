"""
The TCP half of the gate alone, as an explicit proxy, for measurements: no control plane, loopback allowed.

``python -m km_net_proxy.http.bench_server --listen 127.0.0.1:PORT [--ca-cert F --ca-key F --upstream-ca F]``

Without a CA every CONNECT is a tunnel; with one, TLS is opened.  The data path, the judging of every
request and the audit chain are the gate's own; only the policy lets everything pass.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import ssl
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import evolve, frozen

from km_core.audit import ChainWriter, DecisionLog
from km_core.ledger.prices import PriceTable
from km_core.plan import GitPlan, HostRule, NetworkPlan
from km_core.policy import NetworkPolicy, parse_authority
from km_core.policy.aws import AwsGuard
from km_core.secrets import AwsAccess
from km_core.types import InjectionRule, Verdict
from km_net_proxy.budget import Budget
from km_net_proxy.hardening import raise_descriptors
from km_net_proxy.http.ca import Authority
from km_net_proxy.http.connections import Connections
from km_net_proxy.http.context import Evidence, GateContext
from km_net_proxy.http.credentials import SecretCache
from km_net_proxy.http.dial import Dialer
from km_net_proxy.http.dispatch import Dispatcher, take
from km_net_proxy.http.listener import Listener
from km_net_proxy.http.peek import peek
from km_net_proxy.http.session import Session
from km_net_proxy.http.upstream import Trust, Upstreams, attach
from km_net_proxy.inside import InsideApi
from km_net_proxy.settlement import SettlementJournal

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Sequence

    from km_core.control.aio import AsyncControlClient
    from km_net_proxy.http.connections import Connection
    from km_net_proxy.http.scope import Scope

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address


_INJECTION = InjectionRule("example-token", ("authorization",), "authorization", "Bearer {secret}")


class OpenPolicy(NetworkPolicy):
    """Asks the real policy, then lets everything pass: the cost of judging stays in the figures."""

    def connect(self, name: str, port: int, layer: str = "connect") -> Verdict:
        """Allow."""
        super().connect(name, port, layer)
        return _allow(layer)

    def address(self, ip: Address, port: int, layer: str = "tcp") -> Verdict:
        """Allow."""
        super().address(ip, port, layer)
        return _allow(layer)

    def resolved(self, name: str, ip: Address, port: int | None = None) -> Verdict:
        """Allow, as an operator's exception would."""
        super().resolved(name, ip, port)
        return Verdict(True, "bench", "dns", "a measurement")


def _allow(layer: str) -> Verdict:
    return Verdict(True, "bench", layer, "a measurement")


@frozen
class _Addresses:
    addresses: tuple[str, ...]
    rcode: int = 0
    ttl: int = 60
    denied: Verdict | None = None


class SystemResolver:
    """Resolves by the system's own means."""

    async def resolve(self, name: str) -> _Addresses:
        """Return the addresses of *name*."""
        infos = await asyncio.get_running_loop().getaddrinfo(name, 0, type=socket.SOCK_STREAM)
        return _Addresses(tuple(str(info[4][0]) for info in infos))


class _AnyAddress(frozenset[str]):
    """Every address counts as named by the plan."""

    def __contains__(self, item: object) -> bool:
        return True


class _NoNames:
    def lookup(self, address: Address) -> str | None:  # noqa: ARG002 - the interface's signature
        return None


class _Leased:
    valid = True


class _OneTrust(Trust):
    """Trusts the bench's CA for every server."""

    def __init__(self, cafile: str) -> None:
        super().__init__({})
        self._context = ssl.create_default_context(cafile=cafile or None)

    def context(self, name: str) -> ssl.SSLContext:  # noqa: ARG002 - the interface's signature
        return self._context


class OpeningDispatcher(Dispatcher):
    """Opens TLS to literal addresses too, which the product never does: load generators dial those."""

    async def _serve_literal(self, connection: Connection, sock: socket.socket, scope: Scope) -> None:
        if (await peek(sock))[:1] != b"\x16":
            await super()._serve_literal(connection, sock, scope)
            return
        stream = await attach(take(sock), self._gate.authority.context(str(scope.address)))
        try:
            await Session(self._gate, connection, stream, evolve(scope, tls=True)).run()
        finally:
            stream.close()


class _Everything(frozenset[str]):
    """Every host is intercepted."""

    def __contains__(self, item: object) -> bool:
        return True


async def serve(arguments: argparse.Namespace, directory: Path) -> None:
    """Serve until cancelled."""
    listen = parse_authority(arguments.listen, None)
    opening = bool(arguments.ca_key)
    network = NetworkPlan(hosts=_many_rules() if arguments.full_policy else ())
    git = GitPlan("allowlist", ("acme/*", "other/tool"), ("main",)) if arguments.full_policy else GitPlan()
    policy = OpenPolicy.from_plan(network, git=git)
    chain = ChainWriter(directory / "gate.jsonl", writer="gate", sandbox_id="bench")
    log = DecisionLog(chain)
    dialer = Dialer(policy, SystemResolver(), own_allowed=_AnyAddress())
    control: AsyncControlClient = _no_control()
    budget = Budget(
        control,
        SettlementJournal(directory / "settle.wal", control),
        PriceTable.load(),
        ceiling=False,
        sandbox="bench",
    )
    if opening:
        authority = Authority.load(Path(arguments.ca_cert), Path(arguments.ca_key))
    else:
        authority = Authority.load_or_make(directory, (), sandbox_id="bench", life_s=3600)
    gate = GateContext(
        sandbox_id="bench",
        policy=policy,
        evidence=Evidence(log, chain),
        lease=_Leased(),
        connections=Connections(16384),
        names=_NoNames(),
        dialer=dialer,
        upstreams=Upstreams(dialer, _OneTrust(arguments.upstream_ca)),
        authority=authority,
        budget=budget,
        secrets=SecretCache(control),
        inside=InsideApi(budget, sandbox_id="bench"),
        intercepted=_Everything() if opening else frozenset(),
        injections={"api.example.com": _INJECTION} if arguments.full_policy else {},
        aws=AwsGuard(network.hosts, AwsAccess(), git=True) if arguments.full_policy else None,
    )
    kind = OpeningDispatcher if opening else Dispatcher
    with socket.create_server((listen.host, listen.port), backlog=4096) as sock:
        listener = Listener(sock, gate.connections, kind(gate, proxy_port=listen.port).serve)
        listener.start()
        gate.connections.start_sweeping()
        gc.collect()
        gc.freeze()
        gc.set_threshold(20_000, 20, 50)
        while True:
            await asyncio.sleep(0.25)
            log.flush()


def _many_rules() -> tuple[HostRule, ...]:
    """Return 500 suffixes and 200 hosts, one of them of AWS."""
    suffixes = [HostRule(f"team{number}.example", "suffix") for number in range(499)]
    hosts = [HostRule(f"service{number}.internal-tools.example", "exact") for number in range(200)]
    return (*suffixes, HostRule("amazonaws.com", "suffix"), *hosts)


def _no_control() -> AsyncControlClient:
    from km_core.control.aio import AsyncControlClient

    return AsyncControlClient(Path("/nonexistent"))


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and serve."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--ca-cert", default="", help="CA certificate; with --ca-key TLS is opened")
    parser.add_argument("--ca-key", default="")
    parser.add_argument("--full-policy", action="store_true", help="700 rules, git rules, AWS, a credential")
    parser.add_argument("--upstream-ca", default="", help="CA that servers are verified by")
    arguments = parser.parse_args(argv)
    raise_descriptors()
    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(serve(arguments, Path(directory)))


if __name__ == "__main__":
    main()
