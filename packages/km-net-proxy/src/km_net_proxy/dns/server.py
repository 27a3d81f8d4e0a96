"""
The DNS server of a gate, on a socket that was handed in.

Denied names are answered on the spot and never leave.  Allowed ones are looked up outside, judged
(`NetworkPolicy.resolved`), and answered with the sandbox's synthetic address of that name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import socket
import time
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import KmError
from km_core.policy import INSIDE_NAME
from km_core.types import Verdict
from km_net_proxy.dns import answer as wire
from km_net_proxy.dns.answer import AAAA, NOERROR, NXDOMAIN, PTR, REFUSED, SERVFAIL, A, MalformedError
from km_net_proxy.dns.names import INSIDE_HOST, v4_of, v6_of
from km_net_proxy.lease import LAPSED

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from km_core.policy import NetworkPolicy
    from km_net_proxy.dns.names import SyntheticNames
    from km_net_proxy.dns.upstream import Resolver

MAX_TTL = 60
_BATCH = 64
_MAX_QUERY = 2048
_ANCILLARY = socket.CMSG_SPACE(20)
_DNS_PORTS = frozenset({0, 53, 853, 5353})
_REMEMBERED = 8192
_TCP_IDLE_S = 10.0
_TCP_QUERIES = 1000
_TCP_AT_ONCE = 32
_V4_PTR = re.compile(r"(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.(\d{1,3})\.in-addr\.arpa\Z")
_V6_PTR = re.compile(r"((?:[0-9a-f]\.){32})ip6\.arpa\Z")
_REVERSE = Verdict(True, "builtin:synthetic-address", "dns", "an address of km's own")
_MALFORMED = Verdict(False, "builtin:malformed-name", "dns", "a label holds a dot, or no ASCII")
_BROKEN = Verdict(False, "builtin:malformed-query", "dns", "not one plain question")
_CLASS = Verdict(False, "builtin:record-class", "dns", "only class IN is answered")
_TYPE = Verdict(False, "builtin:record-type", "dns", "only addresses are looked up outside, no other records")
_PRIVATE = "the name does not lead to a public address"
_NEXT = {
    "builtin:default-deny": "the operator can add it to allowedHosts",
    "builtin:local-name": "the operator can name it in allowedHosts",
    "builtin:name-budget": "the operator can list hosts one by one in allowedHosts",
    "builtin:record-type": "ask for A or AAAA",
}
_NEXT_ELSE = "the operator can see km logs --denied"


@frozen
class Lookup:
    """A query that cannot be answered before the upstream has been asked."""

    packet: bytes
    question: wire.Question
    name: str
    verdict: Verdict


class DnsServer:
    """
    Answers one sandbox's queries.

    Args:
        policy: the compiled policy; assign `policy` to change it.
        names: the sandbox's synthetic addresses.
        resolver: asks the outside.
        on_decision: called as ``on_decision(verdict, name, qtype)`` before each answer that carries a
            decision; when it raises `KmError` the answer is SERVFAIL.
        sandbox: its id, for the texts of refusals.
        passthrough: answer with the real, judged addresses instead of synthetic ones.
        max_waiting: lookups under way; beyond, the answer is SERVFAIL.
        clock: monotonic seconds.

    Attributes:
        open: False while the gate holds no lease: every query gets SERVFAIL.
        dropped: datagrams that were not answered because they were no queries.
    """

    def __init__(
        self,
        policy: NetworkPolicy,
        names: SyntheticNames,
        resolver: Resolver,
        on_decision: Callable[[Verdict, str, int], None],
        *,
        sandbox: str = "",
        passthrough: bool = False,
        max_waiting: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.open = True
        self.dropped = 0
        self._policy = policy
        self._names = names
        self._resolver = resolver
        self._on_decision = on_decision
        self._sandbox = f"km sandbox {sandbox}" if sandbox else "km"
        self._passthrough = passthrough
        self._max_waiting = max_waiting
        self._clock = clock
        self._verdicts: dict[bytes, tuple[Verdict, str]] = {}
        self._fresh: dict[str, tuple[float, int]] = {}
        self._opts: dict[tuple[int, str, str], bytes] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._sock: socket.socket | None = None
        self._plain_opt = wire.opt_record()

    @property
    def policy(self) -> NetworkPolicy:
        """The policy in force; assigning another takes effect with the next query."""
        return self._policy

    @policy.setter
    def policy(self, policy: NetworkPolicy) -> None:
        self._policy = policy
        self._verdicts.clear()
        self._fresh.clear()

    def attach(self, sock: socket.socket) -> None:
        """
        Serve a bound UDP socket from the running loop; the caller keeps owning it.

        Args:
            sock: a dual-stack IPv6 socket (answers leave from the address that was asked), or an IPv4
                socket bound to one address.
        """
        sock.setblocking(False)
        self._sock = sock
        loop = asyncio.get_running_loop()
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            loop.add_reader(sock.fileno(), self._readable_any, sock)
        else:
            loop.add_reader(sock.fileno(), self._readable_bound, sock)

    async def close(self) -> None:
        """Stop serving the attached socket and end the lookups under way."""
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock = None
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _readable_any(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                packet, control, flags, peer = sock.recvmsg(_MAX_QUERY, _ANCILLARY)
            except OSError:
                return
            if flags & socket.MSG_TRUNC or peer[1] in _DNS_PORTS:
                self.dropped += 1
                continue
            # The packet info says which address was asked; sent back, it is the answer's source.
            info = [item for item in control if item[1] == socket.IPV6_PKTINFO]
            result = self.respond(packet)
            if isinstance(result, bytes):
                # A try statement costs nothing here, contextlib.suppress a microsecond.
                try:  # noqa: SIM105 - see above
                    sock.sendmsg((result,), info, 0, peer)
                except OSError:
                    pass
            elif result is not None:
                self._start(result, functools.partial(_send_from, sock, info, peer))

    def _readable_bound(self, sock: socket.socket) -> None:
        for _ in range(_BATCH):
            try:
                packet, peer = sock.recvfrom(_MAX_QUERY)
            except OSError:
                return
            if peer[1] in _DNS_PORTS:
                self.dropped += 1
                continue
            result = self.respond(packet)
            if isinstance(result, bytes):
                try:  # noqa: SIM105 - as above
                    sock.sendto(result, peer)
                except OSError:
                    pass
            elif result is not None:
                self._start(result, functools.partial(_send_to, sock, peer))

    def _start(self, lookup: Lookup, send: Callable[[bytes], object]) -> None:
        if len(self._tasks) >= self._max_waiting:
            with contextlib.suppress(OSError):
                send(self._failure(lookup.packet, lookup.question, "too many lookups are under way"))
            return
        self._spawn(self._finish(lookup, send))

    def _spawn(self, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _finish(self, lookup: Lookup, send: Callable[[bytes], object]) -> None:
        data = await self.look_up(lookup)
        question = lookup.question
        data = wire.truncate(data, question.end, question.limit, self._plain_opt if question.edns else b"")
        with contextlib.suppress(OSError):
            send(data)

    async def handle_tcp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """
        Serve DNS over TCP (RFC 7766) on a connection the gate accepted at port 53; closes it at the end.

        The same answers as over UDP, each as soon as it is there (section 6.2.1.1), 32 lookups at once.
        Ten idle seconds, answers not taken for as long, a thousand queries or a broken message end it.
        """
        running: set[asyncio.Task[None]] = set()
        try:
            for _ in range(_TCP_QUERIES):
                async with asyncio.timeout(_TCP_IDLE_S):
                    length = int.from_bytes(await reader.readexactly(2), "big")
                    if length > _MAX_QUERY:
                        break
                    packet = await reader.readexactly(length)
                result = self.respond(packet)
                if result is None:
                    break
                if isinstance(result, bytes):
                    _write(writer, result)
                elif len(self._tasks) >= self._max_waiting:
                    _write(writer, self._failure(packet, result.question, "too many lookups are under way"))
                else:
                    task = self._spawn(self._finish_tcp(result, writer))
                    running.add(task)
                    task.add_done_callback(running.discard)
                    if len(running) >= _TCP_AT_ONCE:
                        await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                async with asyncio.timeout(_TCP_IDLE_S):
                    await writer.drain()
        except (OSError, EOFError, TimeoutError):
            pass
        except asyncio.CancelledError:
            for task in running:
                task.cancel()
            # Cut means now: nothing that the client has not taken yet keeps the connection.
            writer.transport.abort()
            raise
        finally:
            # A client that has said all it wanted to may still wait for answers.
            await asyncio.gather(*running, return_exceptions=True)
            writer.close()
            with contextlib.suppress(OSError, TimeoutError):
                async with asyncio.timeout(_TCP_IDLE_S):
                    await writer.wait_closed()
            writer.transport.abort()

    async def _finish_tcp(self, lookup: Lookup, writer: asyncio.StreamWriter) -> None:
        _write(writer, await self.look_up(lookup))

    def respond(self, packet: bytes) -> bytes | Lookup | None:
        """
        Answer a query, as far as that is possible at once.

        Returns:
            The answer; or the lookup to be finished by `look_up`; or None when nothing may be sent.
        """
        try:
            question = wire.read_query(packet)
        except MalformedError as error:
            if error.rcode is None:
                return None
            with contextlib.suppress(KmError):  # refused either way
                self._on_decision(_BROKEN, "", 0)
            return wire.header_only(packet, error.rcode)
        edns = question.edns
        if question.bad_version:
            return wire.empty_answer(packet, question.end, NOERROR, wire.opt_record(rcode=wire.BADVERS))
        if not self.open:
            with contextlib.suppress(KmError):  # refused either way
                self._on_decision(LAPSED, "", 0)
            opt = (
                wire.opt_record(
                    ede=wire.EDE_NOT_READY, text=f"{self._sandbox}: the control plane is unavailable"
                )
                if edns
                else b""
            )
            return wire.empty_answer(packet, question.end, SERVFAIL, opt)
        if question.qclass != wire.CLASS_IN:
            with contextlib.suppress(KmError):  # refused either way
                self._on_decision(_CLASS, "", question.qtype)
            return self._refused(packet, question, REFUSED, _CLASS, wire.EDE_NOT_SUPPORTED)
        try:
            return self._decide(packet, question)
        except KmError:
            return self._failure(packet, question, "the decision could not be recorded")

    def _decide(self, packet: bytes, question: wire.Question) -> bytes | Lookup:
        known = self._verdicts.get(question.key)
        if known is None:
            known = self._judge(question.key)
        verdict, name = known
        qtype = question.qtype
        if qtype == PTR:
            # Before the rules: none that opens the reverse zones takes our addresses their names.
            reverse = self._reverse(packet, question)
            if reverse is not None:
                return reverse
        if not verdict.allow:
            self._on_decision(verdict, name, qtype)
            return self._refused(packet, question, NXDOMAIN, verdict, wire.EDE_BLOCKED)
        if qtype not in {A, AAAA}:
            # No other type leaves.  What ordinary clients ask for beside addresses (HTTPS, MX, TXT) is
            # answered "none of these": an error would make them wait, or give up the name.
            self._on_decision(_TYPE, name, qtype)
            if qtype in wire.REFUSED_TYPES:
                return self._refused(packet, question, REFUSED, _TYPE, wire.EDE_NOT_SUPPORTED)
            return self._refused(packet, question, NOERROR, _TYPE, wire.EDE_FILTERED)
        if name == INSIDE_NAME:
            self._on_decision(verdict, name, qtype)
            return self._synthetic(packet, question, INSIDE_HOST, MAX_TTL)
        fresh = self._fresh.get(name)
        if fresh is not None:
            left = fresh[0] - self._clock()
            if left > 0:
                self._on_decision(verdict, name, qtype)
                return self._synthetic(packet, question, fresh[1], max(int(left), 1))
            del self._fresh[name]
        # One decision for each question: an allowed name that its budget refuses is a denial, not both,
        # and denials have a rate in the evidence that a flood of new names does not get past.
        denied = self._resolver.charge(name, *((qtype,) if self._passthrough else ()))
        if denied is not None:
            self._on_decision(denied, name, qtype)
            # REFUSED, since later it may be asked.
            return self._refused(packet, question, REFUSED, denied, wire.EDE_PROHIBITED)
        self._on_decision(verdict, name, qtype)
        return Lookup(packet, question, name, verdict)

    def _judge(self, key: bytes) -> tuple[Verdict, str]:
        name = wire.name_text(key)
        if name is None:
            return _MALFORMED, _printable(key.decode("latin-1"))
        known = self._policy.name(name), name if name.isprintable() else _printable(name)
        if len(self._verdicts) >= _REMEMBERED:
            self._verdicts.clear()
        self._verdicts[key] = known
        return known

    async def look_up(self, lookup: Lookup) -> bytes:
        """Finish a `Lookup`: ask outside, judge, assign, answer."""
        try:
            if self._passthrough:
                return await self._real(lookup)
            return await self._resolve(lookup)
        except (KmError, OSError):
            return self._failure(lookup.packet, lookup.question, "the name could not be answered")

    async def _resolve(self, lookup: Lookup) -> bytes:
        packet, question, name = lookup.packet, lookup.question, lookup.name
        opt = self._plain_opt if question.edns else b""
        resolution = await self._resolver.resolve(name, paid=True)
        if resolution.rcode == SERVFAIL:
            return self._failure(packet, question, "the upstream resolver does not answer")
        if resolution.rcode == NXDOMAIN or not resolution.addresses:
            return wire.empty_answer(packet, question.end, resolution.rcode, opt)
        if not resolution.override and not self._any_allowed(name, resolution.addresses, question):
            denied = self._policy.resolved(name, resolution.addresses[0])
            return self._refused(packet, question, NXDOMAIN, denied, wire.EDE_BLOCKED, reason=_PRIVATE)
        host = await self._names.assign(name)
        ttl = min(resolution.ttl, MAX_TTL)
        # The policy may have been replaced while the outside was asked.
        now = self._policy.name(name)
        if not now.allow:
            self._on_decision(now, name, question.qtype)
            return self._refused(packet, question, NXDOMAIN, now, wire.EDE_BLOCKED)
        if len(self._fresh) >= _REMEMBERED:
            self._fresh.clear()
        self._fresh[name] = self._clock() + ttl, host
        return self._synthetic(packet, question, host, ttl)

    async def _real(self, lookup: Lookup) -> bytes:
        packet, question, name = lookup.packet, lookup.question, lookup.name
        opt = self._plain_opt if question.edns else b""
        reply = await self._resolver.query(name, question.qtype, paid=True)
        if reply.rcode == SERVFAIL:
            return self._failure(packet, question, "the upstream resolver does not answer")
        allowed = [ip for ip in reply.addresses if self._policy.resolved(name, ip).allow]
        if reply.addresses and not allowed:
            denied = self._policy.resolved(name, reply.addresses[0])
            self._on_decision(denied, name, question.qtype)
            return self._refused(packet, question, NXDOMAIN, denied, wire.EDE_BLOCKED, reason=_PRIVATE)
        if not allowed:
            return wire.empty_answer(packet, question.end, reply.rcode, opt)
        rdata = tuple(ip.packed for ip in allowed)
        return wire.address_answer(
            packet, question.end, question.qtype, rdata, min(reply.ttl, MAX_TTL), opt=opt
        )

    def _any_allowed(
        self, name: str, addresses: tuple[IPv4Address | IPv6Address, ...], question: wire.Question
    ) -> bool:
        denied: Verdict | None = None
        for ip in addresses:
            verdict = self._policy.resolved(name, ip)
            if verdict.allow:
                return True
            denied = denied or verdict
        if denied is not None:
            self._on_decision(denied, name, question.qtype)
        return False

    def _synthetic(self, packet: bytes, question: wire.Question, host: int, ttl: int) -> bytes:
        rdata = v4_of(host) if question.qtype == A else v6_of(host)
        opt = self._plain_opt if question.edns else b""
        return wire.address_answer(packet, question.end, question.qtype, (rdata,), ttl, opt=opt)

    def _reverse(self, packet: bytes, question: wire.Question) -> bytes | None:
        """Answer a PTR question about one of our addresses; None for all others."""
        asked = wire.name_text(question.key) or ""
        address = _ptr_address(asked)
        name = None if address is None else self._names.lookup(address)
        if name is None:
            return None
        self._on_decision(_REVERSE, asked, PTR)
        opt = self._plain_opt if question.edns else b""
        return wire.name_answer(packet, question.end, PTR, name, MAX_TTL, opt=opt)

    def _refused(
        self,
        packet: bytes,
        question: wire.Question,
        rcode: int,
        verdict: Verdict,
        ede: int,
        *,
        reason: str = "",
    ) -> bytes:
        """
        Answer without records and say why, by whose rule and what to do (RFC 8914).

        Args:
            packet: the query.
            question: what was read of it.
            rcode: response code.
            verdict: the denial.
            ede: extended error code.
            reason: what is said instead of the verdict's own reason, which may hold what is not to be
                known inside (an address of the operator's network).
        """
        if not question.edns:
            return wire.empty_answer(packet, question.end, rcode)
        reason = reason or verdict.reason
        key = (ede, verdict.rule, reason)
        opt = self._opts.get(key)
        if opt is None:
            advice = _NEXT.get(verdict.rule, _NEXT_ELSE)
            text = f"{self._sandbox}: {verdict.layer} rule {verdict.rule}: {reason}; {advice}"
            opt = wire.opt_record(ede=ede, text=text)
            if len(self._opts) < 1024:
                self._opts[key] = opt
        return wire.empty_answer(packet, question.end, rcode, opt)

    def _failure(self, packet: bytes, question: wire.Question, text: str) -> bytes:
        opt = (
            wire.opt_record(ede=wire.EDE_NO_REACHABLE_AUTHORITY, text=f"{self._sandbox}: {text}")
            if question.edns
            else b""
        )
        return wire.empty_answer(packet, question.end, SERVFAIL, opt)


def _send_from(
    sock: socket.socket, info: list[tuple[int, int, bytes]], peer: tuple[str, int, int, int], data: bytes
) -> None:
    sock.sendmsg((data,), info, 0, peer)


def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    if not writer.is_closing():
        writer.write(len(data).to_bytes(2, "big") + data)


def _send_to(sock: socket.socket, peer: tuple[str, int], data: bytes) -> None:
    sock.sendto(data, peer)


def _printable(text: str) -> str:
    """Return *text* with everything but printable ASCII escaped, as evidence that no terminal acts on."""
    return text.encode("unicode_escape").decode("ascii")


def _ptr_address(name: str) -> IPv4Address | IPv6Address | None:
    match = _V4_PTR.match(name)
    if match:
        octets = [int(part) for part in reversed(match.groups())]
        return IPv4Address(bytes(octets)) if max(octets) < 256 else None
    match = _V6_PTR.match(name)
    if match:
        return IPv6Address(int(match[1].replace(".", "")[::-1], 16))
    return None
