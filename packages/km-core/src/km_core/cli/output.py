"""How commands speak: data on stdout, everything else on stderr, colours only on a terminal."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

import click
from attrs import define, field

from km_core.errors import NotConfirmedError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from km_core.errors import KmError
    from km_core.types import Problem

_COLOURS = {
    "running": "green",
    "paused": "magenta",
    "stopped": "magenta",
    "creating": "yellow",
    "destroying": "yellow",
    "frozen": "red",
    "failed": "red",
    "allow": "green",
    "deny": "red",
    "enforced": "green",
    "missing": "yellow",
    "refused": "red",
    "nobody": "red",
    "loosened": "red",
    "tightened": "green",
}


def use_colour(stream: TextIO) -> bool:
    """Say whether *stream* may be coloured: a terminal, ``NO_COLOR`` unset, ``TERM`` not dumb."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def paint(text: str, kind: str, stream: TextIO | None = None) -> str:
    """Return *text* in the colour of *kind* (a state or a verdict) where the stream may be coloured."""
    colour = _COLOURS.get(kind)
    if colour is None or not use_colour(stream or sys.stdout):
        return text
    return click.style(text, fg=colour)


def emit_json(data: Any) -> None:
    """Print one JSON document on stdout."""
    click.echo(json.dumps(data, indent=2, sort_keys=False))


def printable(text: str) -> str:
    """
    Return *text* with control characters escaped.

    What a sandbox wrote must not reach the operator's terminal as commands to it (ECMA-48 sequences,
    bidirectional overrides).
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\t" else c.encode("unicode_escape").decode() for c in text)


def note(text: str) -> None:
    """Print a remark on stderr."""
    click.echo(text, err=True)


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print an aligned table; the last column is not padded."""
    lines = [list(headers), *[[str(cell) for cell in row] for row in rows]]
    widths = [max(len(click.unstyle(line[i])) for line in lines) for i in range(len(headers))]
    for line in lines:
        cells = [
            cell + " " * (width - len(click.unstyle(cell)))
            for cell, width in zip(line[:-1], widths, strict=False)
        ]
        click.echo("  ".join([*cells, line[-1]]).rstrip())


def show_error(error: KmError, *, as_json: bool = False) -> None:
    """Print an error once: where, what, why, and below it the hint with the error's code."""
    problems: Sequence[Problem] = getattr(error, "problems", ())
    if as_json:
        data: dict[str, Any] = {"error": error.to_dict()}
        if problems:
            data["problems"] = [problem.to_dict() for problem in problems]
        emit_json(data)
    for problem in problems:
        show_problem(problem)
    note(printable(f"error: {error}" if not problems else f"error: {error.what}"))
    if error.hint:
        note(printable(f"  hint: {error.hint}   [{error.code}]"))


def show_problem(problem: Problem) -> None:
    """Print ``FILE:LINE:COL: error: PATH: MESSAGE`` and the hint on stderr."""
    note(printable(str(problem)))
    if problem.hint:
        note(printable(f"  hint: {problem.hint}"))


def confirm(question: str, *, yes: bool) -> None:
    """
    Ask before something that cannot be undone.

    Raises:
        NotConfirmedError: the answer was not yes, or nobody can be asked and ``--yes`` is not given.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotConfirmedError("not confirmed", hint="there is no terminal to ask on: add --yes")
    click.echo(f"{question} [y/N] ", nl=False, err=True)
    if sys.stdin.readline().strip() not in {"y", "Y", "yes", "YES", "Yes"}:
        raise NotConfirmedError("Aborted.")


@define
class Progress:
    """Step lines of a long operation on stderr: ``✓ title (0.1 s)``."""

    quiet: bool = False
    _started: float = field(factory=time.monotonic)

    def __call__(self, title: str, state: str) -> None:
        """Take a step's beginning (``begin``) or end (``done``)."""
        if self.quiet:
            return
        if state == "begin":
            self._started = time.monotonic()
            return
        elapsed = time.monotonic() - self._started
        tick = click.style("✓", fg="green") if use_colour(sys.stderr) else "✓"
        note(f"  {tick} {title} ({elapsed:.2f} s)")


def dollars(nusd: int | None, digits: int = 4) -> str:
    """Return nano-dollars as ``$0.1234``; None is ``-``."""
    if nusd is None:
        return "-"
    from km_core.ledger.money import format_usd

    return format_usd(nusd, places=digits)


def remaining(until: float, now: float | None = None) -> str:
    """Return the time left as ``1h23m``, ``5m09s``, ``42s``, ``expired`` or ``-`` for never."""
    if not until:
        return "-"
    left = int(until - (time.time() if now is None else now))
    if left <= 0:
        return "expired"
    if left >= 86400:
        return f"{left // 86400}d{left % 86400 // 3600:02d}h"
    if left >= 3600:
        return f"{left // 3600}h{left % 3600 // 60:02d}m"
    if left >= 60:
        return f"{left // 60}m{left % 60:02d}s"
    return f"{left}s"


def iso(at: float) -> str | None:
    """Return RFC 3339 UTC of Unix seconds; None for 0."""
    if not at:
        return None
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
