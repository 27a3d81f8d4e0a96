"""
A socket and a token per sandbox: what a sandbox's own processes reach of the control plane.

The token is 32 random bytes and stands in the database as its SHA-256 only.  Operations on such a
socket have no argument for a sandbox: they act on the one the socket was made for.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import stat
from typing import TYPE_CHECKING

from km_core.control.server import ControlServer
from km_core.errors import ControlError
from km_embedded.files import private_dir

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from km_core.config import Config
    from km_core.control.ops import Op
    from km_embedded.store import Database

MAX_LINE = 1024 * 1024
"""Longest request of a sandbox's process in bytes."""
NAME = "kmd.sock"


class SandboxSockets:
    """
    The sockets of every sandbox.

    Args:
        config: where they are.
        db: holds the tokens.
        ops: returns the operations for one sandbox.
        log: see `ControlServer`.
    """

    def __init__(
        self,
        config: Config,
        db: Database,
        ops: Callable[[str], Mapping[str, Op]],
        log: Callable[..., None],
    ) -> None:
        self._config = config
        self._db = db
        self._ops = ops
        self._log = log
        self._servers: dict[str, ControlServer] = {}

    @property
    def connections(self) -> int:
        """Number of open connections on all sockets."""
        return sum(server.connections for server in self._servers.values())

    def new_token(self, sandbox_id: str, version: int) -> str:
        """
        Replace a sandbox's token inside a transaction; returns the new one.

        Args:
            sandbox_id: whose it is.
            version: the record's version now, so that the token can be told to be older than a state.
        """
        token = secrets.token_urlsafe(32)
        self._db.run(
            "INSERT INTO tokens VALUES (?, ?, ?) ON CONFLICT (sandbox_id) DO UPDATE SET"
            " digest = excluded.digest, version = excluded.version",
            (sandbox_id, _digest(token), version),
        )
        return token

    def token_version(self, sandbox_id: str) -> int:
        """Return the record's version at which the sandbox's token was made; -1 without one."""
        row = self._db.one("SELECT version FROM tokens WHERE sandbox_id = ?", (sandbox_id,))
        return -1 if row is None else int(row["version"])

    async def open(self, sandbox_id: str) -> Path:
        """Make a sandbox's socket, or drop the connections of the one that is there; returns its path."""
        server = self._servers.get(sandbox_id)
        if server is not None and server.path.exists():
            # Its token was replaced: whoever came in with the old one is out.
            server.drop_connections()
        else:
            if server is not None:
                await server.close(wait_s=0)
            directory = self._config.sandbox_runtime_dir(sandbox_id)
            private_dir(directory)
            server = ControlServer(
                directory / NAME,
                self._ops(sandbox_id),
                check_token=lambda token: self._opens(sandbox_id, token),
                max_line=MAX_LINE,
                log=self._log,
            )
            await server.start()
            self._servers[sandbox_id] = server
        self.share(sandbox_id)
        return server.path

    def share(self, sandbox_id: str) -> None:
        """
        Link a sandbox's socket into its ``gate/`` directory, where a gate in a container finds it.

        Done again whenever the socket is a new one, so that the link never leads to a dead socket.
        The gate has another uid there: the socket admits every uid then, behind its private
        directory and its token.
        """
        server = self._servers.get(sandbox_id)
        if server is None:
            return
        gate = server.path.parent / "gate"
        link = gate / NAME
        try:
            found = gate.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid not in {os.geteuid(), 0}:
                return
            ours = server.path.stat()
            with contextlib.suppress(FileNotFoundError):
                if link.lstat().st_ino == ours.st_ino:
                    return
            temporary = gate / f".{NAME}"
            with contextlib.suppress(FileNotFoundError):
                temporary.unlink()
            server.path.chmod(0o666)
            os.link(server.path, temporary)
            temporary.rename(link)
        except FileNotFoundError:
            return
        except OSError as error:
            self._log("socket_not_shared", sandbox=sandbox_id, why=str(error))

    def share_all(self) -> None:
        """Do `share` for every sandbox."""
        for sandbox_id in self._servers:
            self.share(sandbox_id)

    async def open_known(self) -> None:
        """Make the sockets of every sandbox that has a token, as after a restart."""
        for row in self._db.all("SELECT sandbox_id FROM tokens ORDER BY sandbox_id"):
            try:
                await self.open(row["sandbox_id"])
            except ControlError as error:
                self._log("socket_failed", sandbox=row["sandbox_id"], why=str(error))

    def missing(self) -> list[str]:
        """Return sandboxes whose socket file has gone, as when somebody cleaned the directory."""
        return [sandbox_id for sandbox_id, server in self._servers.items() if not server.path.exists()]

    async def close(self, sandbox_id: str) -> None:
        """Close a sandbox's socket and its connections."""
        server = self._servers.pop(sandbox_id, None)
        if server is not None:
            await server.close(wait_s=0)
        link = self._config.sandbox_runtime_dir(sandbox_id) / "gate" / NAME
        with contextlib.suppress(OSError):
            link.unlink()

    async def close_all(self) -> None:
        """Close every socket; the tokens stay."""
        for server in tuple(self._servers.values()):
            await server.close(wait_s=1)
        self._servers.clear()

    def _opens(self, sandbox_id: str, token: str) -> bool:
        row = self._db.one("SELECT digest FROM tokens WHERE sandbox_id = ?", (sandbox_id,))
        return row is not None and hmac.compare_digest(bytes(row["digest"]), _digest(token))


def _digest(token: str) -> bytes:
    # 32 random bytes need no slow hash: there is nothing to guess.
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
