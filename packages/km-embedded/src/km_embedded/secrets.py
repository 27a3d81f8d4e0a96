"""
Secrets at rest: sealed with a key beside the database.

The seal protects copies and backups of the database, not an account that was taken over: the key is
readable by the same user (DESIGN section 5).
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

from km_core.errors import ControlError, NotFoundError
from km_core.secrets import fingerprint
from km_embedded.files import make_key, read_key

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from km_embedded.store import Database

NAME_PATTERN = r"[a-z0-9][a-z0-9._-]{0,63}"
MAX_VALUE = 64 * 1024
"""Longest value in characters."""


class Secrets:
    """The sealed secrets; changes run inside the caller's transaction."""

    def __init__(self, db: Database, key_path: Path) -> None:
        self._db = db
        self._path = key_path
        self._key: bytes | None = None

    def __repr__(self) -> str:
        return "Secrets()"

    def set(self, name: str, value: str, now: float) -> str:
        """Seal a value under a name, replacing what was there; returns its fingerprint."""
        from nacl.secret import SecretBox

        key = self._load(make=True)
        # The name is inside the seal, so that rows swapped in the file are seen.
        sealed = bytes(SecretBox(key).encrypt(json.dumps({"name": name, "value": value}).encode()))
        digest = self.fingerprint(value)
        self._db.run(
            "INSERT INTO secrets VALUES (?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET"
            " sealed = excluded.sealed, fingerprint = excluded.fingerprint, updated_at = excluded.updated_at",
            (name, sealed, digest, now),
        )
        return digest

    def fingerprint(self, value: str) -> str:
        """Return what tells values apart; the same value has the same one wherever it is kept."""
        self._load(make=True)
        return fingerprint(_subkey(self._key or b"", b"fingerprint"), value)

    def row(self, name: str) -> dict[str, Any] | None:
        """Return name, time and fingerprint of a secret, or None."""
        found = self._db.one("SELECT name, updated_at, fingerprint FROM secrets WHERE name = ?", (name,))
        return None if found is None else dict(found)

    def list(self) -> list[dict[str, Any]]:
        """Return names, times and fingerprints; never values."""
        return [
            dict(row)
            for row in self._db.all("SELECT name, updated_at, fingerprint FROM secrets ORDER BY name")
        ]

    def delete(self, name: str) -> None:
        """Remove a secret; raises `NotFoundError`."""
        if not self._db.run("DELETE FROM secrets WHERE name = ?", (name,)):
            raise NotFoundError(f"there is no secret {name!r}", hint="km secrets list shows the names")

    def values(self, names: Iterable[str]) -> dict[str, str]:
        """
        Return the values of those *names* that exist.

        Raises:
            ControlError: the key is missing, or a value cannot be opened with it.
        """
        from nacl.exceptions import CryptoError
        from nacl.secret import SecretBox

        found = {}
        for name in sorted(set(names)):
            row = self._db.one("SELECT sealed FROM secrets WHERE name = ?", (name,))
            if row is None:
                continue
            key = self._load(make=False)
            try:
                data = json.loads(SecretBox(key).decrypt(row["sealed"]))
            except (CryptoError, ValueError) as error:
                raise self._unsealable(name) from error
            if data.get("name") != name:
                raise self._unsealable(name)
            found[name] = str(data["value"])
        return found

    def _load(self, *, make: bool) -> bytes:
        if self._key is None:
            key = read_key(self._path)
            if key is None:
                if not make or self.list():
                    # A new key would hide that every stored secret is lost.
                    raise ControlError(
                        "the key that seals the secrets is missing",
                        where=str(self._path),
                        hint="restore it from the backup, or delete every secret and set them again",
                    )
                key = make_key(self._path)
            self._key = key
        return _subkey(self._key, b"seal")

    def _unsealable(self, name: str) -> ControlError:
        return ControlError(
            f"the secret {name!r} cannot be opened",
            where=str(self._path),
            why="it was sealed with another key or was changed",
            hint="set it again",
        )


def _subkey(key: bytes, purpose: bytes) -> bytes:
    return hashlib.blake2b(purpose, key=key, digest_size=32, person=b"km-secrets").digest()
