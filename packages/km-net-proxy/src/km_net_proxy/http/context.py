"""What every connection of one gate shares."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from attrs import define, field

from km_core.policy.aws_hosts import aws_endpoint
from km_core.policy.github import GIT_HOSTS
from km_net_proxy.git.handed import HandedOut
from km_net_proxy.http.connections import CURRENT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from km_core.audit import ChainWriter, DecisionLog
    from km_core.policy import Authority as AskedFor
    from km_core.policy import NetworkPolicy
    from km_core.policy.aws import AwsGuard
    from km_core.types import InjectionRule, Meter, Verdict
    from km_net_proxy.budget import Budget
    from km_net_proxy.http.ca import Authority
    from km_net_proxy.http.connections import Connections
    from km_net_proxy.http.contracts import DnsOverTcp, LeaseView, NamesByAddress, Secrets
    from km_net_proxy.http.dial import Dialer
    from km_net_proxy.http.upstream import Upstreams
    from km_net_proxy.inside import InsideApi


_OPENED_BY_ENTRY = frozenset(
    {
        "builtin:default-deny",
        "builtin:port",
        "builtin:literal-address",
        "builtin:forbidden-address",
        "builtin:public-resolver",
        "builtin:git-host",
        "builtin:local-name",
    }
)

_ENDINGS = frozenset({"dial_failed", "http_closed", "tls_handshake_failed", "tunnel_closed"})
"""Kinds of events that every connection may have one of."""

LARGE_BODY = 64 * 1024
"""Bytes of a body from which decoding and parsing it may take milliseconds."""

_T = TypeVar("_T")


class Evidence:
    """
    Writes decisions and the ends of tunnels to the gate's chain.

    Every method raises `AuditError` when the record cannot be kept; the caller then refuses.

    Args:
        log: gathers equal decisions.
        chain: takes single events.
    """

    def __init__(self, log: DecisionLog, chain: ChainWriter) -> None:
        self._log = log
        self._chain = chain

    def decided(
        self,
        verdict: Verdict,
        kind: str,
        *,
        name: str = "",
        address: str = "",
        port: int = 0,
        detail: str = "",
    ) -> None:
        """Record a decision before it takes effect, as one of the connection that the task serves."""
        self._log.record(
            verdict,
            kind=kind,
            name=name,
            address=address,
            port=port,
            detail=detail,
            connection=CURRENT.get(),
        )

    def event(self, kind: str, **data: Any) -> None:
        """Record something that is counted by itself: the end of a tunnel, a change of policy."""
        number = CURRENT.get()
        if number:
            data.setdefault("connection", number)
        event = {"kind": kind, **{key: value for key, value in data.items() if value != ""}}
        if kind in _ENDINGS:
            self._log.ended(event)
        else:
            self._chain.append(event)


class BodyRoom:
    """
    Bounds what request bodies hold in memory together: a sandbox may starve its gate, not the host.

    Large ones are decoded and parsed in a thread, so that other connections go on meanwhile, and one
    after the other, since each takes several times its size while that lasts.

    Args:
        limit: bytes for all bodies being read or sent.
    """

    def __init__(self, limit: int = 256 * 1024 * 1024) -> None:
        self._left = limit
        self._reader: ThreadPoolExecutor | None = None

    def take(self, count: int) -> bool:
        """Take room for *count* bytes; False when there is not so much."""
        if count > self._left:
            return False
        self._left -= count
        return True

    def give(self, count: int) -> None:
        """Give room back."""
        self._left += count

    async def read(self, size: int, work: Callable[..., _T], *arguments: object) -> _T:
        """
        Do work on a body and return what it returns.

        Args:
            size: bytes of the body; from `LARGE_BODY` on the work is done apart.
            work: must not depend on what the loop's thread changes.
            arguments: what it is called with.
        """
        if size < LARGE_BODY:
            return work(*arguments)
        if self._reader is None:
            self._reader = ThreadPoolExecutor(max_workers=1, thread_name_prefix="km-body")
        return await asyncio.get_running_loop().run_in_executor(self._reader, work, *arguments)

    def close(self) -> None:
        """Drop what waits to be read; work that has begun ends by itself."""
        if self._reader is not None:
            self._reader.shutdown(wait=False, cancel_futures=True)
            self._reader = None


@define
class GateContext:
    """
    The parts of a gate.

    Attributes:
        sandbox_id: whose gate it is.
        policy: what may be reached.
        evidence: the audit chain.
        lease: whether traffic may pass.
        connections: what is open.
        names: names behind synthetic addresses.
        dialer: opens sockets to the outside.
        upstreams: opens and keeps connections for requests.
        authority: the sandbox's CA.
        meters: by host; these hosts are intercepted.
        room: memory for the bodies of model calls.
        owned: every host that a meter owns, whether the profile allows it or not.
        intercepted: further hosts that are intercepted without a meter.
        injections: the operator's rules for credentials, by host.
        aws: judges requests to AWS by their signature.
        budget: the AI pool.
        secrets: credentials to inject.
        inside: the inside API.
        dns: the DNS filter, for TCP.
        handed: URLs that GitHub handed out to the sandbox.
    """

    sandbox_id: str
    policy: NetworkPolicy
    evidence: Evidence
    lease: LeaseView
    connections: Connections
    names: NamesByAddress
    dialer: Dialer
    upstreams: Upstreams
    authority: Authority
    budget: Budget
    secrets: Secrets
    inside: InsideApi
    dns: DnsOverTcp | None = None
    meters: Mapping[str, Meter] = field(factory=dict)
    intercepted: frozenset[str] = frozenset()
    owned: frozenset[str] = frozenset()
    room: BodyRoom = field(factory=BodyRoom)
    handed: HandedOut = field(factory=HandedOut)
    injections: Mapping[str, InjectionRule] = field(factory=dict)
    aws: AwsGuard | None = None

    def intercepts(self, name: str) -> bool:
        """Whether TLS to *name* is opened here."""
        return (
            name in self.meters
            or name in self.intercepted
            or name in self.injections
            or self.filters_git(name)
            or (self.aws is not None and self.aws.covers(name))
        )

    def entry_for(self, verdict: Verdict, named: AskedFor) -> str:
        """
        Return the entry of ``km allow`` that would open what *verdict* denied; empty when none would.

        Args:
            verdict: the denial.
            named: what was asked for.
        """
        if verdict.rule not in _OPENED_BY_ENTRY or not self.policy.openable(named):
            return ""
        host = named.host
        opened = aws_endpoint(host) is not None or host in self.owned or host in self.injections
        if opened and not self.authority.signs_for(host):
            return ""  # the gate would have to open its TLS, and the sandbox's CA does not reach so far
        # Ports 443 and 80 are what an entry without a port opens.
        web = named.port in (443, 80) and verdict.rule != "builtin:port" and ":" not in host
        return host if web else str(named)

    def filters_git(self, name: str) -> bool:
        """Whether requests to *name* are judged by repository."""
        return name in GIT_HOSTS and self.policy.git is not None
