"""One page per command of ``km``, read from the click commands themselves."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING

import click
from attrs import frozen

if TYPE_CHECKING:
    from collections.abc import Iterator


@frozen
class Entry:
    """
    A command, or a group of commands.

    Attributes:
        path: its words, ``("km", "budget", "add")``.
        command: click's own description of it.
        context: a context to ask it with.
    """

    path: tuple[str, ...]
    command: click.Command
    context: click.Context

    @property
    def name(self) -> str:
        """The words as typed."""
        return " ".join(self.path)

    @property
    def options(self) -> list[click.Option]:
        """Options that are shown, without ``--help``."""
        return [
            param
            for param in self.command.get_params(self.context)
            if isinstance(param, click.Option) and not param.hidden and "--help" not in param.opts
        ]

    @property
    def examples(self) -> list[str]:
        """Command lines of the epilog that begin with ``km``."""
        return re.findall(r"(?:^|:)\s*(km .+)$", _clean(self.command.epilog or ""), re.MULTILINE)

    @property
    def help(self) -> str:
        """The help text; empty when there is none."""
        return _clean(self.command.help or "")


def entries() -> list[Entry]:
    """Return ``km`` and every command below it, groups before their commands."""
    from km_core.cli.main import cli

    return list(_walk(cli, ("km",), None))


def aliases() -> dict[str, str]:
    """Return the further names of top-level commands."""
    from km_core.cli.main import cli

    return cli.aliases()


def _walk(command: click.Command, path: tuple[str, ...], parent: click.Context | None) -> Iterator[Entry]:
    context = click.Context(command, info_name=path[-1], parent=parent)
    yield Entry(path, command, context)
    if not isinstance(command, click.Group):
        return
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        if below is not None and not below.hidden:
            yield from _walk(below, (*path, name), context)


def _clean(text: str) -> str:
    return inspect.cleandoc(text.replace("\b", "")).strip()


def usage(entry: Entry) -> str:
    """Return the usage line, ``km exec [OPTIONS] REF COMMAND...``."""
    pieces = entry.command.collect_usage_pieces(entry.context)
    return " ".join([entry.name, *pieces])


def section(entry: Entry, level: int) -> list[str]:
    """Return the lines that describe one command, with a heading of *level*."""
    lines = ["#" * level + f" `{entry.name}`", "", "```text", usage(entry), "```", ""]
    if entry.help:
        lines += [entry.help, ""]
    if entry.options:
        lines += ["| option | meaning |", "|---|---|"]
        lines += [f"| {_names(option)} | {_meaning(option, entry.context)} |" for option in entry.options]
        lines.append("")
    if entry.examples:
        lines += ["```sh", *entry.examples, "```", ""]
    return lines


def _names(option: click.Option) -> str:
    names = ", ".join(f"`{name}`" for name in (*option.opts, *option.secondary_opts))
    if option.is_flag or option.count:
        return names
    kind = option.type
    metavar = option.metavar or (
        "\\|".join(kind.choices) if isinstance(kind, click.Choice) else kind.name.upper()
    )
    return f"{names} {metavar}"


def _meaning(option: click.Option, context: click.Context) -> str:
    parts = [(option.help or "").strip().replace("|", "\\|")]
    if option.multiple:
        parts.append("May be repeated.")
    if option.required:
        parts.append("Required.")
    default = option.get_default(context, call=False)
    if option.show_default and default is not None and not callable(default):
        parts.append(f"Default: `{default}`.")
    return " ".join(part for part in parts if part)


def index(everything: list[Entry]) -> str:
    """Return the page that lists the commands."""
    top = [entry for entry in everything if len(entry.path) == 2]
    lines = [
        "# Commands",
        "",
        "Every command that prints data takes `--json`: one document on standard output, remarks on standard",
        "error.  Exit codes are listed with the [error codes](../../errors.md).",
        "",
        *section(everything[0], 2)[2:],
        "| command | |",
        "|---|---|",
    ]
    lines += [f"| [`{e.name}`]({e.path[1]}.md) | {_first_line(e)} |" for e in top]
    names = ", ".join(f"`{alias}` for `{name}`" for alias, name in sorted(aliases().items()))
    lines += ["", f"Further names: {names}."]
    lines += ["", "```{toctree}", ":hidden:", "", *[entry.path[1] for entry in top], "```", ""]
    return "\n".join(lines)


def _first_line(entry: Entry) -> str:
    return " ".join(entry.help.split("\n\n")[0].split()).replace("|", "\\|")


def pages() -> dict[str, str]:
    """Return the pages by path below the site's root."""
    everything = entries()
    result = {"reference/cli/index.md": index(everything)}
    for entry in everything:
        if len(entry.path) == 1:
            continue
        path = f"reference/cli/{entry.path[1]}.md"
        lines = section(entry, len(entry.path) - 1)
        result[path] = result.get(path, "") + "\n".join(lines)
    return result
