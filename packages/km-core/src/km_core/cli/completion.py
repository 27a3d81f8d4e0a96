"""``km completion``: shell completion scripts, from click's own generator."""

from __future__ import annotations

import click


@click.command(epilog='Example: eval "$(km completion bash)"')
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script for SHELL."""
    from click.shell_completion import get_completion_class

    from km_core.cli.main import cli

    generator = get_completion_class(shell)
    if generator is None:
        raise click.UsageError(f"there is no completion for {shell}")
    click.echo(generator(cli, {}, "km", "_KM_COMPLETE").source())
