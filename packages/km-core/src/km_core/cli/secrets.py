"""``km secrets``: credentials that the gate injects and that never stand inside a sandbox."""

from __future__ import annotations

import sys

import click

from km_core.cli.output import confirm, emit_json, iso, note, table
from km_core.errors import UsageError


@click.group()
def secrets() -> None:
    """Keep the credentials that the gate adds outside the sandbox."""


@secrets.command("set", epilog="Example: km secrets set anthropic-api-key < key.txt")
@click.argument("name")
@click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False), help="Read the value from a file."
)
def set_secret(name: str, path: str | None) -> None:
    """Store secret NAME; the value is read without echo, from --file or from stdin, never from argv."""
    import re

    from km_core.lifecycle.session import open_session

    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", name):
        raise UsageError(f"{name!r} cannot name a secret", hint="lower-case letters, digits, dots and dashes")
    if path is not None:
        with open(path, encoding="utf-8") as source:  # noqa: PTH123 - click hands over a string
            value = source.read()
    elif sys.stdin.isatty():
        value = click.prompt(f"Value of {name}", hide_input=True, err=True)
    else:
        value = sys.stdin.read()
    value = value.strip()
    if not value or any(ord(c) < 32 or ord(c) > 126 for c in value):
        raise UsageError("the value is empty or holds characters that cannot stand in a header")
    session = open_session()
    try:
        session.control.call("secret.set", name=name, value=value)
        note(f"Secret {name} stored.")
    finally:
        session.close()


@secrets.command("list", epilog="Example: km secrets list --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_secrets(as_json: bool) -> None:
    """List secrets by name and fingerprint; values are never shown."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        found = session.control.call("secret.list")
        if as_json:
            emit_json([{**item, "updated_at": iso(item["updated_at"])} for item in found])
        elif not found:
            note("No secrets.")
        else:
            table(
                ["NAME", "FINGERPRINT", "UPDATED"],
                [[item["name"], item["fingerprint"], iso(item["updated_at"]) or "-"] for item in found],
            )
    finally:
        session.close()


@secrets.command("delete", epilog="Example: km secrets delete anthropic-api-key --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_secret(name: str, yes: bool) -> None:
    """Delete secret NAME; gates stop injecting it within a minute."""
    from km_core.lifecycle.session import open_session

    confirm(f"Delete secret {name}?", yes=yes)
    session = open_session()
    try:
        session.control.call("secret.delete", name=name)
        note(f"Secret {name} deleted.")
    finally:
        session.close()
