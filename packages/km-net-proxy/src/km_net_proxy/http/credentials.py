"""
Credentials that the gate puts on requests: fetched from the control plane, held in memory only.

The client's own credentials never leave on a host whose credential the gate injects, neither as fields
nor in the query: an allowed AI host with somebody else's key is a way to carry data out.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_plus

if TYPE_CHECKING:
    from km_core.types import InjectionRule

FRESH_S = 60.0
"""How long a fetched value is used before it is asked for again."""

_STRIPPED = frozenset(
    {
        b"authorization",
        b"x-api-key",
        b"api-key",
        b"x-goog-api-key",
        b"cookie",
        b"proxy-authorization",
        b"x-amz-security-token",
    }
)
_STRIPPED_QUERY = frozenset(
    {"key", "api-key", "apikey", "x-api-key", "access-token", "token", "auth", "authorization"}
)
_DOUBT_INTERVAL_S = 1.0


class Control(Protocol):
    """The sandbox's connection to the control plane."""

    async def call(self, op: str, /, **args: Any) -> Any:
        """Carry out an operation; raises `KmError`."""


class SecretCache:
    """
    Secrets by name, with `FRESH_S` of memory.

    Args:
        control: where they come from.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._held: dict[str, tuple[float, str | None]] = {}
        self._doubted: dict[str, float] = {}
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"SecretCache({len(self._held)} names)"

    async def value(self, name: str) -> str | None:
        """Return the value, or None when there is none; raises `KmError` when nobody can say."""
        now = asyncio.get_running_loop().time()
        held = self._held.get(name)
        if held is not None and held[0] > now:
            return held[1]
        async with self._lock:
            held = self._held.get(name)
            if held is not None and held[0] > now:
                return held[1]
            answer = await self._control.call("secret.for", names=[name])
            value = answer.get(name) if isinstance(answer, dict) else None
            secret = value if isinstance(value, str) and value else None
            # A missing secret is asked for each time: the operator is about to set it.
            if secret is None:
                self._held.pop(name, None)
            else:
                self._held[name] = (now + FRESH_S, secret)
            return secret

    def doubt(self, name: str) -> None:
        """Forget a value that a host refused, at most once a second."""
        now = asyncio.get_running_loop().time()
        if now - self._doubted.get(name, -_DOUBT_INTERVAL_S) >= _DOUBT_INTERVAL_S:
            self._doubted[name] = now
            self._held.pop(name, None)


def strip_fields(fields: list[tuple[bytes, bytes]], rule: InjectionRule | None) -> list[tuple[bytes, bytes]]:
    """
    Return *fields* without any credential of the client's.

    ``X_Api_Key`` counts as ``x-api-key``: servers that hand fields on as variables cannot tell them apart.
    """
    names = _STRIPPED
    if rule is not None:
        names = names | {name.lower().encode("latin-1") for name in (*rule.strip, rule.header)}
    return [(name, value) for name, value in fields if name.lower().replace(b"_", b"-") not in names]


def strip_query(target: str) -> str:
    """Return a request target without query members that carry credentials."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    kept = [
        member
        for member in query.split("&")
        # Some servers end a member at a semicolon too.
        if not any(
            unquote_plus(part.partition("=")[0]).strip().lower().replace("_", "-") in _STRIPPED_QUERY
            for part in member.split(";")
        )
    ]
    return f"{path}?{'&'.join(kept)}" if kept else path


def injected(rule: InjectionRule, secret: str) -> tuple[bytes, bytes]:
    """
    Return the field that carries the credential.

    Raises:
        ValueError: the secret cannot stand in a field; the text does not show it.
    """
    value = rule.template.replace("{secret}", secret.strip())
    if not value.isascii() or not value.isprintable():
        raise ValueError(f"the secret {rule.secret} holds characters that no header can carry")
    return rule.header.encode("ascii"), value.encode("ascii")
