"""
Secrets wherever they are kept: the sealed store, and the places that the configuration names.

What a place outside gave is held in memory for as long as it is fresh and is never written down.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from typing import TYPE_CHECKING, Any

from attrs import define

from km_core.config import load_config
from km_core.errors import ControlError, GuardError, NotFoundError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from km_core.config import Config
    from km_core.secrets import SecretSource
    from km_embedded.secrets import Secrets
    from km_embedded.store import Database

USE_STEP_S = 10.0
"""How much later a use must be to be written down again."""
MAX_USES = 50
"""Uses that are kept of one secret: the last in each sandbox at each host."""


class LiveConfig:
    """
    The configuration as it stands in its file now.

    Args:
        config: the one the process began with, used while there is no file.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        named = os.environ.get("KM_CONFIG_PATH")
        self._path: Path | str = named or config.home / "config.yaml"
        self._seen: tuple[int, ...] | None = None

    def __call__(self) -> Config:
        """Return it; raises `ConfigError` when the file is damaged."""
        try:
            found = os.stat(self._path)  # noqa: PTH116 - a text or a path
        except OSError:
            return self._config
        seen = (found.st_ino, found.st_mtime_ns, found.st_size)
        if seen != self._seen:
            self._config = load_config({**os.environ, "KM_HOME": str(self._config.home)})
            self._seen = seen
        return self._config


@define(repr=False)
class _Outside:
    """What a place outside gave: the value, what the place said then, and when it was asked (loop's clock)."""

    source: SecretSource
    value: str
    stamp: str
    at: float


