"""Hidden commands that km's own processes run."""

from __future__ import annotations

import click


@click.group(hidden=True)
def internal() -> None:
    """Commands of km's own processes."""


@internal.command("ensure-control")
def ensure_control() -> None:
    """Start the control plane when it is gone."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        session.control.call("ping")
    finally:
        session.close()


@internal.command()
@click.argument("sandbox_id")
def recover(sandbox_id: str) -> None:
    """Bring a sandbox back whose supervisor died."""
    from km_core.lifecycle.power import recover_sandbox
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        click.echo(recover_sandbox(session, session.record(sandbox_id)))
    finally:
        session.close()


@internal.command()
@click.argument("sandbox_id")
@click.option("--cause", default="ttl")
def expire(sandbox_id: str, cause: str) -> None:
    """Carry out the teardown policy of a sandbox."""
    from km_core.lifecycle.power import expire_sandbox
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        click.echo(expire_sandbox(session, session.record(sandbox_id), cause))
    finally:
        session.close()
