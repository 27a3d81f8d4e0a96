"""
The DNS filter alone, for measurements: no gate, no control plane.

``python -m km_net_proxy.dns.bench_server --listen 127.0.0.1:PORT --upstream 127.0.0.1:PORT --allow SUFFIX``
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from km_core.audit import ChainWriter, DecisionLog
from km_core.plan import NetworkPlan
from km_core.policy import NetworkPolicy, compile_pattern, parse_authority
from km_net_proxy.dns.answer import TYPE_NAMES
from km_net_proxy.dns.name_budget import NameBudget
from km_net_proxy.dns.names import SyntheticNames
from km_net_proxy.dns.server import DnsServer
from km_net_proxy.dns.upstream import Resolver, parse_servers

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.types import Verdict


async def serve(arguments: argparse.Namespace, directory: Path) -> None:
    """Serve until cancelled."""
    rules = tuple(compile_pattern(text, dns_list=True, source=f"--allow {text}") for text in arguments.allow)
    policy = NetworkPolicy.from_plan(NetworkPlan(hosts=rules))
    names = SyntheticNames(directory / "names.jsonl")
    # As large as nothing uses up: its price is measured, not its refusals.
    budget = NameBudget(
        policy.free_below, burst_bytes=1 << 50, bytes_per_hour=1 << 40, on_alarm=lambda _alarm: None
    )
    resolver = Resolver(parse_servers([arguments.upstream]), budget=budget)
    listen = parse_authority(arguments.listen, None)
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    log: DecisionLog | None = None
    if arguments.audit:
        log = DecisionLog(ChainWriter(directory / "gate.jsonl", writer="gate", sandbox_id="bench"))

    def record(verdict: Verdict, name: str, qtype: int) -> None:
        if log is not None:
            log.record(verdict, kind="dns_query", name=name, detail=TYPE_NAMES.get(qtype, str(qtype)))

    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        sock.bind((listen.host, listen.port))
        server = DnsServer(policy, names, resolver, record, passthrough=arguments.passthrough)
        server.attach(sock)
        gc.collect()
        gc.freeze()
        try:
            while True:
                await asyncio.sleep(0.25)
                if log is not None:
                    log.flush()
        finally:
            await server.close()
            await resolver.close()
            await names.close()


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the command line and serve."""
    import uvloop

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", required=True)
    parser.add_argument("--upstream", required=True)
    parser.add_argument("--allow", action="append", default=[])
    parser.add_argument("--passthrough", action="store_true", help="answer with real addresses")
    parser.add_argument("--audit", action="store_true", help="record every decision in a hash chain")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as directory:
        uvloop.run(serve(arguments, Path(directory)))


if __name__ == "__main__":
    main()
