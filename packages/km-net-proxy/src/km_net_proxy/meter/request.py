"""
Reading a request's JSON body as strictly as the strictest parser, and changing it at a few places.

What two parsers could read differently cannot be bounded: duplicate keys, keys that differ in case
only, text that is not UTF-8, numbers that are not JSON.  Changes are splices into the client's own
text, so that everything else reaches the provider byte for byte.
"""

from __future__ import annotations

import json
import re
from typing import Any

from km_net_proxy.meter.whole import MAX_BODY

MAX_CONTAINERS = 400_000
"""Most opening brackets in a body, those in texts counted: small objects cost far more than their bytes."""

MAX_VALUES = 2_000_000
"""Most commas in a body, those in texts counted."""

_SPACE = re.compile(r"[ \t\n\r]*")
_MAX_MODEL = 256
_DECODER = json.JSONDecoder()


class UnboundedError(Exception):
    """The worst case of a request cannot be told; the text says why, for people."""


def parse_object(body: bytes, keys: set[str] | None = None) -> dict[str, Any]:
    """
    Return a request body's JSON object.

    Args:
        body: the content-decoded body.
        keys: takes the names of all members at every depth.

    Raises:
        UnboundedError: larger than `MAX_BODY`, made to be costly, not a JSON object, or ambiguous.
    """
    if len(body) > MAX_BODY:
        raise UnboundedError(f"the body is larger than {MAX_BODY // 2**20} MiB")
    if body.count(b"{") + body.count(b"[") > MAX_CONTAINERS or body.count(b",") > MAX_VALUES:
        raise UnboundedError("the body has too many members")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            raise UnboundedError(f"ambiguous body: the member {_twice(pairs)[:40]!r} appears twice")
        if keys is not None:
            keys.update(result)
        return result

    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=unique, parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise UnboundedError("the body is not UTF-8") from error
    except RecursionError as error:
        raise UnboundedError("the body is nested too deeply") from error
    except ValueError as error:
        raise UnboundedError("the body is not JSON") from error
    if not isinstance(value, dict):
        raise UnboundedError("the body is not a JSON object")
    return value


def words(text: str) -> frozenset[str]:
    """Return the words of *text*: the way member and type names are listed."""
    return frozenset(text.split())


def check_keys(data: dict[str, Any], known: frozenset[str]) -> None:
    """
    Refuse top-level members that are not known: any of them may bill.

    Raises:
        UnboundedError: an unknown member, or one that a lenient parser takes for a known one.
    """
    for key in data:
        if key not in known:
            folded = key.strip().lower()
            if folded in known:
                raise UnboundedError(f"ambiguous body: {key[:40]!r} may be read as {folded!r}")
            raise UnboundedError(
                f"the member {key[:40]!r} is not known, so what it costs is not known either"
            )


def model_name(data: dict[str, Any]) -> str:
    """
    Return the model a request names, empty when it names none.

    Raises:
        UnboundedError: it is not a text of sane length.
    """
    value = data.get("model")
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > _MAX_MODEL:
        raise UnboundedError("the body names no model that can be looked up")
    return value if value.strip() else ""


def whole(data: dict[str, Any], key: str) -> int | None:
    """
    Return a member that must be a whole number, None when it is absent or null.

    Raises:
        UnboundedError: anything else, negative numbers too.
    """
    value = data.get(key)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 10**9:
        raise UnboundedError(f"{key} is not a whole number")
    return value


def flag(data: dict[str, Any], key: str) -> bool:
    """
    Return a member that must be true or false, absent and null are false.

    Raises:
        UnboundedError: anything else: servers differ on what it means.
    """
    value = data.get(key)
    if value is None:
        return False
    if not isinstance(value, bool):
        raise UnboundedError(f"{key} is neither true nor false")
    return value


def splice(body: bytes, changes: dict[str, Any]) -> bytes:
    """
    Return *body* with top-level members set to the values of *changes*, the rest untouched.

    Args:
        body: a JSON object that `parse_object` accepted.
        changes: member to new value; a member that is not there is added in front.
    """
    source = body.decode("utf-8")
    spans = _spans(source)
    edits = [
        (*spans[key], json.dumps(value, separators=(",", ":")))
        for key, value in changes.items()
        if key in spans
    ]
    added = {key: value for key, value in changes.items() if key not in spans}
    for start, end, replacement in sorted(edits, reverse=True):
        source = source[:start] + replacement + source[end:]
    if added:
        at = source.index("{") + 1
        inner = json.dumps(added, separators=(",", ":"))[1:-1]
        source = source[:at] + inner + ("," if spans else "") + source[at:]
    return source.encode("utf-8")


def _twice(pairs: list[tuple[str, Any]]) -> str:
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return key
        seen.add(key)
    return ""


def _no_constant(name: str) -> Any:
    raise UnboundedError(f"the body is not JSON: {name}")


def _spans(source: str) -> dict[str, tuple[int, int]]:
    """Return where the value of each top-level member begins and ends."""
    spans: dict[str, tuple[int, int]] = {}
    at = _skip(source, source.index("{") + 1)
    while source[at] != "}":
        key, at = _DECODER.raw_decode(source, at)
        start = _skip(source, _skip(source, at) + 1)
        _, end = _DECODER.raw_decode(source, start)
        spans[key] = (start, end)
        at = _skip(source, end)
        if source[at] == ",":
            at = _skip(source, at + 1)
    return spans


def _skip(source: str, at: int) -> int:
    match = _SPACE.match(source, at)
    return match.end() if match else at
