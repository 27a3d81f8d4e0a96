"""
The ``km`` command.

The command table is data: ``km --help``, ``km --version`` and completion import neither a command's
module nor a plugin.  Plugins add commands with entry points of the group ``km.commands``.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from km_core.cli.installed import COMMANDS, plugin_commands, version

if TYPE_CHECKING:
    from collections.abc import Sequence

    from click.shell_completion import CompletionItem

    from km_core.errors import KmError

_TABLE: dict[str, tuple[str, str]] = {
    "validate": ("km_core.cli.profile:validate", "Check profiles and say what is wrong, and where."),
    "compile": (
        "km_core.cli.profile:compile_command",
        "Turn a profile into its plan, without touching anything.",
    ),
    "profiles": ("km_core.cli.profiles:profiles", "Show built-in profiles and those on the search path."),
    "schema": ("km_core.cli.profile:schema", "Print the JSON Schema of profiles, for editors."),
    "diff": ("km_core.cli.diff:diff", "Say what a profile newly allows or forbids compared with another."),
    "create": ("km_core.cli.create:create", "Create a sandbox from a profile."),
    "list": ("km_core.cli.fleet:list_command", "List sandboxes."),
    "status": ("km_core.cli.fleet:status", "Show sandboxes: state, enforcement, spend by model."),
    "exec": ("km_core.cli.access:exec_command", "Run a command inside; its exit code is passed through."),
    "shell": ("km_core.cli.access:shell", "Open a shell inside."),
    "agent": ("km_core.cli.agent:agent", "Run an agent inside a sandbox."),
    "logs": ("km_core.cli.observe:logs", "Show what a sandbox did, or only what was denied."),
    "policy": ("km_core.cli.policy:policy", "Show and change what a living sandbox may reach."),
    "allow": ("km_core.cli.allow:allow", "Open a host to a sandbox for a time."),
    "deny": ("km_core.cli.allow:deny", "Take back what `km allow` opened."),
    "stop": ("km_core.cli.power:stop", "End a sandbox's processes; its files stay."),
    "pause": ("km_core.cli.power:pause", "Freeze a sandbox."),
    "resume": ("km_core.cli.power:resume", "Bring a stopped or paused sandbox back."),
    "destroy": ("km_core.cli.power:destroy", "Remove sandboxes; their audit chains stay."),
    "reconcile": ("km_core.cli.power:reconcile_command", "Remove what an interrupted operation left."),
    "budget": ("km_core.cli.budget:budget", "Show and raise budgets."),
    "secrets": ("km_core.cli.secrets:secrets", "Keep the credentials that the gate injects."),
    "explain": (
        "km_core.cli.explain:explain",
        "Say what a profile allows, with the functions the wire uses.",
    ),
    "wheelhouse": (
        "km_core.cli.wheelhouse:wheelhouse",
        "Collect what a profile's host installs: locked wheels, nothing else.",
    ),
    "plugins": ("km_core.cli.plugins:plugins", "Show installed plugins and why one is not used."),
    "audit": ("km_core.cli.observe:audit", "Show and verify the audit chains."),
    "attack": ("km_core.cli.attack:attack", "Try the known ways out of a running sandbox."),
    "doctor": ("km_core.cli.observe:doctor", "Check what this host can do."),
    "daemon": ("km_core.cli.daemon:daemon", "Show, start or stop the control plane."),
    "completion": ("km_core.cli.completion:completion", "Print a completion script for your shell."),
    "_internal": ("km_core.cli.internal:internal", ""),
}
_ALIASES = {"ls": "list", "kill": "destroy", "start": "resume", "sh": "shell"}


class LazyGroup(click.Group):
    """A group whose commands are imported when they run."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 - click's signature
        """Return every command's name, those of plugins from metadata only."""
        names = [name for name in _TABLE if not name.startswith("_")]
        return names + sorted(name for name in plugin_commands() if name not in _TABLE)

    def aliases(self) -> dict[str, str]:
        """Return the further names of commands."""
        return dict(_ALIASES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002 - click's
        """Import one command."""
        name = _ALIASES.get(cmd_name, cmd_name)
        if name in _TABLE:
            return _load(_TABLE[name][0])
        return _load_from_plugin(name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002 - click's
        """Write the command list without importing anything."""
        rows = [(name, text) for name, (_, text) in _TABLE.items() if text]
        rows += sorted(plugin_commands().items())
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a command's name from the table; click's own way imports every command."""
        from click.shell_completion import CompletionItem

        items = [
            CompletionItem(name, help=_TABLE[name][1] if name in _TABLE else None)
            for name in self.list_commands(ctx)
            if name.startswith(incomplete)
        ]
        return items + click.Command.shell_complete(self, ctx, incomplete)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Add a spelling suggestion to click's own message."""
        known = [*self.list_commands(ctx), *_ALIASES, "_internal"]
        if args and args[0] not in known and not args[0].startswith("-"):
            import difflib

            near = difflib.get_close_matches(args[0], [name for name in known if name[0] != "_"], n=1)
            hint = f" Did you mean {near[0]}?" if near else " km --help lists the commands."
            raise click.UsageError(f"No such command {args[0]!r}.{hint}", ctx)
        return super().resolve_command(ctx, args)


def _load(target: str) -> click.Command:
    module, _, name = target.partition(":")
    command: click.Command = getattr(import_module(module), name)
    return command


def _load_entry(entry: Any) -> click.Command:
    """Import a plugin's command; raises `PluginError` naming its distribution."""
    from km_core.errors import PluginError

    try:
        command: click.Command = entry.load()
    except Exception as error:
        dist = entry.dist
        raise PluginError(
            f"the command cannot be imported: {type(error).__name__}",
            plugin=entry.name,
            distribution=dist.name if dist is not None else "",
            version=dist.version if dist is not None else "",
            hint="reinstall the distribution",
        ) from error
    return command


def _load_from_plugin(name: str) -> click.Command | None:
    if name not in plugin_commands():
        return None
    from importlib.metadata import entry_points

    entry = next(iter(entry_points(group=COMMANDS, name=name)), None)
    return None if entry is None else _load_entry(entry)


def _version(ctx: click.Context, _param: click.Parameter, value: bool) -> None:
    if not value or ctx.resilient_parsing:
        return
    click.echo(f"km {version()}")
    ctx.exit()


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Start with: km validate profile.yaml, then km create profile.yaml",
)
@click.option(
    "--version",
    is_flag=True,
    callback=_version,
    expose_value=False,
    is_eager=True,
    help="Show the version and exit.",
)
@click.option(
    "--log-level",
    type=click.Choice(["trace", "debug", "info", "warn", "error"]),
    default=None,
    help="How much to log on stderr.",
)
def cli(log_level: str | None) -> None:
    """Run AI agents in policy-driven sandboxes: what may be reached, spent and pushed is in a profile."""
    if log_level is not None:
        import os

        os.environ["KM_LOG_LEVEL"] = log_level


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``km`` and return its exit code (spec/cli.md section 1.2); used as console script."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if argv is None:
        from km_core.lifecycle.interrupts import end_on_signals

        end_on_signals()
    code = _run(arguments)
    if argv is None:
        sys.exit(code)
    return code


def _run(arguments: list[str]) -> int:
    from km_core.errors import KmError

    try:
        result = cli.main(args=arguments, prog_name="km", standalone_mode=False)
    except click.exceptions.Exit as leaving:
        return leaving.exit_code
    except (click.Abort, KeyboardInterrupt):
        click.echo("Interrupted.", err=True)
        return 130
    except click.ClickException as error:
        return _misused(error, arguments)
    except KmError as error:
        return _failed(error, arguments)
    except OSError as error:
        what = error.strerror or type(error).__name__
        return _failed(KmError(what, where=str(error.filename or "")), arguments)
    except Exception as error:  # noqa: BLE001 - nobody is to be shown a traceback
        return _unexpected(error, arguments)
    return result if isinstance(result, int) else 0


def _wants_json(arguments: list[str]) -> bool:
    """Say whether ``--json`` is this command's own option, not one of a command that runs inside."""
    command = next((item for item in arguments if not item.startswith("-")), "")
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    return "--json" in own and _ALIASES.get(command, command) not in {"exec", "shell"}


def _failed(error: KmError, arguments: list[str]) -> int:
    from km_core.cli.output import show_error

    show_error(error, as_json=_wants_json(arguments))
    return error.exit_code


def _misused(error: click.ClickException, arguments: list[str]) -> int:
    """Show one of click's errors: its own form for people, ours as JSON."""
    from km_core.errors import UsageError

    if _wants_json(arguments):
        from km_core.cli.output import emit_json

        emit_json({"error": UsageError(error.format_message()).to_dict()})
    error.show()
    return 2 if isinstance(error, click.UsageError) else 1


def _unexpected(error: Exception, arguments: list[str]) -> int:
    """Say where something went wrong; the error's text may hold anything, so it is redacted."""
    import os
    import traceback

    from km_core.audit.redact import redact_text
    from km_core.errors import InternalError

    frames = traceback.extract_tb(error.__traceback__)
    place = f"{frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    why = redact_text(f"{type(error).__name__}: {error}")[:500]
    if os.environ.get("KM_LOG_LEVEL") in {"debug", "trace"}:
        click.echo(redact_text("".join(traceback.format_exception(error))), err=True)
    hint = "this is a fault of km: please report it with what KM_LOG_LEVEL=debug shows"
    return _failed(InternalError("something unexpected happened", where=place, why=why, hint=hint), arguments)


if __name__ == "__main__":
    main()