class SecretKeeper:
    """
    Secrets by name; changes of the sealed store run inside the caller's transaction.

    Args:
        db: for what was used where.
        sealed: the sealed store.
        config: returns the present configuration.
        clock: returns Unix seconds.
    """

    def __init__(
        self, db: Database, sealed: Secrets, config: Callable[[], Config], clock: Callable[[], float]
    ) -> None:
        self._db = db
        self._sealed = sealed
        self._config = config
        self._clock = clock
        self._held: dict[str, _Outside] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._reading: dict[str, asyncio.Task[None]] = {}
        self._noted: dict[tuple[str, str, str], float] = {}

    def __repr__(self) -> str:
        return "SecretKeeper()"

    async def close(self) -> None:
        """End what is being read."""
        for task in self._reading.values():
            task.cancel()
        await asyncio.gather(*self._reading.values(), return_exceptions=True)

    # -- reading ----------------------------------------------------------------------------------

    async def stamp(self, name: str) -> str:
        """Return what changes with the value of a secret; empty when there is none."""
        if name in self._config().secrets:
            held = await self._outside(name)
            return _digest(held.stamp, self._sealed.fingerprint(held.value))
        row = self._sealed.row(name)
        return "" if row is None else _digest(str(row["updated_at"]), row["fingerprint"])

    async def values(self, names: Iterable[str]) -> dict[str, str]:
        """Return the values of those *names* that exist; raises `ControlError` where one cannot be read."""
        wanted = set(names)
        outside = wanted & set(self._config().secrets)
        found = self._sealed.values(wanted - outside)
        for name in sorted(outside):
            found[name] = (await self._outside(name)).value
        return found

    async def show(self, name: str) -> dict[str, Any]:
        """Return everything about a secret but its value; raises `NotFoundError`."""
        source = self._config().secrets.get(name)
        if source is not None:
            held = await self._outside(name)
            about = {"updated_at": None, "fingerprint": self._sealed.fingerprint(held.value)}
            return {"name": name, **about, "source": source.kind, **self._uses(name)}
        row = self._sealed.row(name)
        if row is None:
            raise NotFoundError(f"there is no secret {name!r}", hint="km secrets list shows the names")
        return {**row, "source": "sealed", **self._uses(name)}

    def list(self) -> list[dict[str, Any]]:
        """Return names, times, fingerprints, places and uses; never values, and no place is asked."""
        outside = self._config().secrets
        rows = [{**row, "source": "sealed"} for row in self._sealed.list() if row["name"] not in outside]
        for name, source in outside.items():
            held = self._held.get(name)
            known = "" if held is None else self._sealed.fingerprint(held.value)
            rows.append({"name": name, "updated_at": None, "fingerprint": known, "source": source.kind})
        return [{**row, **self._uses(row["name"])} for row in sorted(rows, key=lambda row: str(row["name"]))]

    # -- changing ---------------------------------------------------------------------------------

    def set(self, name: str, value: str) -> str:
        """Seal a value; returns its fingerprint.  Raises `GuardError` for a name that is kept elsewhere."""
        source = self._config().secrets.get(name)
        if source is not None:
            raise GuardError(
                f"the secret {name!r} is kept outside km ({source.kind})",
                where="secrets in the configuration",
                hint=f"change it there, then: km secrets rotate {name}",
            )
        return self._sealed.set(name, value, self._clock())

    def replace(self, name: str, value: str) -> tuple[str, str]:
        """
        Replace a sealed value by another.

        Returns:
            The fingerprints before and after.

        Raises:
            NotFoundError: there is none of that name.
            GuardError: it is the same value.
        """
        row = self._sealed.row(name)
        if row is None and name not in self._config().secrets:
            raise NotFoundError(
                f"there is no secret {name!r}", hint=f"km secrets set {name} stores a first value"
            )
        before = "" if row is None else str(row["fingerprint"])
        after = self.set(name, value)
        if after == before:
            raise GuardError(f"the secret {name!r} already has this value", hint="nothing was rotated")
        return before, after

    async def reread(self, name: str) -> tuple[str, str]:
        """
        Ask the place outside of a secret anew.

        Returns:
            The fingerprints before (empty when it was not read yet) and after.
        """
        if name not in self._config().secrets:
            raise UsageError(
                f"{name} is kept by km: give the new value", hint=f"km secrets rotate {name} < new-key.txt"
            )
        held = self._held.pop(name, None)
        before = "" if held is None else self._sealed.fingerprint(held.value)
        # Asked now, not a moment ago: what is already being read may be the old value.
        async with self._locks.setdefault(name, asyncio.Lock()):
            held = await self._read(name, self._source(name))
        return before, self._sealed.fingerprint(held.value)

    def delete(self, name: str) -> None:
        """Remove a sealed secret and what is known of its uses; raises `NotFoundError`."""
        source = self._config().secrets.get(name)
        if source is not None and self._sealed.row(name) is None:
            raise GuardError(
                f"the secret {name!r} is kept outside km ({source.kind})",
                hint="take it out of the configuration",
            )
        self._sealed.delete(name)
        self._db.run("DELETE FROM secret_uses WHERE name = ?", (name,))
        self._noted = {key: at for key, at in self._noted.items() if key[0] != name}

    # -- uses -------------------------------------------------------------------------------------

    def used(self, name: str, sandbox_id: str, host: str) -> None:
        """Note that a gate uses a secret."""
        key, now = (name, sandbox_id, host), self._clock()
        if now - self._noted.get(key, 0.0) < USE_STEP_S:
            return
        if len(self._noted) > 65536:
            self._noted.clear()
        self._noted[key] = now
        with self._db.transaction():
            self._db.run(
                "INSERT INTO secret_uses VALUES (?, ?, ?, ?) ON CONFLICT (name, sandbox_id, host)"
                " DO UPDATE SET at = max(at, excluded.at)",
                (*key, now),
            )
            self._db.run(
                "DELETE FROM secret_uses WHERE name = ? AND rowid NOT IN"
                " (SELECT rowid FROM secret_uses WHERE name = ? ORDER BY at DESC LIMIT ?)",
                (name, name, MAX_USES),
            )

    def _uses(self, name: str) -> dict[str, Any]:
        rows = [
            {"sandbox": row["sandbox_id"], "host": row["host"], "at": row["at"]}
            for row in self._db.all(
                "SELECT sandbox_id, host, at FROM secret_uses WHERE name = ? ORDER BY at DESC", (name,)
            )
        ]
        return {"last_used_at": rows[0]["at"] if rows else None, "used": rows}

    # -- places outside ---------------------------------------------------------------------------

    def _source(self, name: str) -> SecretSource:
        source = self._config().secrets.get(name)
        if source is None:
            raise ControlError(f"the secret {name!r} is no longer kept outside km")
        return source

    async def _outside(self, name: str) -> _Outside:
        source = self._source(name)
        held = self._held.get(name)
        now = asyncio.get_running_loop().time()
        if held is not None and held.source == source:
            age = now - held.at
            if not source.fresh_s:
                if source.stamp() == held.stamp:
                    return held
            elif age < source.fresh_s:
                if age > source.fresh_s / 2:
                    self._refresh(name, source)
                return held
        async with self._locks.setdefault(name, asyncio.Lock()):
            again = self._held.get(name)
            if again is not None and again.source == source and again.at >= now:
                return again
            return await self._read(name, source)

    async def _read(self, name: str, source: SecretSource) -> _Outside:
        began, stamp = asyncio.get_running_loop().time(), source.stamp()
        value = (await asyncio.to_thread(source.read)).strip()
        if not value or not value.isascii() or not value.isprintable():
            raise ControlError(f"the secret {name!r} is empty or holds characters that no header can carry")
        held = self._held.get(name)
        if held is None or held.source != source or held.at <= began:
            held = self._held[name] = _Outside(source, value, stamp, began)
        return held

    def _refresh(self, name: str, source: SecretSource) -> None:
        """Ask a slow place while the last value is still used."""
        if name in self._reading:
            return

        async def run() -> None:
            try:
                await self._read(name, source)
            except ControlError:
                # The next one who asks waits for the place and is told what is wrong.
                self._held.pop(name, None)
            finally:
                self._reading.pop(name, None)

        self._reading[name] = asyncio.get_running_loop().create_task(run())


def _digest(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
