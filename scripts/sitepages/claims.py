"""The page that says for every field of a profile who acts on it, on which substrate."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.compile.claims import FieldRow

_INTRO = """# Fields by substrate

What each field means where, as `km plugins claims` prints it for the distributions of this repository.  A field that you
write and that is *missing* or *refused* there stops `km create` and names itself; *inert* means that it has no meaning
there, and that this is harmless.  Where an answer depends on what is written, the values have rows of their own.
"""


def page() -> str:
    """Return the page."""
    from km_core.compile.claims import claim_sources, field_table, substrates_of
    from km_core.plugins import load_plugins

    plugins = load_plugins()
    sources = claim_sources(plugins)
    substrates = substrates_of(sources)
    groups: dict[str, dict[tuple[str, str], dict[str, FieldRow]]] = {}
    for row in field_table(sources, substrates, sections=plugins.profile_sections()):
        parts = row.path.split(".")
        section = ".".join(parts[:2]) if parts[0] == "spec" else "The document"
        cells = groups.setdefault(section, {}).setdefault((row.path, _values(row.values)), {})
        cells[row.substrate] = row
    lines = [_INTRO]
    for section, rows in groups.items():
        lines += [f"## {section if section == 'The document' else f'`{section}`'}", ""]
        lines += [
            "| field | value | " + " | ".join(substrates) + " | why |",
            "|---|---|" + "---|" * len(substrates) + "---|",
        ]
        for (path, values), cells in rows.items():
            answers = " | ".join(_answer(cells.get(substrate)) for substrate in substrates)
            lines.append(f"| `{path}` | {values} | {answers} | {_notes(list(cells.values()))} |")
        lines.append("")
    return "\n".join(lines)


def _values(values: tuple[object, ...] | None) -> str:
    if values is None:
        return "\\*"
    shown = (
        "empty" if value == () else str(value).lower() if isinstance(value, bool) else str(value)
        for value in values
    )
    return ", ".join(f"`{value}`" for value in shown)


def _answer(row: FieldRow | None) -> str:
    if row is None:
        return "as above"
    word = "nobody" if row.answer is None else str(row.answer)
    return f"{word}, {row.by}" if row.by else word


def _notes(rows: Sequence[FieldRow]) -> str:
    return "; ".join(dict.fromkeys(row.note for row in rows if row.note)).replace("|", "\\|")


def pages() -> dict[str, str]:
    """Return the pages by path below the site's root."""
    return {"reference/claims.md": page()}
