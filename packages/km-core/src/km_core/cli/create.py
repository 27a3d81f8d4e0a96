"""``km create``: from a profile to a running sandbox."""

from __future__ import annotations

import time

import click

from km_core.cli.output import Progress, emit_json, note, printable, remaining


@click.command(
    epilog="""\b
Examples:
  km create profile.yaml
  km create profile.yaml --docker --alias dev1 --ttl 2h
  km create profile.yaml --dry-run --json"""
)
@click.argument("profile", metavar="FILE")
@click.option("--substrate", metavar="NAME", help="Where to run; default: the profile's own.")
@click.option("--docker", is_flag=True, help="Short for --substrate docker.")
@click.option("--alias", default="", help="A name of your own: a lower-case word.")
@click.option("--ttl", metavar="DURATION", help="Override lifecycle.ttl; 0 means no expiry.")
@click.option("--idle", metavar="DURATION", help="Override lifecycle.idleTimeout.")
@click.option("--ai", metavar="USD", help="Override budget.ai.maxSpendUSD.")
@click.option("--compute", metavar="USD", help="Override budget.compute.maxSpendUSD.")
@click.option("--memory", metavar="SIZE", help="Memory limit, such as 2G; enforced or refused.")
@click.option("--cpus", type=float, metavar="N", help="CPU limit; enforced or refused.")
@click.option("--pids", type=int, metavar="N", help="Process limit; enforced or refused.")
@click.option(
    "--drop", multiple=True, metavar="FIELD", help="Leave a field of the profile out, by dotted path."
)
@click.option("--dry-run", is_flag=True, help="Print the plan; make nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def create(
    profile: str,
    substrate: str | None,
    docker: bool,
    alias: str,
    ttl: str | None,
    idle: str | None,
    ai: str | None,
    compute: str | None,
    memory: str | None,
    cpus: float | None,
    pids: int | None,
    drop: tuple[str, ...],
    dry_run: bool,
    as_json: bool,
) -> None:
    """Create a sandbox from profile FILE (or a built-in) and start it; a failure leaves nothing behind."""
    from km_core.cli.fleet import describe
    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.errors import UsageError
    from km_core.lifecycle.create import create_sandbox
    from km_core.lifecycle.session import open_session
    from km_core.types import is_alias

    if docker and substrate not in {None, "docker"}:
        raise UsageError("--docker and --substrate name different substrates")
    if alias and not is_alias(alias):
        raise UsageError(
            f"{alias!r} cannot be an alias",
            hint="a lower-case letter, then letters, digits or dashes; 32 at most",
        )
    session = open_session()
    try:
        overrides = Overrides(
            substrate="docker" if docker else substrate,
            ttl=ttl,
            idle=idle,
            ai=ai,
            compute=compute,
            memory=memory,
            cpus=cpus,
            pids=pids,
            drop=drop,
        )
        compiled = plan_from_file(profile, session.config, session.plugins, overrides)
        for problem in compiled.notes:
            note(printable(str(problem)))
        if dry_run:
            if as_json:
                emit_json(compiled.plan.to_data())
            else:
                click.echo(compiled.plan.to_json(), nl=False)
            return
        started = time.monotonic()
        note(f"km create - {compiled.plan.profile} on {compiled.plan.substrate}")
        record = create_sandbox(
            session, compiled.plan, compiled.text, alias=alias, on_step=Progress(quiet=as_json)
        )
        if as_json:
            emit_json(describe(session, record))
            return
        elapsed = time.monotonic() - started
        click.echo(f"Sandbox #{record.number} {record.id} created successfully. ({elapsed:.1f} s)")
        if record.expires_at:
            note(f"It ends in {remaining(record.expires_at)} (teardown: {record.teardown}).")
        note(f"Next: km shell {record.alias or record.id}")
    finally:
        session.close()
