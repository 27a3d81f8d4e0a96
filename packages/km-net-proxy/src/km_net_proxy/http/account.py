"""What HTTP moves: one record per connection and host, as tunnels have one each."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from km_core.errors import AuditError

if TYPE_CHECKING:
    from km_net_proxy.http.connections import Connection, Destination
    from km_net_proxy.http.context import Evidence
    from km_net_proxy.http.stream import Stream


class Account:
    """
    Counts the bytes of one client connection on which HTTP is read, TLS taken off.

    Args:
        evidence: where the records go.
        connection: the connection.
        client: its stream.
    """

    def __init__(self, evidence: Evidence, connection: Connection, client: Stream) -> None:
        self._evidence = evidence
        self._connection = connection
        self._client = client
        self._destination: Destination | None = None
        self._requests = 0
        self._since = 0.0
        self._up = self._down = 0

    def request(self, destination: Destination) -> None:
        """Take an allowed request; on an explicit proxy's connection the next may be for another host."""
        if destination != self._destination:
            # The head of this request has been read already: it counts for the host before, if there is one.
            self.close()
            self._destination = destination
            self._since = time.monotonic()
        self._requests += 1

    def close(self, error: str = "") -> None:
        """
        Record what was moved for the host so far; nothing when no request was allowed.

        A record that cannot be written is counted in the next one: what it tells of has happened.
        """
        goal, self._destination = self._destination, None
        if goal is None:
            return
        up, down = self._client.received, self._client.sent
        with contextlib.suppress(AuditError):
            self._evidence.event(
                "http_closed",
                layer="http",
                name=goal.name or str(goal.address),
                port=goal.port,
                requests=self._requests,
                bytes_up=up - self._up,
                bytes_down=down - self._down,
                duration_ms=int((time.monotonic() - self._since) * 1000),
                connection=self._connection.number,
                error=error,
            )
        self._requests, self._up, self._down = 0, up, down
