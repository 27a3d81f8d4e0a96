"""Every connection the gate holds: limits, time-outs without a timer each, and the cut at the deadline."""

from __future__ import annotations

import asyncio
import contextvars
import itertools
import select
from typing import TYPE_CHECKING

import structlog
from attrs import frozen

from km_net_proxy.http.turns import Turns

if TYPE_CHECKING:
    import ipaddress
    from collections.abc import Callable, Coroutine, Iterator

HEAD_TIMEOUT_S = 60.0
"""A request head, a ClientHello or the next request must be there within this time."""
IDLE_TIMEOUT_S = 300.0
"""A tunnel or a body that moves no byte for this long is closed."""
CALL_TIMEOUT_S = 840.0
"""A metered call may be silent for this long; its reservation lasts 900 s."""

_TRACEBACKS = 20

CURRENT: contextvars.ContextVar[int] = contextvars.ContextVar("connection", default=0)
"""Number of the connection that the running task serves; 0 outside of any."""


@frozen
class Destination:
    """Where a connection was allowed to: a canonical name, an address, or a name at an address."""

    name: str
    address: ipaddress.IPv4Address | ipaddress.IPv6Address | None
    port: int


class Connection:
    """
    One accepted connection.

    Attributes:
        destination: what it was allowed to reach last, to be judged again when the policy changes.
        peer: ``address:port`` that was dialled for it by itself; empty for none, or through a proxy.
        unopened: whether it carries bytes that the gate does not open.
        number: correlation id in the audit records, unique in the gate's life.
        expires: loop time at which it is cut; its owner moves it on as bytes flow.
        client: descriptor of the client's socket and what to do when the client has reset it, for times when
            nothing is read from there.
        turns: where heavy work for it waits for its turn.
    """

    __slots__ = ("_loop", "_task", "client", "destination", "expires", "number", "peer", "turns", "unopened")

    def __init__(self, number: int, loop: asyncio.AbstractEventLoop, turns: Turns) -> None:
        self.number = number
        self.turns = turns
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self.destination: Destination | None = None
        self.peer = ""
        self.unopened = False
        self.client: tuple[int, Callable[[], object]] | None = None
        self.expires = loop.time() + HEAD_TIMEOUT_S

    def bind(self, task: asyncio.Task[None]) -> None:
        """Say which task serves it."""
        self._task = task

    def extend(self, seconds: float) -> None:
        """Give it *seconds* from now."""
        self.expires = self._loop.time() + seconds

    def cut(self) -> None:
        """End it at once; its task's cleanup closes every socket."""
        if self._task is not None:
            self._task.cancel()


class Connections:
    """
    The set of connections.

    Args:
        limit: how many may be open together.

    Attributes:
        failures: handlers that ended by a defect.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._open: dict[Connection, None] = {}
        self._numbers = itertools.count(1)
        self._sweeper: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("km.gate.connections")
        self.failures = 0
        self._turns = Turns()

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open))

    @property
    def full(self) -> bool:
        """Whether another connection must be refused."""
        return len(self._open) >= self.limit

    def serve(self, handler: Callable[[Connection], Coroutine[None, None, None]]) -> Connection:
        """Start *handler* for a new connection and return it."""
        loop = asyncio.get_running_loop()
        connection = Connection(next(self._numbers), loop, self._turns)
        self._open[connection] = None
        self._turns.count(len(self._open))
        context = contextvars.copy_context()
        context.run(CURRENT.set, connection.number)
        task = loop.create_task(handler(connection), context=context)
        connection.bind(task)
        task.add_done_callback(lambda done: self._done(connection, done))
        return connection

    def _done(self, connection: Connection, task: asyncio.Task[None]) -> None:
        self._open.pop(connection, None)
        self._turns.count(len(self._open))
        if not task.cancelled():
            error = task.exception()
            if error is not None:
                self._failed(connection, error)

    def _failed(self, connection: Connection, error: BaseException) -> None:
        """Log a defect; the sandbox may be able to cause it at will, so only the first few whole."""
        self.failures += 1
        if self.failures <= _TRACEBACKS:
            self._log.error(
                "connection_failed",
                connection=connection.number,
                exc_info=(type(error), error, error.__traceback__),
            )
        elif self.failures % 1000 == 0:
            self._log.error("connections_failed", count=self.failures, last=type(error).__name__)

    def cut_all(self) -> int:
        """Cut everything; returns how many there were."""
        every = list(self._open)
        for connection in every:
            connection.cut()
        return len(every)

    def start_sweeping(self) -> None:
        """Begin to cut connections whose time is over or whose client has gone, once a second."""
        self._sweeper = asyncio.get_running_loop().create_task(self._sweep())

    async def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(1)
            now = loop.time()
            for connection in list(self._open):
                if connection.expires < now:
                    connection.cut()
            self._look_for_resets()

    def _look_for_resets(self) -> None:
        """
        Tell owners whose clients are gone.

        While a server takes nothing, nothing is read from its client, and the loop does not look at it.
        """
        owners = {found[0]: found[1] for connection in self._open if (found := connection.client) is not None}
        poll = select.poll()
        for descriptor in owners:
            poll.register(descriptor, 0)  # errors and hang-ups are told unasked
        for descriptor, _ in poll.poll(0):
            owners[descriptor]()

    async def close(self) -> None:
        """Cut everything and wait until it has ended."""
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
        tasks = [c._task for c in self._open if c._task is not None]  # noqa: SLF001 - its own part
        self.cut_all()
        await asyncio.gather(*tasks, return_exceptions=True)
