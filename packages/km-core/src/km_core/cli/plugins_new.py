"""``km plugins new``: write a ready plugin distribution."""

from __future__ import annotations

from pathlib import Path

import click

from km_core.cli.output import emit_json, note
from km_core.scaffold.names import KINDS


@click.command(
    epilog="""\b
Examples:
  km plugins new km-notify-tally --kind notifier
  km plugins new km-substrate-mine --kind substrate --out work/mine --author "Ada <ada@example.org>"
  km plugins new km-agent-mine --kind agent --dry-run"""
)
@click.argument("name")
@click.option("--kind", type=click.Choice(KINDS), required=True, help="What the plugin is to be.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Where to write it, a new or empty directory; default: ./NAME.",
)
@click.option("--author", default="", metavar="TEXT", help='"Name" or "Name <address>", for the metadata.')
@click.option("--dry-run", is_flag=True, help="Only list the files; write nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def new(name: str, kind: str, out: Path | None, author: str, dry_run: bool, as_json: bool) -> None:
    """Write a plugin distribution called NAME that passes its tests, mypy and `km plugins check`."""
    from km_core.scaffold.names import check_name
    from km_core.scaffold.render import render
    from km_core.scaffold.write import check_target, write_distribution

    names = check_name(name, kind)
    directory = out if out is not None else Path(names.dist)
    files = render(names, author=author)
    if dry_run:
        check_target(directory)
    else:
        write_distribution(files, directory)
    following = [
        f"cd {directory}",
        "pip install -e '.[test]'",
        "pytest",
        "mypy",
        f"km plugins check {names.plugin}",
    ]
    if as_json:
        emit_json(
            {
                "name": names.dist,
                "kind": kind,
                "module": names.module,
                "plugin": names.plugin,
                "offer": names.word,
                "directory": str(directory),
                "written": not dry_run,
                "files": list(files),
                "next": following,
            }
        )
        return
    for path in files:
        click.echo(str(directory / path))
    note(f"{'Would write' if dry_run else 'Wrote'} {len(files)} files.")
    if not dry_run:
        note("Next:")
        for line in following:
            note(f"  {line}")
