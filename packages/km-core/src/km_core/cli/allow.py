"""``km allow`` and ``km deny``: a way out for a time, and its end."""

from __future__ import annotations

import click

from km_core.cli.output import emit_json, note, remaining
from km_core.errors import UsageError


@click.command(
    epilog="""\b
Examples:
  km allow dev1 registry.example.com:5000 --for 30m
  km allow dev1 --list"""
)
@click.argument("ref")
@click.argument("host", metavar="HOST[:PORT]", required=False)
@click.option("--for", "duration", metavar="DURATION", help="How long, such as 30m; at most 7d.")
@click.option("--list", "listing", is_flag=True, help="Show what is open beside the profile.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def allow(ref: str, host: str | None, duration: str | None, listing: bool, as_json: bool) -> None:
    """
    Open HOST to sandbox REF for a time, beside its profile.

    HOST is written as in allowedHosts.  What no profile opens stays closed.  A second time replaces the
    first; the gate closes it by its own clock.
    """
    from km_core.cli.policy import grant_json, show_grants, waits
    from km_core.compile.duration import parse_command_duration
    from km_core.lifecycle.policy import allow_for
    from km_core.lifecycle.session import open_session

    if listing == bool(host):
        raise UsageError("name a host or --list", hint="km allow REF HOST --for 30m")
    seconds = 0
    if not listing:
        if duration is None:
            raise UsageError("--for says how long", hint="km allow REF HOST --for 30m")
        try:
            seconds = parse_command_duration(duration)
        except ValueError as error:
            raise UsageError(f"--for {duration!r} {error}", hint="write 30m, 4h or 1h30m") from error
    session = open_session()
    try:
        record = session.record(ref)
        if host is None or listing:
            found = session.control.call("policy.get", id=record.id)
        else:
            found = allow_for(session, record, host, seconds)
    finally:
        session.close()
    if as_json:
        data = {"id": record.id, "policy_version": found["policy_version"]}
        if "grant" in found:
            data |= {"grant": grant_json(found["grant"]), "in_force": found["in_force"]}
        emit_json({**data, "grants": [grant_json(grant) for grant in found["grants"]]})
    elif "grant" in found:
        grant = found["grant"]
        click.echo(f"{grant['entry']} is open to {record.id} for {remaining(grant['expires_at'])}")
        if not found["in_force"]:
            note(f"Not yet: {waits(record)}.")
    else:
        show_grants(found["grants"])


@click.command(epilog="Example: km deny dev1 registry.example.com:5000")
@click.argument("ref")
@click.argument("host", metavar="HOST[:PORT]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def deny(ref: str, host: str, as_json: bool) -> None:
    """
    Take back what `km allow` opened to sandbox REF; connections that used it are cut.

    Rules of the profile change with `km policy apply`.
    """
    from km_core.cli.policy import grant_json, waits
    from km_core.lifecycle.policy import deny_again
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        record = session.record(ref)
        found = deny_again(session, record, host)
    finally:
        session.close()
    if as_json:
        emit_json(
            {
                "id": record.id,
                "policy_version": found["policy_version"],
                "in_force": found["in_force"],
                "cut": found["cut"],
                "grants": [grant_json(grant) for grant in found["grants"]],
            }
        )
        return
    how = f"{found['cut']} connections cut" if found["in_force"] else waits(record)
    click.echo(f"{host} is no longer open to {record.id} ({how})")
