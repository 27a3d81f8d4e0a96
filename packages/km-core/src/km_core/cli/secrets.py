"""``km secrets``: credentials that the gate injects and that never stand inside a sandbox."""

from __future__ import annotations

import sys
from typing import Any

import click

from km_core.cli.output import confirm, emit_json, iso, note, table
from km_core.errors import UsageError

_FILE = click.option(
    "--file", "path", type=click.Path(exists=True, dir_okay=False), help="Read the value from a file."
)


class _TakesNoValue(click.Command):
    """A command that does not repeat a value which somebody gave as an argument: output is often kept."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except click.exceptions.NoSuchOption:
            raise
        except click.UsageError as error:
            if "extra argument" not in error.message:
                raise
        raise click.UsageError(
            "a value is no argument: it would stand in the shell's history and the list of processes; "
            "give it on standard input or by --file",
            ctx,
        )


@click.group()
def secrets() -> None:
    """Keep the credentials that the gate adds outside the sandbox."""


@secrets.command("set", cls=_TakesNoValue, epilog="Example: km secrets set anthropic-api-key < key.txt")
@click.argument("name")
@_FILE
def set_secret(name: str, path: str | None) -> None:
    """Store secret NAME; the value is read without echo, from --file or from stdin, never from argv."""
    _checked(name)
    _call("secret.set", name=name, value=_value(name, path))
    note(f"Secret {name} stored.")


@secrets.command(
    "rotate", cls=_TakesNoValue, epilog="Example: km secrets rotate anthropic-api-key < new-key.txt"
)
@click.argument("name")
@_FILE
@click.option("--reread", is_flag=True, help="Ask the file or command outside km that keeps it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def rotate_secret(name: str, path: str | None, reread: bool, as_json: bool) -> None:
    """Replace secret NAME; running sandboxes use the new value within two seconds."""
    _checked(name)
    if reread and path is not None:
        raise UsageError("--reread and --file exclude each other")
    given = {} if reread else {"value": _value(name, path)}
    changed = _call("secret.rotate", name=name, **given)
    if as_json:
        emit_json(changed)
    else:
        note(f"Secret {name}: {changed['before'] or 'not read yet'} -> {changed['after']}.")


@secrets.command("get", epilog="Example: km secrets get anthropic-api-key --fingerprint")
@click.argument("name")
@click.option("--fingerprint", is_flag=True, help="Print the fingerprint only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def get_secret(name: str, fingerprint: bool, as_json: bool) -> None:
    """Show what is known of secret NAME: fingerprint, where it is kept, where it was used; never its value."""
    found = _call("secret.show", name=_checked(name))
    if as_json:
        emit_json(_shown(found))
    elif fingerprint:
        click.echo(found["fingerprint"])
    else:
        note(f"{name}: fingerprint {found['fingerprint']}, kept {_place(found)}")
        if found["used"]:
            table(
                ["SANDBOX", "HOST", "LAST USED"],
                [[u["sandbox"], u["host"], iso(u["at"]) or "-"] for u in found["used"]],
            )
        else:
            note("Not used yet.")


@secrets.command("list", epilog="Example: km secrets list --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_secrets(as_json: bool) -> None:
    """List secrets by name and fingerprint; values are never shown."""
    found = _call("secret.list")
    if as_json:
        emit_json([_shown(item) for item in found])
    elif not found:
        note("No secrets.")
    else:
        table(
            ["NAME", "KEPT", "FINGERPRINT", "UPDATED", "LAST USED"],
            [
                [
                    item["name"],
                    _place(item),
                    item["fingerprint"] or "-",
                    iso(item["updated_at"]) or "-",
                    iso(item["last_used_at"]) or "-",
                ]
                for item in found
            ],
        )


@secrets.command("delete", epilog="Example: km secrets delete anthropic-api-key --yes")
@click.argument("name")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete_secret(name: str, yes: bool) -> None:
    """Delete secret NAME; gates stop injecting it within two seconds."""
    confirm(f"Delete secret {name}?", yes=yes)
    _call("secret.delete", name=name)
    note(f"Secret {name} deleted.")


def _call(op: str, **arguments: Any) -> Any:
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        return session.control.call(op, **arguments)
    finally:
        session.close()


def _checked(name: str) -> str:
    import re

    from km_core.secrets.rules import SECRET_NAME

    if not re.fullmatch(SECRET_NAME, name):
        raise UsageError(f"{name!r} cannot name a secret", hint="lower-case letters, digits, dots and dashes")
    return name


def _value(name: str, path: str | None) -> str:
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
    return value


def _place(item: dict[str, Any]) -> str:
    return {"sealed": "by km", "env_file": "in a file"}.get(item["source"], "by a command")


def _shown(item: dict[str, Any]) -> dict[str, Any]:
    used = [{**use, "at": iso(use["at"])} for use in item["used"]]
    return {
        **item,
        "updated_at": iso(item["updated_at"]),
        "last_used_at": iso(item["last_used_at"]),
        "used": used,
    }
