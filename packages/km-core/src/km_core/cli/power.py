"""``km stop``, ``pause``, ``resume``, ``destroy`` and ``reconcile``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from km_core.cli.output import confirm, emit_json, note, table

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


@click.command()
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def stop(ref: str, as_json: bool) -> None:
    """End every process of sandbox REF; files, records and budget stay."""
    from km_core.lifecycle.power import stop_sandbox

    _act(ref, as_json, stop_sandbox, "stopped")


@click.command()
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def pause(ref: str, as_json: bool) -> None:
    """Freeze sandbox REF in memory; refused where the host has no freezer."""
    from km_core.lifecycle.power import pause_sandbox

    _act(ref, as_json, pause_sandbox, "paused")


@click.command()
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
def destroy(refs: tuple[str, ...], everything: bool, yes: bool, purge_audit: bool, as_json: bool) -> None:
    """Remove sandboxes with everything they hold; safe to repeat after an interruption."""
    from km_core.lifecycle.power import destroy_sandbox
    from km_core.lifecycle.session import open_session

    if bool(refs) == everything:
        raise click.UsageError("name at least one sandbox, or use --all")
    session = open_session()
    try:
        records = session.records() if everything else [session.record(ref) for ref in refs]
        names = ", ".join(record.alias or record.id for record in records)
        if records:
            confirm(f"Destroy {names}? This cannot be undone.", yes=yes)
        for record in records:
            destroy_sandbox(session, record, purge_audit=purge_audit)
            if not as_json:
                click.echo(f"Sandbox {record.id} destroyed successfully.")
        if as_json:
            emit_json([{"id": record.id, "state": "destroyed"} for record in records])
    finally:
        session.close()


@click.command("reconcile")
@click.option("--dry-run", is_flag=True, help="Say what would be done.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def reconcile_command(dry_run: bool, as_json: bool) -> None:
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
    finally:
        session.close()
