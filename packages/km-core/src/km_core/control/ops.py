"""
Operations of a control socket: a function and a check for each of its arguments.

An operation takes exactly the arguments its table names.  A missing, an unknown or a wrongly typed one
is a `UsageError` and nothing is done: a caller who adds another sandbox's id to an operation that acts
on its own is refused, not ignored.
"""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

from attrs import field, frozen

from km_core.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Check = Callable[[str, Any], Any]

MAX_TEXT = 4096
"""Longest text argument in characters unless an operation says otherwise."""


@frozen
class Peer:
    """Who is at the other end of a connection, as the kernel says (``SO_PEERCRED``, unix(7))."""

    pid: int
    uid: int
    gid: int


@frozen
class Op:
    """
    One operation.

    Attributes:
        run: called with the `Peer` and the checked arguments by keyword; returns JSON data, or an
            awaitable of it.
        args: check by argument name.
        optional: names that may be left out; *run* then sees its own default.
    """

    run: Callable[..., Any]
    args: Mapping[str, Check] = field(factory=dict)
    optional: frozenset[str] = frozenset()

    def checked(self, name: str, data: Any) -> dict[str, Any]:
        """
        Return *data* as checked keyword arguments of the operation called *name*.

        Raises:
            UsageError: an argument is missing, unknown or of the wrong type.
        """
        if not isinstance(data, dict):
            raise UsageError("the arguments must be an object", where=name)
        for key in data:
            if key not in self.args:
                raise UsageError(f"unknown argument {str(key)[:64]!r}", where=name)
        result = {}
        for key, check in self.args.items():
            if key in data:
                result[key] = check(f"{name}: {key}", data[key])
            elif key not in self.optional:
                raise UsageError(f"argument {key!r} is missing", where=name)
        return result


def text(*, longest: int = MAX_TEXT, pattern: str = "", empty: bool = False) -> Check:
    """Return a check for a string; *pattern* must match the whole of it."""
    compiled = re.compile(pattern) if pattern else None

    def check(where: str, value: Any) -> str:
        if not isinstance(value, str) or len(value) > longest or not (value or empty):
            raise UsageError(f"must be text of at most {longest} characters", where=where)
        if compiled is not None and not compiled.fullmatch(value):
            raise UsageError(f"must match {compiled.pattern}", where=where)
        return value

    return check


def integer(low: int, high: int) -> Check:
    """Return a check for a whole number from *low* to *high*; a bool is none."""

    def check(where: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise UsageError(f"must be a whole number from {low} to {high}", where=where)
        return value

    return check


def number(low: float, high: float) -> Check:
    """Return a check for a finite number from *low* to *high*."""

    def check(where: str, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise UsageError("must be a number", where=where)
        if not math.isfinite(value) or not low <= value <= high:
            raise UsageError(f"must be a number from {low} to {high}", where=where)
        return float(value)

    return check


def boolean(where: str, value: Any) -> bool:
    """Check for true or false."""
    if not isinstance(value, bool):
        raise UsageError("must be true or false", where=where)
    return value


def mapping(where: str, value: Any) -> dict[str, Any]:
    """Check for an object; JSON makes its keys text."""
    if not isinstance(value, dict):
        raise UsageError("must be an object", where=where)
    return value


def listing(most: int) -> Check:
    """Return a check for a list of at most *most* items of any kind."""

    def check(where: str, value: Any) -> list[Any]:
        if not isinstance(value, list) or len(value) > most:
            raise UsageError(f"must be a list of at most {most} items", where=where)
        return value

    return check


def texts(*, longest: int = 256, most: int = 256) -> Check:
    """Return a check for a list of at most *most* strings."""
    one = text(longest=longest)

    def check(where: str, value: Any) -> list[str]:
        if not isinstance(value, list) or len(value) > most:
            raise UsageError(f"must be a list of at most {most} texts", where=where)
        return [one(where, item) for item in value]

    return check


def nullable(check: Check) -> Check:
    """Return *check*, with null allowed."""
    return lambda where, value: None if value is None else check(where, value)
