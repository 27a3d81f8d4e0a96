"""
The one shape of audit records, as data: ``docs/reference/audit.md`` shows it, tests hold real records to it.

A record with ``verdict`` is a decision.  The gate's other records are what a connection came to; kmd's
carry what their kind says beside the fields that every record has.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Callable

LAYERS = ("dns", "tcp", "connect", "tls", "http", "git", "aws", "budget", "lease")
"""Where a decision is made, in the order in which a request meets them."""

DECISIONS = (
    "dns_query",
    "connect",
    "http_request",
    "http_malformed",
    "git_request",
    "inside_request",
    "aws_request",
    "ai_call",
)
"""Kinds of decisions."""

GATE_EVENTS = (
    "gate_started",
    "gate_stopped",
    "policy_changed",
    "tls_handshake_failed",
    "dial_failed",
    "tunnel_closed",
    "http_closed",
    "credential_withheld",
    "name_budget_warning",
    "name_budget_exhausted",
)
"""Kinds of the gate's records that are no decisions."""

EVERY, DECISION, GATE = "every record", "decisions", "the gate's other records"


@frozen
class Field:
    """
    One field of a record.

    Attributes:
        name: as in the record.
        where: `EVERY`, `DECISION` or `GATE`.
        required: whether every record of that sort has it.
        type: for the page.
        meaning: one clause for people.
        holds: says whether a value is of the type.
    """

    name: str
    where: str
    required: bool
    type: str
    meaning: str
    holds: Callable[[Any], bool]


def _text(value: Any) -> bool:
    return isinstance(value, str) and value != ""


def _whole(low: int, high: int = 2**63) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def _like(pattern: str) -> Callable[[Any], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _object(value: Any) -> bool:
    return isinstance(value, dict)


_HEX = _like("[0-9a-f]{64}")
_PORT = _whole(1, 65535)
_COUNT = _whole(0)
_WORD = _like("[a-z][a-z0-9_.-]{0,63}")

FIELDS: tuple[Field, ...] = (
    Field("seq", EVERY, True, "integer", "number in the chain, from 1", _whole(1)),
    Field(
        "time",
        EVERY,
        True,
        "text",
        "RFC 3339, UTC, microseconds",
        _like(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"),
    ),
    Field("sandbox", EVERY, True, "text", "whose record it is, or `host`", _text),
    Field("writer", EVERY, True, "text", "who wrote it: `gate`, `kmd`", _WORD),
    Field("kind", EVERY, True, "text", "what happened", _WORD),
    Field("prev", EVERY, True, "hex", "`hash` of the record before", _HEX),
    Field("hash", EVERY, True, "hex", "SHA-256 over `prev` and this record", _HEX),
    Field("recovered", EVERY, False, "object", "the torn line that a crash left before this record", _object),
    Field(
        "lost",
        EVERY,
        False,
        "integer",
        "records that could not be written before this one; each was refused instead",
        _whole(1),
    ),
    Field(
        "layer",
        DECISION,
        True,
        "text",
        "where it was decided: " + ", ".join(f"`{layer}`" for layer in LAYERS),
        lambda value: value in LAYERS,
    ),
    Field("verdict", DECISION, True, "text", "`allow` or `deny`", lambda value: value in {"allow", "deny"}),
    Field("rule", DECISION, True, "text", "the profile's entry, the grant or the built-in rule", _text),
    Field("reason", DECISION, True, "text", "one sentence for people", _text),
    Field(
        "count",
        DECISION,
        True,
        "integer",
        "equal decisions that the record stands for; sums are exact, nothing is sampled",
        _whole(1),
    ),
    Field("name", DECISION, False, "text", "host name, canonical where it has a canonical form", _text),
    Field("address", DECISION, False, "text", "address, where no name was asked for", _text),
    Field("port", DECISION, False, "integer", "TCP port", _PORT),
    Field(
        "detail",
        DECISION,
        False,
        "text",
        "query type; method, and path of a refusal; repository; model",
        _text,
    ),
    Field(
        "connection",
        DECISION,
        False,
        "integer",
        "number of the connection since the gate's start: joins decisions and the end of a tunnel; the "
        "first of gathered decisions has it",
        _whole(1),
    ),
    Field("layer", GATE, False, "text", "as above", lambda value: value in LAYERS),
    Field("name", GATE, False, "text", "as above", _text),
    Field(
        "address",
        GATE,
        False,
        "text",
        "`address:port` that was dialled, with the proxy it went through",
        _text,
    ),
    Field("port", GATE, False, "integer", "TCP port that the client asked for", _PORT),
    Field("sni", GATE, False, "text", "server name in TLS", _text),
    Field(
        "count",
        GATE,
        False,
        "integer",
        "connections that the record stands for, beyond the rate; its figures are their sums",
        _whole(1),
    ),
    Field("requests", GATE, False, "integer", "allowed requests of a connection to one host", _whole(1)),
    Field("bytes_up", GATE, False, "integer", "bytes from the sandbox, TLS taken off where it is", _COUNT),
    Field("bytes_down", GATE, False, "integer", "bytes to the sandbox, likewise", _COUNT),
    Field("duration_ms", GATE, False, "integer", "how long it was open", _COUNT),
    Field("connection", GATE, False, "integer", "as above", _whole(1)),
    Field("error", GATE, False, "text", "how it ended, `cut` when the gate ended it", _text),
    Field("pid", GATE, False, "integer", "process id of the gate", _whole(1)),
    Field(
        "redirect",
        GATE,
        False,
        "boolean",
        "whether destinations come from the NAT table",
        lambda v: v in {True, False},
    ),
    Field("policy_before", GATE, False, "hex", "version of the policy that counted", _HEX),
    Field("policy_after", GATE, False, "hex", "version of the policy that counts from here", _HEX),
    Field("suffix", GATE, False, "text", "suffix whose names carry much, `*` for every name", _text),
    Field("used_bytes", GATE, False, "integer", "bytes that new names below it carried", _COUNT),
    Field("limit_bytes", GATE, False, "integer", "how many they may", _COUNT),
    Field("cut", GATE, False, "integer", "connections that the new policy ended", _COUNT),
)


def defects(record: dict[str, Any]) -> list[str]:
    """
    Return what is not as the schema says; empty for a good record.

    Args:
        record: of any writer, parsed.  Fields beyond those of every record are free where the writer is
            not the gate.
    """
    found = _check(record, EVERY)
    extra = set(record) - {field.name for field in FIELDS if field.where == EVERY}
    decision = "verdict" in record
    if not decision and record.get("writer") != "gate":
        return found
    sort = DECISION if decision else GATE
    found += _check(record, sort)
    known = {field.name for field in FIELDS if field.where == sort}
    found += [f"{name}: no field of {sort}" for name in sorted(extra - known)]
    kinds = DECISIONS if decision else GATE_EVENTS
    if record.get("kind") not in kinds:
        found.append(f"kind: {record.get('kind')!r} is none of {sort}")
    return found


def _check(record: dict[str, Any], sort: str) -> list[str]:
    found = []
    for field in FIELDS:
        if field.where == sort:
            if field.name not in record:
                found += [f"{field.name}: missing"] if field.required else []
            elif not field.holds(record[field.name]):
                found.append(f"{field.name}: {record[field.name]!r} is no {field.type} as described")
    return found
