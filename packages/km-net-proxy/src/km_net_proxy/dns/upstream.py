"""
The gate's resolver: it asks the operator's resolver, for the DNS filter and for every dialled name.

Off-path forgery has to guess id, source port and letter case (0x20, draft-vixie-dnsext-dns0x20) of a
connected socket, and a reply that fits in all but case is asked again over TCP.  Nothing is followed: what
the reply does not say about the question's own name is not used.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import time
from typing import TYPE_CHECKING

from attrs import define, frozen

from km_core.errors import UsageError
from km_core.policy import parse_address
from km_net_proxy.dns.answer import (
    AAAA,
    NOERROR,
    NXDOMAIN,
    REFUSED,
    SERVFAIL,
    A,
    MalformedError,
    build_query,
    wire_name,
)
from km_net_proxy.dns.reply import Reply, read_reply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from ipaddress import IPv4Address, IPv6Address

    from km_core.types import Verdict
    from km_net_proxy.dns.name_budget import NameBudget

MAX_TTL = 300
MIN_TTL = 5
"""Seconds; a server that says less is not asked more often: how often it is asked would be a message."""
MAX_NEGATIVE_TTL = 30
FAILURE_TTL = 1
OVERRIDE_TTL = 60
_UDP_REPLY = 4096
_MAX_USES = 64
_MAX_STRAYS = 32
"""Replies to nothing that one socket takes before its questions go over TCP instead: somebody guesses."""
# 0x20 for each letter's byte, 0 for every other (length bytes are below 64).
_CASE_BITS = bytes(0x20 if 97 <= byte <= 122 else 0 for byte in range(256))


@frozen
class Resolution:
    """
    What a name resolved to.

    Attributes:
        rcode: 0 with addresses (or none: NODATA), 3 NXDOMAIN, 2 for every failure, 5 when *denied*.
        addresses: IPv4 first; not judged yet (`NetworkPolicy.resolved` does that).
        ttl: seconds it may be kept.
        port: the port to dial instead of the asked one, for an override.
        override: the operator's stand-in; its address is dialled without being judged.
        denied: why the name was not asked for, or None.
    """

    rcode: int
    addresses: tuple[IPv4Address | IPv6Address, ...] = ()
    ttl: int = 0
    port: int | None = None
    override: bool = False
    denied: Verdict | None = None


@define(eq=False)
class _Asked:
    question: bytes
    future: asyncio.Future[bytes]


class _DoubtError(Exception):
    """A reply fits but for the letter case, or too many came that fit nothing."""


class _Port:
    """One connected UDP socket on a random source port, and what was asked through it."""

    def __init__(self, server: tuple[str, int], loop: asyncio.AbstractEventLoop) -> None:
        family = socket.AF_INET6 if ":" in server[0] else socket.AF_INET
        self.sock = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            self.sock.connect(server)
        except OSError:
            self.sock.close()
            raise
        self.asked: dict[int, _Asked] = {}
        self.uses = 0
        self.strays = 0
        self._loop = loop
        loop.add_reader(self.sock.fileno(), self._readable)

    def close(self, why: str) -> None:
        self._loop.remove_reader(self.sock.fileno())
        self.sock.close()
        self._fail(OSError(why))

    @property
    def worn(self) -> bool:
        """Whether a fresh source port should take over: after some use, or once somebody guesses here."""
        return self.uses >= _MAX_USES or self.strays > _MAX_STRAYS

    def _fail(self, error: Exception) -> None:
        for asked in self.asked.values():
            if not asked.future.done():
                asked.future.set_exception(error)
        self.asked.clear()

    def _readable(self) -> None:
        # One at a time: there is seldom a second, and to find none costs as much as to read one.
        try:
            packet = self.sock.recv(_UDP_REPLY)
        except BlockingIOError:
            return
        except OSError as error:
            self._fail(error)
            return
        if len(packet) < 12:
            return
        asked = self.asked.get((packet[0] << 8) | packet[1])
        if asked is None or asked.future.done() or packet[2] & 0xF8 != 0x80 or packet[4:6] != b"\0\1":
            self._stray()
            return
        question = asked.question
        got = packet[12 : 12 + len(question)]
        if got == question:
            asked.future.set_result(packet)
        elif got.lower() == question.lower():
            asked.future.set_exception(_DoubtError())
        else:
            self._stray()

    def _stray(self) -> None:
        self.strays += 1
        if self.strays > _MAX_STRAYS:
            self._fail(_DoubtError())


class Resolver:
    """
    Asks upstream resolvers; bounded in sockets, questions and memory.

    Args:
        servers: ``(address, port)``, tried in order; see `parse_servers`.
        overrides: canonical name to ``(address, port)``: answered from here, nothing is asked.
        timeout_s: how long one try may take.
        tries: how many tries per question at least, going through *servers*; each is asked once.
        sockets: source ports in use per server.
        cache_size: questions remembered.
        max_pending: questions under way; beyond, the answer is a failure.
        budget: what names may carry outside; asked before any question leaves.
        clock: monotonic seconds.
        rng: source of ids, ports' choice and letter case.
    """

    def __init__(
        self,
        servers: Sequence[tuple[str, int]],
        *,
        overrides: Mapping[str, tuple[str, int]] | None = None,
        timeout_s: float = 2.0,
        tries: int = 2,
        sockets: int = 16,
        cache_size: int = 4096,
        max_pending: int = 1024,
        budget: NameBudget | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._servers = list(servers)
        self._overrides = {name: _override(name, *target) for name, target in (overrides or {}).items()}
        self._timeout_s = timeout_s
        self._tries = max(tries, len(self._servers), 1)
        self._sockets = max(sockets, 1)
        self._cache_size = cache_size
        self._max_pending = max_pending
        self._budget = budget
        self._clock = clock
        self._rng = rng or random.SystemRandom()
        self._ports: dict[tuple[str, int], list[_Port]] = {server: [] for server in self._servers}
        self._retired: list[_Port] = []
        self._cache: dict[tuple[str, int], tuple[float, Reply]] = {}
        self._pending: dict[tuple[str, int], asyncio.Task[Reply]] = {}
        self.queries_sent = 0

    async def close(self) -> None:
        """End every question and close the sockets."""
        tasks = list(self._pending.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for port in [*self._retired, *(port for ports in self._ports.values() for port in ports)]:
            port.close("the resolver is closed")
        self._retired.clear()
        for ports in self._ports.values():
            ports.clear()

    async def resolve(self, name: str, *, paid: bool = False) -> Resolution:
        """
        Look up the addresses of a canonical name, IPv4 and IPv6 at once.

        Args:
            name: the name.
            paid: `charge` has let it pass just now.

        Returns:
            The resolution; a failure is rcode 2, never an exception.  One family's failure does not
            matter when the other has addresses.

        Raises:
            AuditError: the alarm of the name budget cannot be recorded.
        """
        override = self._overrides.get(name)
        if override is not None:
            return override
        denied = None if paid else self.charge(name)
        if denied is not None:
            return Resolution(REFUSED, (), FAILURE_TTL, denied=denied)
        begun = self._begin(name, A), self._begin(name, AAAA)
        v4, v6 = await _end(begun[0]), await _end(begun[1])
        addresses = v4.addresses + v6.addresses
        if addresses:
            return Resolution(NOERROR, addresses, min(r.ttl for r in (v4, v6) if r.addresses))
        ttl = min(v4.ttl, v6.ttl)
        if NXDOMAIN in {v4.rcode, v6.rcode}:
            return Resolution(NXDOMAIN, (), ttl)
        if v4.rcode == v6.rcode == NOERROR:
            return Resolution(NOERROR, (), ttl)
        return Resolution(SERVFAIL, (), FAILURE_TTL)

    def override(self, name: str) -> Resolution | None:
        """Return the operator's stand-in for a canonical name, if there is one."""
        return self._overrides.get(name)

    def cached(self, name: str, qtype: int) -> Reply | None:
        """Return a remembered reply with what is left of its time, or None."""
        entry = self._cache.get((name, qtype))
        if entry is None:
            return None
        left = entry[0] - self._clock()
        if left <= 0:
            del self._cache[(name, qtype)]
            return None
        reply = entry[1]
        return Reply(reply.rcode, False, reply.addresses, max(int(left), 1))

    async def query(self, name: str, qtype: int, *, paid: bool = False) -> Reply:
        """
        Ask one question (type `A` or `AAAA`), or share in one that is under way; failures are rcode 2.

        Raises:
            AuditError: as `resolve`.
        """
        denied = None if paid else self.charge(name, qtype)
        if denied is not None:
            return Reply(REFUSED, False, (), FAILURE_TTL, denied)
        return await _end(self._begin(name, qtype))

    def charge(self, name: str, *qtypes: int) -> Verdict | None:
        """
        Pay for a question that leaves; what is remembered, under way or a stand-in's costs nothing.

        Args:
            name: a canonical name that policy allows.
            qtypes: what will be asked; `A` and `AAAA` when nothing is given.

        Returns:
            None when it may be asked, otherwise why not.

        Raises:
            AuditError: the alarm of the name budget cannot be recorded.
        """
        if self._budget is None or name in self._overrides:
            return None
        qtypes = qtypes or (A, AAAA)
        if all(self.cached(name, qtype) or (name, qtype) in self._pending for qtype in qtypes):
            return None
        return self._budget.charge(name)

    def _begin(self, name: str, qtype: int) -> Reply | asyncio.Task[Reply]:
        """Return what is remembered, or the task that asks; at once, so that whoever is next shares in it."""
        known = self.cached(name, qtype)
        if known is not None:
            return known
        key = (name, qtype)
        task = self._pending.get(key)
        if task is None:
            if len(self._pending) >= self._max_pending:
                return _failure()
            task = asyncio.get_running_loop().create_task(self._ask(name, qtype))
            self._pending[key] = task
            task.add_done_callback(lambda _: self._pending.pop(key, None))
        return task

    async def _ask(self, name: str, qtype: int) -> Reply:
        reply = _failure()
        for attempt in range(self._tries):
            if not self._servers:
                break
            server = self._servers[attempt % len(self._servers)]
            try:
                reply = await self._exchange(server, name, qtype)
            except (OSError, TimeoutError, MalformedError, EOFError):
                continue
            if reply.rcode in {NOERROR, NXDOMAIN}:
                break
            reply = _failure()
        limit = FAILURE_TTL if reply.rcode == SERVFAIL else MAX_TTL if reply.addresses else MAX_NEGATIVE_TTL
        reply = Reply(reply.rcode, False, reply.addresses, min(max(reply.ttl, MIN_TTL), limit))
        # Oldest first out: a dictionary keeps its order, and a fresh answer goes to the end.
        self._cache.pop((name, qtype), None)
        while len(self._cache) >= self._cache_size:
            del self._cache[next(iter(self._cache))]
        self._cache[(name, qtype)] = (self._clock() + reply.ttl, reply)
        return reply

    def _question(self, name: str, qtype: int) -> bytes:
        wire = wire_name(name)
        bits = self._rng.getrandbits(8 * len(wire)) & int.from_bytes(wire.translate(_CASE_BITS), "big")
        mixed = (int.from_bytes(wire, "big") ^ bits).to_bytes(len(wire), "big")
        return mixed + qtype.to_bytes(2, "big") + b"\0\1"

    async def _exchange(self, server: tuple[str, int], name: str, qtype: int) -> Reply:
        question = self._question(name, qtype)
        try:
            packet = await self._udp(server, question)
            reply = read_reply(packet, 12 + len(question), qtype)
            if not reply.truncated:
                return reply
        except _DoubtError:
            pass
        async with asyncio.timeout(self._timeout_s):
            packet = await self._tcp(server, question)
        return read_reply(packet, 12 + len(question), qtype)

    async def _udp(self, server: tuple[str, int], question: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        port = self._port(server, loop)
        query_id = self._rng.getrandbits(16)
        while query_id in port.asked:
            query_id = self._rng.getrandbits(16)
        future: asyncio.Future[bytes] = loop.create_future()
        port.asked[query_id] = _Asked(question, future)
        port.uses += 1
        timer = loop.call_later(self._timeout_s, _time_out, future)
        try:
            port.sock.send(build_query(query_id, question))
            self.queries_sent += 1
            return await future
        finally:
            timer.cancel()
            port.asked.pop(query_id, None)
            if not port.asked and port in self._retired:
                self._retired.remove(port)
                port.close("retired")

    def _port(self, server: tuple[str, int], loop: asyncio.AbstractEventLoop) -> _Port:
        """Return a random socket of the pool; one that was used often makes room for a fresh source port."""
        ports = self._ports[server]
        if len(ports) < self._sockets:
            ports.append(_Port(server, loop))
            return ports[-1]
        slot = self._rng.randrange(len(ports))
        port = ports[slot]
        if port.worn:
            fresh = _Port(server, loop)
            ports[slot] = fresh
            if port.asked:
                self._retired.append(port)
            else:
                port.close("retired")
            return fresh
        return port

    async def _tcp(self, server: tuple[str, int], question: bytes) -> bytes:
        query_id = self._rng.getrandbits(16)
        query = build_query(query_id, question)
        reader, writer = await asyncio.open_connection(*server)
        try:
            self.queries_sent += 1
            writer.write(len(query).to_bytes(2, "big") + query)
            await writer.drain()
            length = int.from_bytes(await reader.readexactly(2), "big")
            packet = await reader.readexactly(length)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        if len(packet) < 12 or packet[:2] != query[:2] or packet[2] & 0xF8 != 0x80 or packet[4:6] != b"\0\1":
            raise MalformedError("a TCP reply to another query")
        if packet[12 : 12 + len(question)].lower() != question.lower() or packet[2] & 2:
            raise MalformedError("a TCP reply to another question, or cut short")
        return packet


def parse_servers(texts: Sequence[str]) -> list[tuple[str, int]]:
    """
    Read ``ADDRESS[:PORT]`` entries (``[v6]:PORT``), port 53 when absent.

    Raises:
        UsageError: an entry is not an address.
    """
    servers = []
    for text in texts:
        host, port = text, "53"
        if parse_address(text) is None:
            host, _, port = text.rpartition(":")
        address = parse_address(host)
        if address is None or not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise UsageError(
                f"{text!r} is not a resolver's ADDRESS[:PORT]", hint="write 192.0.2.53 or [2001:db8::53]:53"
            )
        servers.append((str(address), int(port)))
    return servers


def _override(name: str, host: str, port: int) -> Resolution:
    address = parse_address(host)
    if address is None:
        raise UsageError(f"the stand-in of {name} must be an address, not {host!r}")
    return Resolution(NOERROR, (address,), OVERRIDE_TTL, port, override=True)


async def _end(begun: Reply | asyncio.Task[Reply]) -> Reply:
    """Wait for a question; whoever stops waiting does not end it for the others."""
    return begun if isinstance(begun, Reply) else await asyncio.shield(begun)


def _failure() -> Reply:
    return Reply(SERVFAIL, False, (), FAILURE_TTL)


def _time_out(future: asyncio.Future[bytes]) -> None:
    if not future.done():
        future.set_exception(TimeoutError("the resolver does not answer"))
