"""``km plugins``: what is installed, and why something is not used."""

from __future__ import annotations

import click

from km_core.cli.claims import claims
from km_core.cli.output import emit_json, note, table


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
                [i.name, i.distribution, i.version, i.status + (f": {i.detail}" if i.detail else "")]
                for i in infos
            ],
        )


@plugins.command(epilog="Example: km plugins info embedded")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def info(name: str, as_json: bool) -> None:
    """Show which hooks plugin NAME implements."""
    from km_core.errors import NotFoundError
    from km_core.plugins import load_plugins

    found = load_plugins().info(name)
    if found is None:
        raise NotFoundError(f"no plugin is called {name!r}", hint="km plugins list")
    if as_json:
        emit_json(found.to_dict())
        return
    for label, value in (
        ("Plugin", found.name),
        ("Distribution", f"{found.distribution} {found.version}"),
        ("Module", found.module),
        ("Status", found.status + (f": {found.detail}" if found.detail else "")),
        ("Hooks", ", ".join(found.hooks) or "none"),
    ):
        click.echo(f"{label + ':':<14}{value}")


@plugins.command(epilog="Example: km plugins check")
@click.pass_context
def check(ctx: click.Context) -> None:
    """Ask every plugin for its offers; exit code 1 when one fails."""
    from km_core.plugins import load_plugins

    registry = load_plugins()
    for ask in (
        registry.substrates,
        registry.meters,
        registry.sidecars,
        registry.enforcers,
        registry.control_planes,
        registry.egress_groups,
        registry.doctor_checks,
        registry.claims,
    ):
        ask()
    for failure in registry.failures:
        click.echo(str(failure), err=True)
    if registry.failures:
        ctx.exit(1)
    click.echo(f"{sum(info.status == 'ok' for info in registry.infos)} plugins, all well")


plugins.add_command(claims)
