"""``km stop``, ``pause``, ``resume``, ``destroy`` and ``reconcile``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from km_core.cli.output import confirm, emit_json, note, show_error, table
from km_core.errors import KmError

if TYPE_CHECKING:
    from collections.abc import Callable

    from km_core.lifecycle.session import Session
    from km_core.types import SandboxRecord


def _act(
    ref: str, as_json: bool, action: Callable[[Session, SandboxRecord], SandboxRecord], done: str
) -> None:
    from km_core.cli.fleet import describe
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        record = action(session, session.record(ref))
        if as_json:
            emit_json(describe(session, record))
        else:
            click.echo(f"Sandbox {record.id} {done}.")
    finally:
        session.close()


@click.command(epilog="Example: km stop dev1")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def stop(ref: str, as_json: bool) -> None:
    """End every process of sandbox REF; files, records and budget stay."""
    from km_core.lifecycle.power import stop_sandbox

    _act(ref, as_json, stop_sandbox, "stopped")


@click.command(epilog="Example: km pause dev1")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pause(ref: str, as_json: bool) -> None:
    """Freeze sandbox REF in memory; refused where the host has no freezer."""
    from km_core.lifecycle.power import pause_sandbox

    _act(ref, as_json, pause_sandbox, "paused")


@click.command(epilog="Example: km resume dev1")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def resume(ref: str, as_json: bool) -> None:
    """Bring sandbox REF back after stop, pause or a failure."""
    from km_core.lifecycle.power import resume_sandbox

    _act(ref, as_json, resume_sandbox, "resumed")


@click.command(epilog="Example: km destroy dev1 --yes")
@click.argument("refs", nargs=-1, metavar="REF...")
@click.option("--all", "everything", is_flag=True, help="Every sandbox of this KM_HOME.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--purge-audit", is_flag=True, help="Remove the audit chains as well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def destroy(
    ctx: click.Context,
    refs: tuple[str, ...],
    everything: bool,
    yes: bool,
    purge_audit: bool,
    as_json: bool,
) -> None:
    """Remove sandboxes with everything they hold; safe to repeat after an interruption."""
    from km_core.lifecycle.power import destroy_sandbox
    from km_core.lifecycle.session import open_session

    if bool(refs) == everything:
        raise click.UsageError("name at least one sandbox, or use --all")
    session = open_session()
    try:
        found = session.records() if everything else [session.record(ref) for ref in refs]
        records = list({record.id: record for record in found}.values())
        names = ", ".join(record.alias or record.id for record in records)
        if records:
            confirm(f"Destroy {names}? This cannot be undone.", yes=yes)
        results = []
        failed = 0
        for record in records:
            try:
                destroy_sandbox(session, record, purge=purge_audit)
            except KmError as error:
                # The others are to go all the same.
                failed = failed or error.exit_code
                show_error(error)
                results.append({"id": record.id, "state": "failed", "error": error.to_dict()})
                continue
            results.append({"id": record.id, "state": "destroyed"})
            if not as_json:
                click.echo(f"Sandbox {record.id} destroyed successfully.")
        if as_json:
            emit_json(results)
        ctx.exit(failed)
    finally:
        session.close()


@click.command("reconcile", epilog="Example: km reconcile --dry-run")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def reconcile_command(ctx: click.Context, dry_run: bool, as_json: bool) -> None:
    """Compare records with what is on the host and remove what a crash left."""
    from km_core.lifecycle.power import reconcile
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        findings = reconcile(session, dry_run=dry_run)
        if as_json:
            emit_json(findings)
        elif not findings:
            note("Everything on this host matches the records.")
        else:
            table(["SANDBOX ID", "FOUND", "ACTION"], [[f["id"], f["found"], f["action"]] for f in findings])
        if any(finding["action"].startswith("failed") for finding in findings):
            ctx.exit(1)
    finally:
        session.close()
