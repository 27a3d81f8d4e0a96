"""
Places where a secret is kept outside km: a file of variables, or a command of a password manager.

``secrets`` in ``config.yaml`` maps a name to one of them; every other name is in the control plane's
sealed store.  The control plane reads a source when a gate asks; nothing of it is written down.
"""

from __future__ import annotations

import hashlib
import os
import re
import signal
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from attrs import frozen

from km_core.errors import ConfigError, ControlError
from km_core.secrets.rules import SECRET_NAME

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_VALUE = 64 * 1024
"""Longest value in bytes."""
COMMAND_TIMEOUT_S = 15.0
COMMAND_FRESH_S = 30.0
"""How long what a command said is used before it is asked again."""

_MAX_FILE = 1024 * 1024
_NAME = re.compile(SECRET_NAME + r"\Z")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}\Z")


class SecretSource(Protocol):
    """Reads one secret; called outside an event loop."""

    @property
    def kind(self) -> str:
        """What it is, for people."""

    @property
    def fresh_s(self) -> float:
        """Seconds for which a value is used without asking `stamp` again; 0 asks each time."""

    def stamp(self) -> str:
        """Return what changes when the value may have changed, or an empty text when only reading tells."""

    def read(self) -> str:
        """Return the value; raises `ControlError`, whose text never holds it."""


@frozen
class EnvFileSource:
    """A variable of a file of ``NAME=VALUE`` lines that only its owner may read."""

    path: Path
    variable: str

    kind = "env_file"
    fresh_s = 0.0

    def stamp(self) -> str:
        """Return what `os.stat` says of the file."""
        try:
            found = self.path.stat()
        except OSError:
            return "none"
        return f"{found.st_ino}.{found.st_mtime_ns}.{found.st_size}.{found.st_mode}"

    def read(self) -> str:
        """Return the variable's value."""
        try:
            # A pipe in its place must not make anybody wait for its other end.
            with os.fdopen(os.open(self.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                found = os.fstat(file.fileno())
                if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077:
                    raise ControlError(
                        "a file of secrets may be read by its owner only",
                        where=str(self.path),
                        hint=f"chmod 600 {self.path}",
                    )
                if found.st_uid not in {os.geteuid(), 0}:
                    raise ControlError("a file of secrets belongs to somebody else", where=str(self.path))
                data = file.read(_MAX_FILE)
        except OSError as error:
            raise ControlError(
                "a file of secrets cannot be read", where=str(self.path), why=error.strerror or ""
            ) from error
        # As in a shell, the last line of a name counts.
        for line in reversed(data.decode("utf-8", "replace").splitlines()):
            name, mark, value = line.strip().removeprefix("export ").partition("=")
            if mark and name.strip() == self.variable:
                return _unquoted(value.strip())
        raise ControlError(f"the file has no variable {self.variable}", where=str(self.path))


@frozen
class CommandSource:
    """A command whose output is the value; its arguments name the secret and do not hold it."""

    argv: tuple[str, ...]

    kind = "command"
    fresh_s = COMMAND_FRESH_S

    def stamp(self) -> str:
        """Return nothing: only the command can tell."""
        return ""

    def read(self) -> str:
        """Run the command and return its output without the line's end."""
        program = self.argv[0]
        try:
            # What it prints on stderr may hold anything: it is neither kept nor shown.
            process = subprocess.Popen(
                self.argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            raise ControlError(
                "a command for a secret cannot be run", where=program, why=error.strerror or ""
            ) from error
        with process:
            try:
                data, _ = process.communicate(timeout=COMMAND_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                raise ControlError(
                    f"a command for a secret did not end within {COMMAND_TIMEOUT_S:.0f} seconds",
                    where=program,
                ) from None
        if process.returncode or not data.strip() or len(data) > MAX_VALUE:
            raise ControlError(
                "a command for a secret gave none", where=program, why=f"exit status {process.returncode}"
            )
        return data.decode("utf-8", "replace").rstrip("\r\n")


def fingerprint(key: bytes, value: str) -> str:
    """Return 8 hex digits that tell values apart and say nothing of them without *key* (32 bytes)."""
    return hashlib.blake2b(value.encode(), key=key, digest_size=4, person=b"km-fingerprint").hexdigest()


def parse_sources(data: Mapping[str, Any], where: str) -> dict[str, SecretSource]:
    """
    Read the configuration's ``secrets``.

    Raises:
        ConfigError: an entry is neither ``{command: [PROGRAM, ARGUMENT…]}`` nor ``{env_file, variable}``.
    """
    found: dict[str, SecretSource] = {}
    for name, item in data.items():
        if not _NAME.match(str(name)):
            raise ConfigError(f"secrets: {name!r} cannot name a secret", where=where)
        source = _source(item if isinstance(item, dict) else {})
        if source is None:
            raise ConfigError(
                f"secrets.{name} is no place of a secret",
                where=where,
                hint="write {command: [op, read, 'op://vault/item/key']} or {env_file: ~/keys.env, variable: KEY}",
            )
        found[name] = source
    return found


def _source(members: Mapping[str, Any]) -> SecretSource | None:
    match members:
        case {"command": [_, *_] as command, **rest} if not rest:
            return CommandSource(tuple(command)) if all(isinstance(p, str) and p for p in command) else None
        case {"env_file": str(path), "variable": str(variable), **rest} if not rest:
            file = Path(path).expanduser()
            return EnvFileSource(file, variable) if file.is_absolute() and _VARIABLE.match(variable) else None
    return None


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value
