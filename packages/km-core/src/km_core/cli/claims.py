"""``km plugins claims``: who acts on which field of a profile, on which substrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from km_core.cli.output import emit_json, note, paint, table

if TYPE_CHECKING:
    from km_core.compile.claims import FieldRow


@click.command("claims", epilog="Example: km plugins claims --substrate local --field spec.network")
@click.option("--substrate", "only", multiple=True, metavar="NAME", help="Only this one; repeatable.")
@click.option("--field", "path", metavar="PATH", help="Only this field, or those of this section.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def claims(only: tuple[str, ...], path: str | None, as_json: bool) -> None:
    """
    Show what each field of a profile means on each substrate, and who sees to it.

    `enforced`: it acts, by whom is named.  `inert`: it has no meaning there, and that is harmless.
    `missing`: refused, until the named distribution is installed.  `refused`: refused for good.
    """
    from km_core.compile.claims import claim_sources, field_table, substrates_of
    from km_core.errors import NotFoundError
    from km_core.plugins import load_plugins
    from km_core.profile.kinds import nearest

    plugins = load_plugins()
    sources = claim_sources(plugins)
    known = substrates_of(sources)
    for name in only:
        if name not in known:
            raise NotFoundError(f"no substrate is called {name!r}", hint="known: " + ", ".join(known))
    rows = field_table(sources, only or known, sections=plugins.profile_sections())
    if path is not None:
        wanted = path.removeprefix("$.").rstrip(".")
        fields = [row.path for row in rows]
        rows = [row for row in rows if row.path == wanted or row.path.startswith(f"{wanted}.")]
        if not rows:
            near = nearest(wanted, fields)
            hint = f"did you mean {near}?" if near else "km plugins claims lists every field"
            raise NotFoundError(f"no field of a profile is called {path!r}", hint=hint)
    if as_json:
        emit_json([row.to_dict() for row in rows])
        return
    table(["FIELD", "SUBSTRATE", "VALUE", "ANSWER", "BY", "NOTE"], [_cells(row) for row in rows])
    silent = [row for row in rows if row.answer is None]
    if silent:
        note(f"{len(silent)} of them are claimed by nobody: a profile that writes one is refused.")


def _cells(row: FieldRow) -> list[str]:
    word = "nobody" if row.answer is None else str(row.answer)
    remark = row.note
    if row.unheard:
        remark += ("; " if remark else "") + f"the claim of {', '.join(row.unheard)} does not count"
    return [row.path, row.substrate, _values(row.values), paint(word, word), row.by or "-", remark]


def _values(values: tuple[object, ...] | None) -> str:
    if values is None:
        return "*"
    return ", ".join(_value(value) for value in values)


def _value(value: object) -> str:
    if value == ():
        return "empty"
    return str(value).lower() if isinstance(value, bool) else str(value)
