"""Token figures out of foreign JSON: what is missing or absurd is zero, never a negative charge."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MAX_FIGURE = 10**9
"""Largest believable figure (spec/metering-budget.md section 2)."""

IMPLAUSIBLE = "usage_implausible"
"""Note on a usage in which an absurd figure was taken for zero."""

DAMAGED = "usage_undecodable"
"""Note on a usage whose answer could not be read to the end."""

_REST_OF_LITERAL = rb'([^"\\]*+(?:\\.[^"\\]*+)*+)"'
_NO_FIGURES: dict[str, Any] = {}


class Notes:
    """Notes on one usage, each once, in order."""

    def __init__(self) -> None:
        self._notes: dict[str, None] = {}

    def add(self, note: str) -> None:
        """Add a note."""
        self._notes[note] = None

    def all(self) -> tuple[str, ...]:
        """Return the notes."""
        return tuple(self._notes)


def mapping(value: Any) -> Mapping[str, Any]:
    """Return *value* if it is a JSON object, else an empty one."""
    return value if isinstance(value, dict) else _NO_FIGURES


def text(value: Any) -> str:
    """Return *value* if it is a string of sane length, else an empty one."""
    return value if isinstance(value, str) and len(value) <= 512 else ""


def not_billed(status: int) -> bool:
    """Say whether a status means that nothing was generated, so that a missing usage is no loss."""
    return not 200 <= status < 300


def figure(value: Any, notes: Notes) -> int:
    """Return a count of tokens; missing, negative and non-integral is 0, absurd is 0 with a note."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
        return 0
    if value > MAX_FIGURE:
        notes.add(IMPLAUSIBLE)
        return 0
    return value


def loads(data: bytes) -> Any:
    """Decode a provider's JSON; None when it is not JSON."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def has_usage(block: bytes) -> bool:
    """Say whether a block of events may hold a ``usage`` member that is more than ``null``."""
    left = block.count(b'"usage"')
    if left:
        left -= block.count(b'"usage":null')
    if left:
        left -= block.count(b'"usage": null')
    return left != 0


def estimated_tokens(size: int) -> int:
    """
    Return the tokens that *size* bytes of streamed text are taken for when no usage covers them.

    The ceiling of size / 3.5 (spec/metering-budget.md section 3).
    """
    return -(-size * 2 // 7)


def literals(block: bytes, key: bytes) -> list[bytes]:
    """
    Return the insides of all string literals that are members named *key*.

    The spacing of the first form found counts for the whole block: a server has one.
    Inside a string every quote has a backslash before it, so what a model writes cannot pass for a
    member.
    """
    for start in (b'"' + key + b'":"', b'"' + key + b'": "'):
        if start in block:
            cut = [piece[: piece.find(b'"')] for piece in block.split(start)[1:]]
            if any(piece.endswith(b"\\") for piece in cut):
                cut = [match[1] for match in re.finditer(re.escape(start) + _REST_OF_LITERAL, block)]
            return cut
    return []


def literal_bytes(literals: list[bytes]) -> int:
    """
    Return how many UTF-8 bytes the insides of JSON string literals stand for.

    Args:
        literals: each what stands between two quotes, with its escapes.
    """
    joined = b"".join(literals)
    if b"\\" not in joined:
        return len(joined)
    try:
        decoded = json.loads(b'"' + joined + b'"')
    except ValueError:
        return len(joined)
    return len(str(decoded).encode("utf-8", "surrogatepass"))
