"""``km policy``: show and change the policy of a living sandbox."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import click

from km_core.cli.output import emit_json, iso, note, printable, remaining, table

if TYPE_CHECKING:
    from typing import Any

    from km_core.types import SandboxRecord


@click.group()
def policy() -> None:
    """Show and change what a living sandbox may reach."""


@policy.command(
    epilog="""\b
Examples:
  km policy apply dev1 profile.yaml --dry-run
  km policy apply dev1 profile.yaml"""
)
@click.argument("ref")
@click.argument("file", metavar="FILE")
@click.option("--dry-run", is_flag=True, help="Say what would change; change nothing.")
@click.option(
    "--policy-only",
    is_flag=True,
    help="Take spec.network and spec.sourceAccess of FILE and leave the rest of it aside.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def apply(ref: str, file: str, dry_run: bool, policy_only: bool, as_json: bool) -> None:
    """
    Let the network and source rules of profile FILE replace those of sandbox REF, at once.

    What the new rules allow goes on; connections that they no longer allow are cut.  FILE may differ from
    the sandbox's profile in nothing else.  A failure leaves the rules as they were.
    """
    from km_core.cli.diff import show_diff
    from km_core.lifecycle.policy import apply_policy
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        record = session.record(ref)
        found = apply_policy(session, record, file, policy_only=policy_only, dry_run=dry_run)
    finally:
        session.close()
    if as_json:
        emit_json({"id": record.id, "dry_run": dry_run, **found.to_dict()})
        return
    if found.diff:
        show_diff(found.diff)
    else:
        click.echo("No differences.")
    if dry_run:
        note("Nothing was changed.")
    elif found.before != found.after:
        how = f"{found.cut} connections cut" if found.in_force else waits(record)
        note(f"Policy {found.before[:12]} -> {found.after[:12]}: {how}.")


@policy.command(epilog="Example: km policy show dev1 --json")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(ref: str, as_json: bool) -> None:
    """Show the rules of sandbox REF and what `km allow` opened beside them."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        record = session.record(ref)
        plan = session.plan(record)
        found = session.control.call("policy.get", id=record.id)
    finally:
        session.close()
    network = plan.network
    rules = [{"rule": rule.source, "ports": list(rule.ports)} for rule in network.hosts]
    rules += [{"rule": rule.source, "ports": list(rule.ports)} for rule in network.addresses]
    grants = [grant_json(grant) for grant in found["grants"]]
    if as_json:
        emit_json(
            {
                "id": record.id,
                "policy_version": found["policy_version"],
                "plan_digest": found["plan_digest"],
                "https_only": network.https_only,
                "rules": rules,
                "grants": grants,
            }
        )
        return
    click.echo(f"policy {found['policy_version'][:12]}, plan {found['plan_digest'][:12]}")
    for rule in rules:
        click.echo(printable(f"  {rule['rule']}"))
    show_grants(found["grants"])


def waits(record: SandboxRecord) -> str:
    """Say when a change counts that no gate has taken over yet."""
    if record.state in {"running", "paused"}:
        return "its gate did not answer and takes it over with its next lease, within 10 seconds"
    return "it counts as soon as the sandbox runs"


def grant_json(grant: dict[str, Any]) -> dict[str, Any]:
    """Return a grant as the commands print it."""
    return {"entry": grant["entry"], "expires_at": iso(grant["expires_at"])}


def show_grants(grants: list[dict[str, Any]]) -> None:
    """Print grants as a table, nothing for none."""
    if grants:
        now = time.time()
        table(["GRANTED", "ENDS IN"], [[g["entry"], remaining(g["expires_at"], now)] for g in grants])
