"""``km logs``, ``km audit`` and ``km doctor``."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any

import click

from km_core.audit.read import Chains, open_regular
from km_core.cli.output import emit_json, iso, note, paint, printable, table
from km_core.errors import KmError, NotFoundError, UsageError
from km_core.types import is_sandbox_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from km_core.audit import Report
    from km_core.config import Config
    from km_core.lifecycle.session import Session

_POLL_S = 0.3
_MAX_LINE = 1024 * 1024
"""Longest line of a log that is shown in one piece, in bytes."""
_STREAMS = {"init": "init.log", "gate": "gate.log", "pod": "pod.log"}


@click.command(epilog="Example: km logs dev1 --denied")
@click.argument("ref")
@click.option("--denied", is_flag=True, help="Only what was refused.")
@click.option(
    "--stream",
    type=click.Choice(["audit", *_STREAMS]),
    default="audit",
    show_default=True,
    help="The record of decisions, or the log of a process.",
)
@click.option("--follow", "-f", is_flag=True, help="Go on as records come; Ctrl-C ends with 0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def logs(ref: str, denied: bool, stream: str, follow: bool, as_json: bool) -> None:
    """Show what sandbox REF did: every decision with its rule, or a process's own log."""
    if denied and stream != "audit":
        raise UsageError("only the audit stream knows what was denied", hint="leave --stream away")
    config, sandbox_id = _find(ref)
    try:
        if stream != "audit":
            for line in _lines(config.sandbox_dir(sandbox_id) / "logs" / _STREAMS[stream], follow=follow):
                if as_json:
                    click.echo(_as_object(line, stream))
                else:
                    # What came out of a sandbox is data, not commands to this terminal.
                    click.echo(printable(line) if sys.stdout.isatty() else line)
            return
        for record in _records(config.audit_dir(sandbox_id), follow=follow):
            if denied and record.get("verdict") != "deny":
                continue
            _print(record, as_json=as_json)
    except KeyboardInterrupt:
        return


@click.group()
def audit() -> None:
    """Show and verify the hash-chained record of every decision."""


@audit.command(epilog="Example: km audit show dev1 --json")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(ref: str, as_json: bool) -> None:
    """Show every record of sandbox REF, also of a destroyed one; `host` is what belongs to none."""
    config, sandbox_id = _find(ref)
    records = _records(config.audit_dir(sandbox_id), follow=False)
    if as_json:
        # One document, written as it is read: evidence may be larger than memory.
        before = "["
        for record in records:
            click.echo(f"{before}\n  {json.dumps(record)}", nl=False)
            before = ","
        click.echo("[]" if before == "[" else "\n]")
        return
    for record in records:
        click.echo(_readable(record))


