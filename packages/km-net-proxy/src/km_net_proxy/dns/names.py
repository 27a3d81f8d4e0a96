"""
Synthetic addresses: one per name and sandbox, kept for the sandbox's life.

Host part *n* is ``198.18.0.0 + n`` and ``fdc0:6b6d:: + n``; 1 is km.internal, names start at 256.  An
assignment is on the disk before anybody hears of it, and is never given to another name: an address that
a client remembers cannot come to mean something else.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING

from km_core.errors import KmError
from km_core.policy import INSIDE_NAME, canonical_name

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

V4_BASE = int(IPv4Address("198.18.0.0"))
V4_COUNT = 1 << 17
V6_BASE = int(IPv6Address("fdc0:6b6d::"))
INSIDE_HOST = 1
FIRST_HOST = 256
DEFAULT_LIMIT = 65536


class NamesFullError(KmError):
    """No synthetic address is left; the name is not answered."""

    code = "names-full"


def v4_of(host: int) -> bytes:
    """Return the 4 bytes of host part *host*."""
    return (V4_BASE + host).to_bytes(4, "big")


def v6_of(host: int) -> bytes:
    """Return the 16 bytes of host part *host*."""
    return (V6_BASE + host).to_bytes(16, "big")


def host_of(address: IPv4Address | IPv6Address) -> int | None:
    """Return the host part of a synthetic address, or None for any other address."""
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            host = int(address) - V6_BASE
            return host if 0 <= host < V4_COUNT else None
        address = address.ipv4_mapped
    host = int(address) - V4_BASE
    return host if 0 <= host < V4_COUNT else None


class SyntheticNames:
    """
    The table of one sandbox.

    Args:
        path: ``names.jsonl``; made with mode 0600 when absent, appended to, never rewritten.
        limit: how many names may be assigned; beyond, `assign` fails.

    Raises:
        KmError: the file cannot be read, contradicts itself, or another process writes it.
    """

    def __init__(self, path: Path, *, limit: int = DEFAULT_LIMIT) -> None:
        self._path = path
        self._limit = min(limit, V4_COUNT - FIRST_HOST)
        self._hosts: dict[str, int] = {INSIDE_NAME: INSIDE_HOST}
        self._names: dict[int, str] = {INSIDE_HOST: INSIDE_NAME}
        self._next = FIRST_HOST
        self._waiting: dict[str, asyncio.Future[int]] = {}
        self._committing: asyncio.Task[None] | None = None
        try:
            flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(path, flags, 0o600)
        except OSError as error:
            raise self._error("the table of synthetic addresses cannot be opened", str(error)) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._load()
        except OSError as error:
            os.close(self._fd)
            raise self._error("the table of synthetic addresses cannot be used", str(error)) from error
        except BaseException:
            os.close(self._fd)
            raise

    def __len__(self) -> int:
        """Return how many names have an address, km.internal included."""
        return len(self._hosts)

    def host(self, name: str) -> int | None:
        """Return the host part of a canonical name, or None when it has none yet."""
        return self._hosts.get(name)

    def lookup(self, address: IPv4Address | IPv6Address) -> str | None:
        """Return the name that a synthetic address stands for (v4, v6 or v4-mapped), or None."""
        host = host_of(address)
        return None if host is None else self._names.get(host)

    async def assign(self, name: str) -> int:
        """
        Return the host part of a canonical name, giving it one if need be.

        Names that come in together share one write and one sync.

        Raises:
            NamesFullError: the table is full.
            KmError: the assignment cannot be brought to the disk.
        """
        host = self._hosts.get(name)
        if host is not None:
            return host
        future = self._waiting.get(name)
        if future is None:
            if self._next + len(self._waiting) >= FIRST_HOST + self._limit:
                raise NamesFullError(
                    "no synthetic address is left",
                    where=str(self._path),
                    why=f"the sandbox has asked for {self._limit} different names",
                )
            future = self._waiting[name] = asyncio.get_running_loop().create_future()
            if self._committing is None:
                self._committing = asyncio.get_running_loop().create_task(self._commit())
        # One caller's cancellation must not take the address from the others that wait for it.
        return await asyncio.shield(future)

    async def close(self) -> None:
        """Finish what is being written and close the file."""
        if self._committing is not None:
            await self._committing
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    async def _commit(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                batch = list(self._waiting)
                first = self._next
                try:
                    await loop.run_in_executor(None, self._write, first, batch)
                except OSError as error:
                    for name in batch:
                        failed = self._waiting.pop(name)
                        if not failed.done():
                            failed.set_exception(
                                self._error("a synthetic address cannot be recorded", str(error))
                            )
                            failed.exception()  # nobody may be waiting any more
                    continue
                self._next = first + len(batch)
                for number, name in enumerate(batch):
                    self._hosts[name] = first + number
                    self._names[first + number] = name
                    future = self._waiting.pop(name)
                    if not future.done():
                        future.set_result(first + number)
        finally:
            self._committing = None

    def _write(self, first: int, batch: Sequence[str]) -> None:
        """Append assignments and sync them; on failure the file is as before."""
        size = os.fstat(self._fd).st_size
        data = b"".join(
            json.dumps({"host": first + number, "name": name}).encode() + b"\n"
            for number, name in enumerate(batch)
        )
        try:
            if os.write(self._fd, data) != len(data):
                raise OSError("the disk is full")
            os.fsync(self._fd)
        except OSError:
            os.ftruncate(self._fd, size)
            raise

    def _load(self) -> None:
        data = b""
        while chunk := os.read(self._fd, 1 << 20):
            data += chunk
        whole = data.rfind(b"\n") + 1
        if whole < len(data):
            # Torn by a crash before its sync ended, so nobody was told of it.
            os.ftruncate(self._fd, whole)
        for index, line in enumerate(data[:whole].splitlines(), 1):
            try:
                entry = json.loads(line)
                host, name = entry["host"], entry["name"]
                valid = isinstance(host, int) and host == self._next and canonical_name(name) == name
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise self._error(f"line {index} is damaged", str(error)) from error
            if not valid or name in self._hosts or host >= V4_COUNT:
                raise self._error(
                    f"line {index} contradicts the lines before it", "an address is never reassigned"
                )
            self._hosts[name] = host
            self._names[host] = name
            self._next = host + 1

    def _error(self, what: str, why: str) -> KmError:
        return KmError(what, where=str(self._path), why=why, code="names")
