"""
Credentials that the gate puts on requests: fetched from the control plane, held in memory only.

The client's own credentials never leave on a host whose credential the gate injects, neither as fields
nor in the query: an allowed AI host with somebody else's key is a way to carry data out.
"""

from __future__ import annotations

import asyncio
import functools
import re
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import unquote_plus

from attrs import define

from km_core.errors import ControlUnavailableError, KmError
from km_core.secrets import credential_value

if TYPE_CHECKING:
    from km_core.types import InjectionRule

CONFIRM_S = 1.0
"""How long a value is used before the control plane is asked whether it is still the one."""
FRESH_S = 60.0
"""How long a value is used while the control plane does not answer, as long as a lease."""

_CREDENTIAL_FIELD = re.compile(
    r"authori[sz]ation|authenticat|cookie|token|secret|passw|credential|signature"
    r"|(?:^|-)auth(?:$|-)|(?:^|-)(?:api|access|auth|client|private|license|subscription|master|admin)-?key(?:$|-)"
    r"|^key$|^apikey|^x-goog-(?:user-project|iam)|^x-forwarded-client-cert$"
)
"""Names of fields that carry a credential: those that vendors' references give, and their like."""
_CREDENTIAL_MEMBER = re.compile(
    r"(?:x-)?(?:(?:amz|goog|ms)-)?(?:(?:api|access|account|admin|app|auth|bearer|client|id|job|oauth2?|personal"
    r"|private|refresh|secret|security|service|session|subscription|user)-?)*"
    r"(?:key|token|secret|password|passwd|auth|authorization|signature|credential|sig)"
)
"""Names of query members; not ``page_token`` and its like, which say where a list goes on."""
_KEY_IN_VALUE = re.compile(r"key|token|bearer|auth|secret|passw|credential")
_ODD = re.compile(r"[^a-z0-9]")
_DOUBT_INTERVAL_S = 1.0


class Control(Protocol):
    """The sandbox's connection to the control plane."""

    async def call(self, op: str, /, **args: Any) -> Any:
        """Carry out an operation; raises `KmError`."""


@define(repr=False)
class _Held:
    """A value, the stamp that came with it, and until when it is used unasked and at all."""

    value: str
    stamp: str
    confirmed_until: float
    until: float


class SecretCache:
    """
    Secrets by name, confirmed every `CONFIRM_S`, so that a rotation is in effect at once.

    Args:
        control: where they come from.
    """

    def __init__(self, control: Control) -> None:
        self._control = control
        self._held: dict[str, _Held] = {}
        self._doubted: dict[str, float] = {}
        self._lock = asyncio.Lock()

    def __repr__(self) -> str:
        return f"SecretCache({len(self._held)} names)"

    async def value(self, name: str, host: str = "") -> str | None:
        """
        Return the value, or None when there is none; raises `KmError` when nobody can say.

        Args:
            name: of the secret.
            host: whose request it is for; the control plane keeps where a secret was used last.
        """
        now = asyncio.get_running_loop().time()
        held = self._held.get(name)
        if held is not None and held.confirmed_until > now:
            return held.value
        async with self._lock:
            held = self._held.get(name)
            if held is not None and held.confirmed_until > now:
                return held.value
            try:
                return await self._asked(name, host, held, now)
            except ControlUnavailableError:
                # Nobody answers.  An answer that there is no value now, or that the place which keeps it
                # is broken, ends the use of the old one.
                if held is not None and held.until > now:
                    return held.value
                raise
            except KmError:
                self._held.pop(name, None)
                raise

    async def _asked(self, name: str, host: str, held: _Held | None, now: float) -> str | None:
        answer = await self._control.call("secret.stamp", name=name, host=host)
        stamp = answer.get("stamp") if isinstance(answer, dict) else None
        if not isinstance(stamp, str) or not stamp:
            # A missing secret is asked for each time: the operator is about to set it.
            self._held.pop(name, None)
            return None
        if held is not None and held.stamp == stamp:
            held.confirmed_until, held.until = now + CONFIRM_S, now + FRESH_S
            return held.value
        # The stamp is asked for before the value: a change in between is seen a moment later.
        self._held.pop(name, None)
        answer = await self._control.call("secret.for", names=[name])
        value = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(value, str) or not value:
            return None
        self._held[name] = _Held(value, stamp, now + CONFIRM_S, now + FRESH_S)
        return value

    def doubt(self, name: str) -> None:
        """Forget a value that a host refused, at most once a second."""
        now = asyncio.get_running_loop().time()
        if now - self._doubted.get(name, -_DOUBT_INTERVAL_S) >= _DOUBT_INTERVAL_S:
            self._doubted[name] = now
            self._held.pop(name, None)


def strip_fields(fields: list[tuple[bytes, bytes]], rule: InjectionRule | None) -> list[tuple[bytes, bytes]]:
    """
    Return *fields* without any credential of the client's.

    ``X_Api_Key`` and ``X.Api.Key`` count as ``x-api-key``: servers that hand fields on as variables cannot
    tell them apart.
    """
    own = frozenset() if rule is None else frozenset(name.lower() for name in (*rule.strip, rule.header))
    return [
        (name, value)
        for name, value in fields
        if not _is_credential(name, own) and not _is_subprotocol_with_key(name, value)
    ]


def _is_subprotocol_with_key(name: bytes, value: bytes) -> bool:
    """Say whether a WebSocket's subprotocols carry a key, as browsers send one (``openai-insecure-api-key.…``)."""
    plain = _ODD.sub("-", name.decode("latin-1").lower())
    return (
        plain == "sec-websocket-protocol"
        and _KEY_IN_VALUE.search(value.decode("latin-1").lower()) is not None
    )


@functools.lru_cache(maxsize=4096)
def _is_credential(name: bytes, own: frozenset[str]) -> bool:
    plain = _ODD.sub("-", name.decode("latin-1").lower())
    return plain in own or _CREDENTIAL_FIELD.search(plain) is not None


def strip_query(target: str) -> str:
    """Return a request target without query members that carry credentials."""
    path, mark, query = target.partition("?")
    if not mark:
        return target
    kept = [
        member
        for member in query.split("&")
        # Some servers end a member at a semicolon too.
        if not any(_is_credential_member(part.partition("=")[0]) for part in member.split(";"))
    ]
    return f"{path}?{'&'.join(kept)}" if kept else path


def _is_credential_member(raw: str) -> bool:
    name = unquote_plus(raw).partition("[")[0].strip().lower()
    return _CREDENTIAL_MEMBER.fullmatch(_ODD.sub("-", name)) is not None


def injected(rule: InjectionRule, secret: str) -> tuple[bytes, bytes]:
    """
    Return the field that carries the credential.

    Raises:
        ValueError: the secret cannot stand in a field; the text does not show it.
    """
    try:
        value = credential_value(rule.template, secret)
    except ValueError as error:
        raise ValueError(f"the secret {rule.secret} cannot be sent: {error}") from None
    return rule.header.encode("ascii"), value.encode("ascii")
