"""``km diff``: what a profile newly allows or forbids compared with another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from km_core.cli.output import emit_json, note, paint, printable

if TYPE_CHECKING:
    from km_core.compile.diff import Change, PlanDiff
    from km_core.compile.pipeline import Compiled


@click.command(epilog="Example: km diff profile.yaml hardened --substrate local")
@click.argument("before", metavar="FILE")
@click.argument("after", metavar="FILE")
@click.option("--substrate", metavar="NAME", help="Compare on NAME; default: each profile's own.")
@click.option("--exit-code", is_flag=True, help="Exit with 1 when the second loosens anything.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def diff(
    ctx: click.Context, before: str, after: str, substrate: str | None, exit_code: bool, as_json: bool
) -> None:
    """
    Say what the second profile loosens and tightens compared with the first.

    The compiled plans are compared, so parents, defaults and groups count, and fields that no plan carries
    as they are written.  What decides over access, money and time comes first.  A FILE may be the name of a
    built-in profile.
    """
    from km_core.compile.diff import diff_plans
    from km_core.compile.diff_fields import with_fields
    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.config import load_config
    from km_core.plugins import load_plugins

    config, plugins = load_config(), load_plugins()
    read = []
    for file in (before, after):
        compiled = plan_from_file(file, config, plugins, Overrides(substrate=substrate), for_reading=True)
        _remark(file, compiled)
        read.append(compiled)
    metered = [host for meter in plugins.meters().values() for host in meter.hosts]
    first, second = read
    found = diff_plans(first.plan, second.plan, metered_hosts=metered)
    found = with_fields(found, first.data, second.data, inert=second.plan.inert)
    if as_json:
        emit_json(found.to_dict())
    elif not found:
        click.echo("No differences.")
    else:
        show_diff(found)
    if exit_code and found.loosened:
        ctx.exit(1)


def show_diff(found: PlanDiff) -> None:
    """Print the differences by what they do."""
    for title, sign, changes in (
        ("loosened", "+", found.loosened),
        ("tightened", "-", found.tightened),
        ("other", "~", found.other),
    ):
        _show(title, sign, changes)


def _show(title: str, sign: str, changes: tuple[Change, ...]) -> None:
    if not changes:
        return
    click.echo(paint(f"{title}:", title))
    for change in changes:
        click.echo(printable(f"  {sign} {change.text}   [{change.path}]"))


def _remark(file: str, compiled: Compiled) -> None:
    """Say that a plan which is only compared could not run here."""
    if compiled.unmet:
        where = compiled.plan.substrate
        note(f"{file}: what is installed cannot run it on {where} (km validate {file} --substrate {where})")
