"""
``km-sidecar gate``: the process between one sandbox and the world.

It takes its plan, its credential and the sandbox's listeners from its supervisor, serves until that
channel ends, and ends with it (docs/internals.md).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import ipaddress
import json
import logging
import os
import resource
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import structlog
from attrs import define

from km_core.audit import ChainWriter, DecisionLog
from km_core.control.aio import AsyncControlClient
from km_core.errors import AuditError, KmError
from km_core.ledger.prices import PriceTable
from km_core.plugins import load_plugins
from km_net_proxy import bootstrap as boot
from km_net_proxy.budget import Budget
from km_net_proxy.dns.answer import TYPE_NAMES
from km_net_proxy.dns.name_budget import NameBudget
from km_net_proxy.dns.names import SyntheticNames
from km_net_proxy.dns.server import DnsServer
from km_net_proxy.dns.upstream import Resolver, parse_servers
from km_net_proxy.hardening import harden, memory_trimmer
from km_net_proxy.http.ca import Authority
from km_net_proxy.http.connections import Connections
from km_net_proxy.http.context import Evidence, GateContext
from km_net_proxy.http.credentials import SecretCache
from km_net_proxy.http.dial import Dialer
from km_net_proxy.http.dispatch import Dispatcher
from km_net_proxy.http.listener import Listener
from km_net_proxy.http.upstream import Trust, Upstreams
from km_net_proxy.inside import InsideApi
from km_net_proxy.inside_services import InsideServices
from km_net_proxy.lease import Lease
from km_net_proxy.live_policy import LivePolicy, Rules, compile_rules, require_signing, still_allowed
from km_net_proxy.meter.offers import meters as own_meters
from km_net_proxy.name_alarms import NameAlarms
from km_net_proxy.settlement import SettlementJournal

if TYPE_CHECKING:
    import socket
    from collections.abc import Mapping, Sequence

    from km_core.plan import Grant, SandboxPlan
    from km_core.types import InsideService, Meter, Verdict

MAX_CONNECTIONS = 4096
_DESCRIPTORS_PER_CONNECTION = 6
"""A spliced tunnel: two sockets and two pipes."""
_TICK_S = 0.25
_REPORT_S = 10.0
_YEAR_S = 397 * 24 * 3600
_UNASKED = "192.0.2.1"
_MAX_LINE = 16 * 1024 * 1024
"""Longest line of the supervisor in bytes: a policy to be checked."""


def main(argv: list[str]) -> int:
    """Run a gate; *argv* is ``--fd N`` or ``--connect PATH``.  Returns the exit code."""
    os.umask(0o077)
    _log_to_stderr()
    channel = boot.open_channel(argv)
    try:
        harden()
        given, tcp, dns = boot.receive(channel)
        boot.check_listeners(tcp, dns)
    except KmError as error:
        _answer_failure(channel, error)
        return error.exit_code
    import uvloop

    with tcp, dns:
        return uvloop.run(_run(channel, given, tcp, dns))


async def _run(channel: socket.socket, given: boot.Bootstrap, tcp: socket.socket, dns: socket.socket) -> int:
    log = structlog.get_logger("km.gate")
    gate: Gate | None = None
    try:
        gate = await Gate.open(given)
        await gate.start(tcp, dns)
    except (KmError, OSError) as error:
        log.critical("gate_not_started", error=str(error))
        failure = error if isinstance(error, KmError) else KmError("the gate cannot start", why=str(error))
        _answer_failure(channel, failure)
        if gate is not None:
            await gate.close()
        return 1
    # What lives now lives as long as the process; what comes later is mostly freed by reference counts.
    gc.collect()
    memory_trimmer()()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    try:
        await _serve_channel(channel, gate)
    finally:
        await gate.close()
    log.info("gate_ended")
    return 0


async def _serve_channel(channel: socket.socket, gate: Gate) -> None:
    """Say that the gate is ready, answer pings, return at the end of the channel or on SIGTERM."""
    channel.setblocking(False)
    reader, writer = await asyncio.open_connection(sock=channel, limit=_MAX_LINE)
    ended = asyncio.ensure_future(_pings(reader, writer, gate))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.cancel)
    try:
        writer.write(_line({"ready": True, "ca_pem": gate.context.authority.pem, "pid": os.getpid()}))
        with contextlib.suppress(asyncio.CancelledError, OSError):
            await ended
    finally:
        ended.cancel()
        writer.close()


async def _pings(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: Gate) -> None:
    """Answer pings at once and questions when their answers are there."""
    async with asyncio.TaskGroup() as questions:
        while line := await reader.readline():
            try:
                message = json.loads(line)
            except ValueError:
                continue
            if isinstance(message, dict) and "ping" in message:
                writer.write(_line({"pong": message["ping"], **gate.health()}))
                await writer.drain()
            elif isinstance(message, dict) and "ask" in message:
                questions.create_task(_answer(message, writer, gate))


async def _answer(message: Mapping[str, Any], writer: asyncio.StreamWriter, gate: Gate) -> None:
    answer: dict[str, Any] = {"answer": message["ask"]}
    try:
        answer["result"] = await gate.answer(str(message.get("what")), message)
    except KmError as error:
        answer["error"] = error.to_dict()
    writer.write(_line(answer))


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def _answer_failure(channel: socket.socket, error: KmError) -> None:
    with contextlib.suppress(OSError):
        channel.setblocking(True)
        channel.sendall(_line({"ready": False, "error": error.to_dict()}))
    channel.close()


def _log_to_stderr() -> None:
    """Log JSON lines; the supervisor puts them into ``gate.log``.  Secrets are cut out in one place."""
    from km_core.audit import redact_processor

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            redact_processor,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


@define
class _Parts:
    """What a gate has open besides its context."""

    control: AsyncControlClient
    chain: ChainWriter
    log: DecisionLog
    names: SyntheticNames
    resolver: Resolver
    dns: DnsServer
    journal: SettlementJournal
    lease: Lease
    live: LivePolicy
    alarms: NameAlarms


class Gate:
    """
    One sandbox's gate.

    Args:
        context: what connections share.
        parts: what is opened and closed with the gate.
        redirect: whether destinations come from the NAT table.
    """

    def __init__(self, context: GateContext, parts: _Parts, *, redirect: bool) -> None:
        self.context = context
        self._parts = parts
        self._redirect = redirect
        self._listener: Listener | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger("km.gate")

    @classmethod
    async def open(
        cls,
        given: boot.Bootstrap,
        meters: Mapping[str, Meter] | None = None,
        services: Mapping[str, InsideService] | None = None,
    ) -> Gate:
        """
        Put a gate together; nothing is served yet.

        Args:
            given: the bootstrap.
            meters: by provider name; None for those of the installed plugins.
            services: of the inside API, by name; None likewise.

        Raises:
            KmError: a part cannot be opened, or a plugin that the plan needs is broken.
        """
        plan = given.plan
        prices = PriceTable.load(given.prices or None)
        if meters is None:
            # Our own meters know this sandbox's prices and hosts; other distributions' stand beside them.
            ours = {meter.name: meter for meter in own_meters(given.openai_compatible_hosts, prices)}
            plugins = load_plugins()
            offered = {**plugins.meters(), **ours}
            plugins.refuse_broken(plan)
        else:
            offered = dict(meters)
        if services is None:
            services = load_plugins().inside_services()
        owned = {host: meter for meter in offered.values() for host in meter.hosts}
        compile_plan = functools.partial(
            compile_rules,
            private_hosts=given.private_hosts,
            owned=owned,
            credentials=given.credentials,
            aws=given.aws,
        )
        rules = compile_plan(plan)
        given.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        given.audit_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        authority = Authority.load_or_make(
            given.state_dir, sorted(rules.opened), sandbox_id=given.sandbox_id, life_s=_ca_life(plan)
        )
        chain = ChainWriter(given.audit_dir / "gate.jsonl", writer="gate", sandbox_id=given.sandbox_id)
        try:
            decisions = DecisionLog(chain)
            names = SyntheticNames(given.state_dir / "names.jsonl")
        except BaseException:
            chain.close()
            raise
        control = AsyncControlClient(given.kmd_socket, token=given.token)
        connections = Connections(_slots())

        def install(changed: Rules, before: str, after: str) -> int:
            return gate.install(changed, before, after)

        def compiled(changed: SandboxPlan, grants: Sequence[Grant], now: float) -> Rules:
            found = compile_plan(changed, grants=grants, now=now)
            require_signing(found, authority)
            return found

        live = LivePolicy(plan, control, compile_plan=compiled, install=install, distrust=connections.cut_all)
        lease = Lease(control, on_deadline=connections.cut_all, follow=live.follow)
        alarms = NameAlarms(chain, control)
        burst, per_hour = given.dns_name_budget
        name_budget = NameBudget(
            lambda name: dns.policy.free_below(name),  # noqa: PLW0108 - of the policy in force at that time
            burst_bytes=burst,
            bytes_per_hour=per_hour,
            on_alarm=alarms.tell,
        )
        resolver = Resolver(
            parse_servers(given.upstream_dns),
            budget=name_budget,
            # A stand-in by name is dialled by name; the filter only has to know that it exists.
            overrides={host: (_literal(entry.host), entry.port) for host, entry in given.upstreams.items()},
        )

        def dns_decision(verdict: Verdict, name: str, qtype: int) -> None:
            decisions.record(verdict, kind="dns_query", name=name, detail=TYPE_NAMES.get(qtype, str(qtype)))

        dns = DnsServer(rules.policy, names, resolver, dns_decision, sandbox=given.sandbox_id)
        dns.open = False
        dialer = Dialer(
            rules.policy,
            resolver,
            overrides=given.upstreams,
            proxy=given.upstream_proxy,
            name_budget=name_budget,
            own_allowed=rules.own_allowed,
        )
        journal = SettlementJournal(given.state_dir / "settle.wal", control)
        budget = Budget(
            control,
            journal,
            prices,
            ceiling=plan.budget.ai_limit_nusd is not None,
            sandbox=given.alias or given.sandbox_id,
        )
        context = GateContext(
            sandbox_id=given.sandbox_id,
            policy=rules.policy,
            evidence=Evidence(decisions, chain),
            lease=lease,
            connections=connections,
            names=names,
            dialer=dialer,
            upstreams=Upstreams(dialer, Trust(dict(given.upstreams))),
            authority=authority,
            budget=budget,
            secrets=SecretCache(control),
            inside=InsideApi(
                budget,
                sandbox_id=given.sandbox_id,
                added=InsideServices(services, control, sandbox_id=given.sandbox_id),
            ),
            dns=dns,
            meters=rules.meters,
            owned=frozenset(owned),
            injections=rules.injections,
            aws=rules.aws,
        )
        parts = _Parts(control, chain, decisions, names, resolver, dns, journal, lease, live, alarms)
        gate = cls(context, parts, redirect=given.how == "redirect")
        return gate

    def install(self, rules: Rules, before: str, after: str) -> int:
        """
        Put rules into force between two events of the loop; returns how many connections were cut.

        Args:
            rules: the new ones.
            before: version of the policy that counted.
            after: version of the new one.

        Raises:
            AuditError: the change cannot be recorded.  The rules are those from before, and what the new
                ones do not allow is cut all the same.
        """
        context = self.context
        same_git = rules.policy.git == context.policy.git
        ended = [
            connection
            for connection in context.connections
            if not still_allowed(
                connection,
                rules,
                same_git=same_git,
                judge_peer=connection.destination is None
                or connection.destination.name not in context.dialer.overrides,
            )
        ]
        try:
            event = {
                "kind": "policy_changed",
                "policy_before": before,
                "policy_after": after,
                "cut": len(ended),
            }
            # Kept: whoever asked comes again with the same change.
            self._parts.chain.append(event, kept=True)
            context.policy, context.meters = rules.policy, rules.meters
            context.injections, context.aws = rules.injections, rules.aws
            context.dialer.use(rules.policy, rules.own_allowed)
            context.upstreams.forget()
            self._parts.dns.policy = rules.policy
        finally:
            for connection in ended:
                connection.cut()
        return len(ended)

    async def answer(self, what: str, message: Mapping[str, Any]) -> dict[str, Any]:
        """
        Answer the supervisor about the policy.

        Args:
            what: ``policy.check`` or ``policy.refresh``.
            message: ``policy`` and ``grants`` for a check.

        Raises:
            KmError: the policy cannot be taken over.
        """
        live, lease = self._parts.live, self._parts.lease
        if what == "policy.check":
            return live.check(message.get("policy"), message.get("grants"))
        if what == "policy.refresh":
            if not await lease.renew():
                raise lease.error or KmError("the gate gets no lease")
            return live.describe()
        raise KmError(f"a gate is not asked {what[:32]!r}")

    async def start(self, tcp: socket.socket, dns: socket.socket) -> None:
        """
        Begin to serve on the sandbox's listeners.

        Raises:
            KmError: the settlement journal or the audit chain cannot be written.
        """
        parts = self._parts
        parts.journal.start()
        self.context.evidence.event("gate_started", pid=os.getpid(), redirect=self._redirect)
        # The first lease usually comes at once; without it everything waits closed.
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2.0):
                await parts.lease.renew()
        parts.lease.start()
        parts.dns.open = parts.lease.valid
        parts.dns.attach(dns)
        dispatcher = Dispatcher(self.context)
        self._listener = Listener(tcp, self.context.connections, dispatcher.serve, redirect=self._redirect)
        self._listener.start()
        self.context.connections.start_sweeping()
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._ticking()), loop.create_task(self._reporting())]

    def health(self) -> dict[str, Any]:
        """Return what a pong says besides its number."""
        lease = "valid" if self._parts.lease.valid else "expired"
        return {"lease": lease, "connections": len(self.context.connections)}

    async def _ticking(self) -> None:
        """Write out the counts of gathered decisions and keep the DNS filter in step with the lease."""
        while True:
            await asyncio.sleep(_TICK_S)
            self._parts.dns.open = self._parts.lease.valid
            try:
                self._parts.live.expire()
            except Exception as error:  # noqa: BLE001 - whatever it is: this loop goes on, and closed
                # Rules that should have ended still stand: nothing may begin under them.
                why = (
                    error if isinstance(error, KmError) else KmError("a grant does not end", why=repr(error))
                )
                self._parts.lease.suspend(why)
                self._parts.dns.open = False
            try:
                self._parts.log.flush()
            except KmError as error:
                self._log.error("audit_not_written", error=str(error))

    async def _reporting(self) -> None:
        """Tell the control plane the head of the chain, and that the sandbox is in use."""
        parts = self._parts
        told: tuple[int, str] = (0, "")
        trim = memory_trimmer()
        while True:
            await asyncio.sleep(_REPORT_S)
            # Large bodies come from the heap, where one small block above them keeps them all.
            trim()
            try:
                head = parts.chain.head
                if head != told:
                    await asyncio.to_thread(parts.chain.sync)
                    await parts.control.call("audit.head", writer="gate", seq=head[0], hash=head[1])
                    told = head
                    await parts.control.call("activity", at=time.time())
                elif len(self.context.connections):
                    await parts.control.call("activity", at=time.time())
            except KmError as error:
                self._log.warning("report_failed", error=str(error))

    async def close(self) -> None:
        """End everything in order: no new traffic, none left, what it cost written down."""
        if self._listener is not None:
            self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        parts = self._parts
        await parts.dns.close()
        await self.context.connections.close()
        self.context.room.close()
        await self.context.upstreams.close()
        await parts.lease.close()
        await parts.journal.close()
        await self.context.budget.close()
        await parts.resolver.close()
        await parts.alarms.close()
        await parts.names.close()
        await parts.control.close()
        with contextlib.suppress(AuditError):
            parts.log.flush(everything=True)
            self.context.evidence.event("gate_stopped")
        parts.chain.close()


def _slots() -> int:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(64, min(MAX_CONNECTIONS, (soft - 256) // _DESCRIPTORS_PER_CONNECTION))


def _ca_life(plan: SandboxPlan) -> int:
    """Return how long the sandbox's CA must last, in seconds: it cannot change while a sandbox runs."""
    lifecycle = plan.lifecycle
    return max(lifecycle.max_lifetime_s or 0, lifecycle.ttl_s or 0, _YEAR_S)


def _literal(host: str) -> str:
    try:
        return str(ipaddress.ip_address(host))
    except ValueError:
        return _UNASKED
