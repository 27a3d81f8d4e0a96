"""Private sockets on which a container reports back: one connection, from exactly that container."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import time
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import ProvisionError
from km_host.fds import peer_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@frozen
class Rendezvous:
    """A listening Unix socket at *path*, for one connection."""

    path: Path
    listener: socket.socket

    def accept(
        self, *, pid: int, uid: int, still_running: Callable[[], str], timeout_s: float, what: str
    ) -> socket.socket:
        """
        Return the connection of the process *pid* (on the host) with user *uid*; the path is gone then.

        Args:
            pid: the only process that may connect.
            uid: its user id on the host.
            still_running: returns an empty text while the container runs, else how it ended.
            timeout_s: how long to wait for it, in seconds; also the connection's own timeout.
            what: the container, for error texts.

        Raises:
            ProvisionError: somebody else connected, the container ended, or it took too long.
        """
        deadline = time.monotonic() + timeout_s
        while not select.select([self.listener], [], [], 0.1)[0]:
            ended = still_running()
            # It may have connected and ended between the two looks.
            if ended and not select.select([self.listener], [], [], 0)[0]:
                raise ProvisionError(f"{what} ended before it connected", why=ended)
            if time.monotonic() > deadline:
                raise ProvisionError(f"{what} did not connect within {timeout_s:.0f} s")
        connection, _ = self.listener.accept()
        self.path.unlink(missing_ok=True)
        peer = peer_of(connection)
        if peer[:2] != (pid, uid):
            connection.close()
            raise ProvisionError(
                f"another process than {what} connected to its socket",
                why=f"process {peer[0]} with uid {peer[1]}, expected {pid} with {uid}",
            )
        connection.settimeout(timeout_s)
        return connection


@contextlib.contextmanager
def rendezvous(path: Path, *, mode: int, gid: int | None = None) -> Iterator[Rendezvous]:
    """Listen at *path* for the length of a block; mode and group say who may connect."""
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    try:
        try:
            listener.bind(str(path))
            if gid is not None and os.geteuid() == 0:
                os.chown(path, -1, gid)
            path.chmod(mode)
            listener.listen(1)
        except OSError as error:
            raise ProvisionError(
                "a socket for a container cannot be made", where=str(path), why=str(error)
            ) from error
        yield Rendezvous(path, listener)
    finally:
        listener.close()
        path.unlink(missing_ok=True)
