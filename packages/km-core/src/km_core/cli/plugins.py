"""``km plugins``: what is installed, and why something is not used."""

from __future__ import annotations

import click

from km_core.cli.claims import claims
from km_core.cli.output import emit_json, note, printable, table
from km_core.cli.plugins_new import new


@click.group()
def plugins() -> None:
    """Show installed plugins."""


@plugins.command("list", epilog="Example: km plugins list --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_plugins(as_json: bool) -> None:
    """List plugins with their distribution, version and state."""
    from km_core.plugins import load_plugins

    infos = load_plugins().infos
    if as_json:
        emit_json([info.to_dict() for info in infos])
    elif not infos:
        note("No plugins are installed.")
    else:
        table(
            ["PLUGIN", "DISTRIBUTION", "VERSION", "STATUS"],
            [
                [
                    i.name,
                    i.distribution,
                    i.version,
                    printable(i.status + (f": {i.detail}" if i.detail else "")),
                ]
                for i in infos
            ],
        )


@plugins.command(epilog="Example: km plugins info embedded")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def info(name: str, as_json: bool) -> None:
    """Show what plugin NAME is and what it offers."""
    from km_core.errors import NotFoundError
    from km_core.inspection.portrait import portrait
    from km_core.plugins import load_plugins
    from km_core.profile.kinds import nearest

    registry = load_plugins()
    if registry.info(name) is None:
        near = nearest(name, [each.name for each in registry.infos])
        hint = f"did you mean {near}?" if near else "km plugins list"
        raise NotFoundError(f"no plugin is called {name!r}", hint=hint)
    found = portrait(registry, name)
    if as_json:
        emit_json(found)
        return
    status = found["status"] + (f": {found['detail']}" if found["detail"] else "")
    api = "-" if found["api"] is None else str(found["api"])
    lines = [
        ("Plugin", found["name"]),
        ("Summary", found["summary"]),
        ("Distribution", f"{found['distribution']} {found['version']}".strip()),
        ("Module", found["module"]),
        ("Plugin API", api),
        ("Status", status),
        ("Requires", ", ".join(found["requires"]) or "-"),
        ("Requirement", found["requirement"] or "-"),
        ("Documentation", found["documentation"] or "-"),
        ("Commands", ", ".join(found["commands"]) or "none"),
        ("Claims", str(found["claims"])),
    ]
    for label, value in lines:
        click.echo(printable(f"{label + ':':<15}{value}"))
    click.echo("Hooks:" if found["hooks"] else "Hooks:         none")
    for hook, offers in found["hooks"].items():
        click.echo(printable(f"  {hook:<20}  {', '.join(offers)}".rstrip()))


@plugins.command(
    epilog="""\b
Examples:
  km plugins check
  km plugins check notify-file
  km plugins check ./km-notify-file --json"""
)
@click.argument("what", metavar="[NAME|PATH]", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--all", "show_all", is_flag=True, help="Show also what is well.")
@click.pass_context
def check(ctx: click.Context, what: str | None, as_json: bool, show_all: bool) -> None:
    """
    Try plugins and say what is wrong with them; exit code 1 when something is.

    NAME is an installed plugin, PATH a source tree with a pyproject.toml; without either every installed
    plugin is checked: metadata, API number, hooks and their arguments, what they return, that they give
    the same again, print nothing and are quick to import.  Each plugin runs in a process of its own, so
    that it cannot end km, but with your rights: read a plugin that you do not trust before you check it.
    """
    from km_core.inspection import find_subjects, inspect_plugins

    subjects = find_subjects(what)
    findings = inspect_plugins(subjects)
    failed = any(finding.status == "error" for finding in findings)
    if as_json:
        emit_json({"ok": not failed, "findings": [finding.to_dict() for finding in findings]})
    else:
        shown = [finding for finding in findings if show_all or finding.status in {"error", "warning"}]
        whose = {subject.name: subject.distribution for subject in subjects}
        for finding in shown:
            of = f" ({whose[finding.plugin]})" if whose.get(finding.plugin) else ""
            text = f"{finding.status}: {finding.plugin}{of}: {finding.check}: {finding.message}"
            click.echo(printable(text))
            if finding.hint:
                click.echo(printable(f"  hint: {finding.hint}"))
        if not subjects:
            note("No plugins are installed.")
            return
        names = {subject.name for subject in subjects}
        bad = {finding.plugin for finding in findings if finding.status == "error"}
        count = f"{len(names)} plugin" + ("" if len(names) == 1 else "s")
        click.echo(f"{count}, {len(bad)} with errors" if bad else f"{count}, all well")
    if failed:
        ctx.exit(1)


plugins.add_command(claims)
plugins.add_command(new)
