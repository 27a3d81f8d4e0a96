"""``km validate``, ``km compile`` and ``km schema``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from km_core.cli.output import emit_json, note, printable, show_problem
from km_core.types import Problem, Severity

if TYPE_CHECKING:
    from collections.abc import Sequence


@click.command(epilog="Example: km validate profiles/*.yaml --substrate local")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@click.option("--substrate", metavar="NAME", help="Also check that NAME enforces every written field.")
@click.option(
    "--show-resolved", is_flag=True, help="Print the merged profile and where each section came from."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def validate(
    ctx: click.Context, files: tuple[str, ...], substrate: str | None, show_resolved: bool, as_json: bool
) -> None:
    """Check every FILE (or built-in) against the schema and the semantic rules; exit code 1 when one is invalid."""
    from km_core.compile.pipeline import check_file
    from km_core.compile.resolved import resolved_text
    from km_core.config import load_config
    from km_core.plugins import load_plugins

    config, plugins = load_config(), load_plugins()
    everything: list[Problem] = []
    for file in files:
        problems, loaded = check_file(file, config, plugins, substrate=substrate)
        everything += problems
        if as_json:
            continue
        for problem in problems:
            if problem.severity is not Severity.INFO:
                show_problem(problem)
        if _valid(problems):
            warned = any(p.severity is Severity.WARNING for p in problems)
            click.echo(printable(f"{file}: valid" + (" (with warnings)" if warned else "")))
            if show_resolved and loaded is not None:
                click.echo(resolved_text(loaded), nl=False)
    if as_json:
        emit_json({"valid": _valid(everything), "problems": [problem.to_dict() for problem in everything]})
    if not _valid(everything):
        ctx.exit(1)


def _valid(problems: Sequence[Problem]) -> bool:
    return all(problem.severity is not Severity.ERROR for problem in problems)


@click.command("compile", epilog="Example: km compile profile.yaml --substrate docker --out plan/")
@click.argument("file")
@click.option("--substrate", metavar="NAME", help="Default: the profile's own.")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), help="Write plan.json there.")
@click.option(
    "--drop", multiple=True, metavar="FIELD", help="Leave a field of the profile out, by dotted path."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def compile_command(
    file: str, substrate: str | None, out: Path | None, drop: tuple[str, ...], as_json: bool
) -> None:
    """
    Turn profile FILE (or a built-in) into its plan; the same input gives the same bytes.

    Where what would run it is not installed, the plan is for review: what plugins add to it, such as the
    models' placeholders, is not in it.
    """
    from attrs import evolve

    from km_core.compile.artifacts import write_artifacts
    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.config import load_config
    from km_core.plugins import load_plugins
    from km_core.types import Severity

    overrides = Overrides(substrate=substrate, drop=drop)
    compiled = plan_from_file(file, load_config(), load_plugins(), overrides, for_review=True)
    for problem in (*compiled.notes, *compiled.unmet):
        note(printable(str(evolve(problem, severity=Severity.WARNING))))
    if compiled.unmet:
        note(f"warning: a plan for review: {compiled.unmet[0].hint} to make the one that would run here")
    text = compiled.plan.to_json()
    if out is not None:
        write_artifacts(out, {"plan.json": text})
        if not as_json:
            click.echo(f"{out / 'plan.json'}: {compiled.plan.digest()}")
    if as_json:
        emit_json({"digest": compiled.plan.digest(), "plan": compiled.plan.to_data()})
    elif out is None:
        click.echo(text, nl=False)


@click.command(epilog="Example: km schema --out profiles/profile.schema.json")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False), help="Write it there.")
def schema(out: Path | None) -> None:
    """Print the JSON Schema of profiles (draft 2020-12), with the sections that plugins bring."""
    from km_core.compile.artifacts import write_artifacts
    from km_core.plugins import load_plugins
    from km_core.profile.schema import profile_schema, schema_text

    text = schema_text(profile_schema(load_plugins().profile_sections()))
    if out is None:
        click.echo(text, nl=False)
        return
    write_artifacts(out.parent, {out.name: text})
    click.echo(str(out))
