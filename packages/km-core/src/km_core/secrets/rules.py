"""
The operator's rules for credentials: ``credentials`` in ``config.yaml``.

A rule names a host, the secret that its requests get and the field that carries it.  It stands on the
operator's side only: a profile can neither name a secret for a host nor hold its value.
"""

from __future__ import annotations

import base64
import re
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.errors import ConfigError
from km_core.types.meter import InjectionRule

if TYPE_CHECKING:
    from collections.abc import Mapping

SECRET_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"  # noqa: S105 - the shape of names, not a secret

_HOST = re.compile(
    r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)+\Z"
)
_NAME = re.compile(SECRET_NAME + r"\Z")
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,63}\Z")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]{0,127}\Z")
_SLOT = re.compile(r"\{(?:secret|basic:([A-Za-z0-9._@-]{1,64}))\}")
_KEYS = frozenset({"host", "secret", "header", "template", "strip", "env"})
_NOT_A_CREDENTIAL = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"}
    | {"content-encoding", "content-type", "keep-alive", "proxy-authorization", "proxy-connection"}
)
"""Fields that frame a message or belong to one connection."""


@frozen
class CredentialRule:
    """
    One rule.

    Attributes:
        host: canonical exact name.
        secret: name of the secret in ``km secrets``.
        header: field that carries the credential.
        template: its value, with one ``{secret}``, or one ``{basic:USER}`` for HTTP Basic (RFC 7617).
        strip: further fields of the client that are removed.
        env: ``(variable, placeholder)`` pairs set inside, so that clients which insist on a key start.
    """

    host: str
    secret: str
    header: str = "authorization"
    template: str = "Bearer {secret}"
    strip: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()

    @property
    def injection(self) -> InjectionRule:
        """What the gate does on this host."""
        return InjectionRule(self.secret, self.strip, self.header, self.template, self.env)

    def to_data(self) -> dict[str, Any]:
        """Return plain JSON data, as `from_data` and the configuration take it."""
        return {
            "host": self.host,
            "secret": self.secret,
            "header": self.header,
            "template": self.template,
            "strip": list(self.strip),
            "env": dict(self.env),
        }

    @classmethod
    def from_data(cls, data: Any) -> CredentialRule:
        """
        Read one rule.

        Raises:
            ValueError: it is none; the text says what is wrong and holds no value of a secret.
        """
        if not isinstance(data, dict) or not {"host", "secret"} <= set(data) <= _KEYS:
            raise ValueError(
                "a rule is {host, secret, header, template, strip, env}; host and secret are needed"
            )
        name = _text(data, "host", "").lower().removesuffix(".")
        if not _HOST.match(name):
            raise ValueError("host: write one exact name, without wildcard, scheme and port")
        secret = _text(data, "secret", "")
        if not _NAME.match(secret):
            raise ValueError("secret: the name of a secret as in `km secrets list`")
        header = _text(data, "header", "authorization").lower()
        if not _FIELD.match(header) or header in _NOT_A_CREDENTIAL:
            raise ValueError("header: the name of a field that can carry a credential")
        template = _text(data, "template", "Bearer {secret}")
        if not template.isascii() or not template.isprintable() or len(_SLOT.findall(template)) != 1:
            raise ValueError("template: printable ASCII with exactly one {secret} or {basic:USER}")
        return cls(name, secret, header, template, _fields(data.get("strip")), _env(data.get("env")))


def credential_value(template: str, secret: str) -> str:
    """
    Return *template* with the secret filled in.

    Raises:
        ValueError: the result cannot stand in a field; the text does not show it.
    """
    secret = secret.strip()

    def fill(match: re.Match[str]) -> str:
        user = match[1]
        return secret if user is None else base64.b64encode(f"{user}:{secret}".encode()).decode("ascii")

    value = _SLOT.sub(fill, template, count=1)
    if not secret or not value.isascii() or not value.isprintable():
        raise ValueError("it holds characters that no header can carry")
    return value


def parse_rules(data: list[Any], where: str) -> tuple[CredentialRule, ...]:
    """
    Read the configuration's ``credentials``.

    Raises:
        ConfigError: a rule is none, or two name one host.
    """
    rules: dict[str, CredentialRule] = {}
    for number, item in enumerate(data):
        try:
            rule = CredentialRule.from_data(item)
        except ValueError as error:
            raise ConfigError(
                f"credentials[{number}] is not a rule",
                where=where,
                why=str(error),
                hint="write {host: api.example.com, secret: example-key}",
            ) from None
        if rule.host in rules:
            raise ConfigError(f"credentials: {rule.host} has two rules", where=where)
        rules[rule.host] = rule
    return tuple(rules.values())


def _text(data: Mapping[str, Any], key: str, default: str) -> str:
    value = data.get(key, default)
    if not isinstance(value, str):
        raise ValueError(f"{key}: a text is expected")  # noqa: TRY004 - callers catch one kind
    return value


def _fields(value: Any) -> tuple[str, ...]:
    fields = () if value is None else value
    if not isinstance(fields, list | tuple) or not all(
        isinstance(f, str) and _FIELD.match(f) for f in fields
    ):
        raise ValueError("strip: a list of names of fields")
    return tuple(str(name).lower() for name in fields)


def _env(value: Any) -> tuple[tuple[str, str], ...]:
    pairs = {} if value is None else dict(value) if isinstance(value, list | tuple) else value
    if not isinstance(pairs, dict):
        raise ValueError("env: variables and their placeholders")  # noqa: TRY004 - callers catch one kind
    for name, text in pairs.items():
        if not isinstance(name, str) or not _VARIABLE.match(name):
            raise ValueError("env: the name of a variable is capitals, digits and underscores")
        if not isinstance(text, str) or not text.isprintable():
            raise ValueError(f"env.{name}: a printable placeholder, never the secret")
    return tuple(sorted(pairs.items()))
