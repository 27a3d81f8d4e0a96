"""``km exec`` and ``km shell``."""

from __future__ import annotations

import sys

import click

from km_core.errors import GuardError
from km_core.types import SandboxState


@click.command(
    "exec",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="Example: km exec dev1 -- python3 -c 'print(1)'",
)
@click.option("--root", is_flag=True, help="As root, where the substrate has one.")
@click.option("--workdir", metavar="DIR", help="Start directory; default: the profile's workingDir.")
@click.option(
    "--env", "-e", "variables", multiple=True, metavar="K=V", help="Set a variable for this command."
)
@click.option("--tty/--no-tty", "-t", default=None, help="With a terminal; default: as stdin and stdout are.")
@click.argument("ref")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, required=True)
@click.pass_context
def exec_command(
    ctx: click.Context,
    ref: str,
    command: tuple[str, ...],
    root: bool,
    workdir: str | None,
    variables: tuple[str, ...],
    tty: bool | None,
) -> None:
    """Run COMMAND inside sandbox REF; stdin, stdout, stderr and the exit code are passed through."""
    ctx.exit(_run(ref, list(command), root=root, workdir=workdir, variables=variables, tty=tty))


@click.command(epilog="Example: km shell dev1")
@click.option("--root", is_flag=True, help="As root, where the substrate has one.")
@click.argument("ref")
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def shell(ctx: click.Context, ref: str, command: tuple[str, ...], root: bool) -> None:
    """Open a shell inside sandbox REF, or run COMMAND with a terminal."""
    ctx.exit(_run(ref, list(command), root=root, workdir=None, variables=(), tty=None))


def _run(
    ref: str,
    command: list[str],
    *,
    root: bool,
    workdir: str | None,
    variables: tuple[str, ...],
    tty: bool | None,
) -> int:
    from km_core.lifecycle.session import open_session
    from km_core.lifecycle.workload import workload_env

    session = open_session()
    try:
        record = session.record(ref)
        if record.state is not SandboxState.RUNNING:
            raise GuardError(
                f"the sandbox is {record.state}" + (f" ({record.reason})" if record.reason else ""),
                where=record.id,
                hint=f"km resume {record.alias or record.id}",
            )
        box = session.box(record)
        env = workload_env(box)
        for item in variables:
            name, equals, value = item.partition("=")
            if not equals:
                raise click.UsageError(f"--env wants K=V, not {item!r}")
            env[name] = value
        if command and command[0] == "--":
            command = command[1:]
        return session.substrate(record.substrate).exec(
            box,
            command or [box.plan.workload.shell, "-l"],
            env=env,
            cwd=workdir or box.plan.workload.working_dir,
            root=root,
            tty=(sys.stdin.isatty() and sys.stdout.isatty()) if tty is None else tty,
        )
    finally:
        session.close()
