"""``km daemon``: the control plane's process."""

from __future__ import annotations

import click

from km_core.cli.output import emit_json, iso, note
from km_core.errors import ControlUnavailableError


@click.group()
def daemon() -> None:
    """Show, start or stop the control plane; it normally starts by itself."""


@daemon.command(epilog="Example: km daemon status --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def status(ctx: click.Context, as_json: bool) -> None:
    """Say whether the control plane runs, without starting it; exit code 1 when it does not."""
    from km_core.config import load_config
    from km_core.control.rpc import ControlClient
    from km_core.lifecycle.files import require_own

    config = load_config()
    require_own(config.runtime_dir)
    try:
        with ControlClient(config.runtime_dir / "kmd.sock", timeout_s=5) as client:
            answer = client.call("ping")
    except ControlUnavailableError:
        if as_json:
            emit_json({"running": False})
        else:
            click.echo("kmd is not running (it starts with the next command that needs it).")
        ctx.exit(1)
    if as_json:
        emit_json({"running": True, **answer, "started_at": iso(answer["started_at"])})
    else:
        click.echo(
            f"kmd runs: pid {answer['pid']}, version {answer['version']}, since {iso(answer['started_at'])}"
        )


@daemon.command(epilog="Example: km daemon start")
def start() -> None:
    """Start the control plane."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        note(f"kmd runs: pid {session.control.call('ping')['pid']}")
    finally:
        session.close()


@daemon.command(epilog="Example: km daemon stop")
def stop() -> None:
    """Stop the control plane; supervisors of running sandboxes start it again."""
    from km_core.config import load_config
    from km_core.control.rpc import ControlClient
    from km_core.lifecycle.files import require_own

    config = load_config()
    require_own(config.runtime_dir)
    try:
        with ControlClient(config.runtime_dir / "kmd.sock", timeout_s=5) as client:
            client.call("shutdown")
    except ControlUnavailableError:
        note("kmd is not running.")
        return
    note("kmd stopped.")