@audit.command(epilog="Example: km audit tail dev1 --follow")
@click.argument("ref")
@click.option("--lines", "-n", type=click.IntRange(0), default=20, show_default=True, help="How many.")
@click.option("--follow", "-f", is_flag=True, help="Go on as records come; Ctrl-C ends with 0.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def tail(ref: str, lines: int, follow: bool, as_json: bool) -> None:
    """Show the last records of sandbox REF, also of a destroyed one; `host` is what belongs to none."""
    config, sandbox_id = _find(ref)
    chains = Chains(config.audit_dir(sandbox_id))
    try:
        for record in deque(chains.fresh(), maxlen=lines):
            _print(record, as_json=as_json)
        while follow:
            time.sleep(_POLL_S)
            for record in chains.fresh():
                _print(record, as_json=as_json)
    except KeyboardInterrupt:
        return


def _print(record: dict[str, Any], *, as_json: bool) -> None:
    click.echo(json.dumps(record) if as_json else _readable(record))


@audit.command(epilog="Example: km audit verify dev1")
@click.argument("ref")
@click.option("--offline", is_flag=True, help="Compare with the signed anchor file only; start nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def verify(ctx: click.Context, ref: str, offline: bool, as_json: bool) -> None:
    """
    Check the chains and the signed checkpoints of sandbox REF; exit code 1 when one is broken.

    REF is also the id of a destroyed sandbox, or `host` for what belongs to none.
    """
    from km_core.lifecycle.evidence import verify_evidence
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        sandbox_id = _id_of(session, ref, offline=offline)
        report = verify_evidence(session, sandbox_id, offline=offline)
    finally:
        session.close()
    if as_json:
        emit_json(report.to_dict())
    else:
        _report(report)
    if not report.ok:
        ctx.exit(1)


def _report(report: Report) -> None:
    for writer, count in sorted(report.records.items()):
        unsigned = report.unsigned.get(writer, 0)
        tail = f", {unsigned} after the last checkpoint" if unsigned else ""
        click.echo(f"{writer}: {count} records, whole and linked{tail}")
    for finding in report.findings:
        click.echo(f"{finding.file}: record {finding.index}: {finding.kind}: {finding.detail}")
    verdict = "verified" if report.ok else "BROKEN"
    anchored = f"the control plane remembers {report.anchored}" if report.anchored else "no anchor to compare"
    click.echo(f"audit chain {verdict} ({report.checkpoints} signed checkpoints, {anchored})")


@click.command(epilog="Example: km doctor --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Check what this host can do; exit code 1 when something needed is missing."""
    from km_core.plugins import load_plugins

    results = []
    for name, check in load_plugins().doctor_checks().items():
        try:
            found = check.run()
            results.append((name, found.status, found.message, found.remediation))
        except KmError as error:
            results.append((name, "ERROR", str(error), error.hint))
        except Exception as error:  # noqa: BLE001 - a plugin's check may raise anything; the others go on
            results.append(
                (name, "ERROR", f"the check failed: {type(error).__name__}", "reinstall its plugin")
            )
    if as_json:
        emit_json([{"name": n, "status": s, "message": m, "remediation": r} for n, s, m, r in results])
    else:
        signs = {"OK": "✓", "WARN": "⚠", "ERROR": "✗", "SKIPPED": "-"}
        if results:
            table(
                ["", "CHECK", "RESULT"],
                [[signs.get(s, "?"), n, m + (f" -> {r}" if r else "")] for n, s, m, r in results],
            )
        if results:
            note(f"{sum(s == 'OK' for _, s, _, _ in results)} checks passed")
        else:
            note(
                "Nothing to check: no installed plugin has health checks; install a substrate (km-substrate-local)"
            )
    if any(status == "ERROR" for _, status, _, _ in results):
        ctx.exit(1)


def _find(ref: str) -> tuple[Config, str]:
    """Resolve a reference for reading; see `_id_of`."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        return session.config, _id_of(session, ref)
    finally:
        session.close()


def _id_of(session: Session, ref: str, *, offline: bool = False) -> str:
    """Resolve a reference; an id with evidence but no record (a destroyed sandbox) counts, and ``host``."""
    from km_core.lifecycle.evidence import HOST, has_evidence

    if ref == HOST or (is_sandbox_id(ref) and has_evidence(session, ref, offline=offline)):
        return ref
    if offline:
        raise NotFoundError(f"there is no evidence of {ref!r}", hint="without kmd only a full id is known")
    return session.record(ref).id


def _records(directory: Path, *, follow: bool) -> Iterator[dict[str, Any]]:
    """Yield the records of every writer's chain by time; with *follow*, go on."""
    chains = Chains(directory)
    yield from chains.fresh()
    while follow:
        time.sleep(_POLL_S)
        yield from chains.fresh()


def _lines(path: Path, *, follow: bool) -> Iterator[str]:
    """Yield a log's lines, the older half that was set aside first (`km_host.log_bounds`); with *follow*, go on."""
    source = open_regular(path)
    if source is None:
        raise NotFoundError("there is no such log", where=path.name)
    with source:
        older = open_regular(path.with_name(f"{path.name}.1"))
        if older is not None:
            with older:
                yield from map(_line, iter(lambda: older.readline(_MAX_LINE), b""))
        rest = b""
        while True:
            part = source.readline(_MAX_LINE)
            if part.endswith(b"\n") or len(part) == _MAX_LINE:
                yield _line(rest + part)
                rest = b""
            elif part:
                rest += part
            elif not follow:
                if rest:
                    yield _line(rest)
                return
            else:
                if os.fstat(source.fileno()).st_size < source.tell():
                    # It was cut where it is; what is in it now is new.
                    source.seek(0)
                    rest = b""
                time.sleep(_POLL_S)


def _line(line: bytes) -> str:
    return line.rstrip(b"\n").decode("utf-8", "replace")


def _as_object(line: str, stream: str) -> str:
    """Return a log line as one JSON object: as it is when it is one."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    return json.dumps(found if isinstance(found, dict) else {"stream": stream, "line": line})


_TOLD = ("cause", "entry", "cut", "requests", "bytes_up", "bytes_down", "duration_ms")
"""What records that are no decisions say, in this order."""


def _readable(record: dict[str, Any]) -> str:
    verdict = str(record.get("verdict") or "")

    def shown(key: str) -> str:
        return printable(str(record.get(key) or ""))

    words = [shown("time"), f"{shown('writer'):<5}"]
    if verdict:
        words.append(paint(f"{printable(verdict):<5}", verdict))
    # What is no decision says what it is; "http" alone would not.
    words.append((verdict and shown("layer")) or shown("kind"))
    port = f":{shown('port')}" if record.get("port") else ""
    words.append(f"{shown('name') or shown('address')}{port}")
    if record.get("rule"):
        words.append(f"[{shown('rule')}]")
    words.append(shown("reason"))
    words += [f"{key}={printable(str(record[key]))}" for key in _TOLD if record.get(key) is not None]
    expires = record.get("expires_at")
    if isinstance(expires, int | float):
        words.append(f"until={iso(expires)}")
    count = record.get("count")
    if isinstance(count, int) and count > 1:
        words.append(f"(x{count})")
    return " ".join(word for word in words if word)
