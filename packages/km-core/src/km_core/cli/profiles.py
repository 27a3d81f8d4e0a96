"""``km profiles``: the built-in profiles and those on the search path."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click
from attrs import frozen

from km_core.cli.output import emit_json, note, printable, show_problem, table
from km_core.types import Severity

if TYPE_CHECKING:
    from km_core.compile.builtins import ProfileSource
    from km_core.compile.profile import LoadedProfile
    from km_core.config import Config
    from km_core.plugins import PluginRegistry


@click.group()
def profiles() -> None:
    """Show the built-in profiles and those in the directories of profile_search_paths."""


@frozen
class _Row:
    """One profile of the list; *loaded* is None for one that cannot be read."""

    source: ProfileSource
    text: str
    loaded: LoadedProfile | None
    valid: bool
    shadowed: bool

    def value(self, path: str) -> Any:
        return self.loaded.value(path) if self.loaded is not None else None

    def to_dict(self) -> dict[str, Any]:
        from km_core.compile.builtins import summary_of

        return {
            "name": self.source.name,
            "source": "built-in" if self.source.builtin else "file",
            "file": "" if self.source.builtin else self.source.file,
            "valid": self.valid,
            "shadowed": self.shadowed,
            "substrate": self.value("spec.runtime.substrate"),
            "enforcement": self.value("spec.network.enforcement"),
            "ttl": self.value("spec.lifecycle.ttl"),
            "budget": {
                "compute_usd": self.value("spec.budget.compute.maxSpendUSD"),
                "ai_usd": self.value("spec.budget.ai.maxSpendUSD"),
            },
            "summary": summary_of(self.text),
        }

    def cells(self) -> list[str]:
        data = self.to_dict()
        amounts = data["budget"]
        budget = ", ".join(
            f"{pool} ${amounts[key]:g}"
            for pool, key in (("compute", "compute_usd"), ("AI", "ai_usd"))
            if isinstance(amounts[key], (int, float))
        )
        summary = data["summary"]
        if self.shadowed:
            summary = f"(not reached by its name, {self.source.name} is another) {summary}"
        if not self.valid:
            summary = f"(invalid: km validate {self.source.file}) {summary}"
        where = "built-in" if self.source.builtin else self.source.file
        words = [data[key] for key in ("substrate", "enforcement", "ttl")]
        shown = [word if isinstance(word, str) and word else "-" for word in words]
        return [printable(cell) for cell in (self.source.name, where, *shown, budget or "-", summary)]


@profiles.command("list", epilog="Example: km profiles list --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_command(as_json: bool) -> None:
    """List profiles by the name that km create and extends take."""
    from km_core.config import load_config
    from km_core.plugins import load_plugins

    rows = _rows(load_config(), load_plugins())
    if as_json:
        emit_json([row.to_dict() for row in rows])
        return
    table(
        ["NAME", "SOURCE", "SUBSTRATE", "ENFORCEMENT", "TTL", "BUDGET", "SUMMARY"],
        [row.cells() for row in rows],
    )


def _rows(config: Config, plugins: PluginRegistry) -> list[_Row]:
    from km_core.compile.builtins import BUILTINS, find_profile, profiles_on
    from km_core.compile.pipeline import check_file

    rows: list[_Row] = []
    taken: set[str] = set()
    for source in [*(find_profile(name) for name in BUILTINS), *profiles_on(config.profile_search_paths)]:
        problems, loaded = check_file(source.path or source.name, config, plugins)
        valid = all(problem.severity is not Severity.ERROR for problem in problems)
        rows.append(_Row(source, _text(source), loaded, valid, source.name in taken))
        taken.add(source.name)
    return rows


def _text(source: ProfileSource) -> str:
    """Return a profile's text for display; empty when it cannot be read."""
    content = source.content
    if isinstance(content, str):
        return content
    try:
        return content.read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


@profiles.command(epilog="Example: km profiles show hardened --resolved")
@click.argument("name")
@click.option("--resolved", is_flag=True, help="Merged with its parents, with defaults and origins.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def show(ctx: click.Context, name: str, resolved: bool, as_json: bool) -> None:
    """Print profile NAME: a built-in, one on the search path, or a file."""
    from km_core.compile.builtins import find_profile
    from km_core.compile.load import load_document
    from km_core.compile.pipeline import check_file
    from km_core.compile.resolved import resolved_text
    from km_core.config import load_config
    from km_core.errors import NotFoundError, ProfileError
    from km_core.plugins import load_plugins

    config = load_config()
    try:
        source = find_profile(name, config.profile_search_paths)
        document = load_document(source.content, file=source.file)
    except ProfileError as error:
        raise NotFoundError(
            error.what, where=error.where, why=error.why, hint=error.hint or "km profiles list"
        ) from error
    if not resolved and not as_json:
        for line in _text(source).splitlines():
            click.echo(printable(line))
        return
    problems, loaded = check_file(source.path or source.name, config, load_plugins())
    errors = [problem for problem in problems if problem.severity is Severity.ERROR]
    if errors or loaded is None:
        for problem in errors:
            show_problem(problem)
        note(printable(f"error: {source.file} is not a valid profile"))
        if as_json:
            emit_json({"valid": False, "problems": [problem.to_dict() for problem in problems]})
        ctx.exit(1)
    if not as_json:
        click.echo(resolved_text(loaded), nl=False)
        return
    answer: dict[str, Any] = {
        "name": source.name,
        "source": "built-in" if source.builtin else "file",
        "file": "" if source.builtin else source.file,
        "profile": loaded.data if resolved else document.data,
    }
    if resolved:
        answer["chain"] = list(loaded.chain)
        answer["origins"] = dict(loaded.origins)
    emit_json(answer)
