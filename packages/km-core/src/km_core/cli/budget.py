"""``km budget``: show and raise budgets."""

from __future__ import annotations

import click

from km_core.cli.output import dollars, emit_json
from km_core.errors import UsageError


@click.group()
def budget() -> None:
    """Show and raise the money a sandbox may spend."""


@budget.command(epilog="Example: km budget add dev1 --ai 5")
@click.argument("ref")
@click.option("--ai", metavar="USD", help="Dollars added to the AI ceiling.")
@click.option("--compute", metavar="USD", help="Dollars added to the compute ceiling.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def add(ref: str, ai: str | None, compute: str | None, as_json: bool) -> None:
    """Raise the ceilings of sandbox REF; calls go on with the next request."""
    from km_core.cli.fleet import budget_json
    from km_core.lifecycle.power import resume_sandbox
    from km_core.lifecycle.session import open_session

    ai_nusd, compute_nusd = _amount(ai, "--ai"), _amount(compute, "--compute")
    if not ai_nusd and not compute_nusd:
        raise UsageError("name an amount above 0", hint="km budget add REF --ai 5")
    session = open_session()
    try:
        record = session.record(ref)
        summary = session.control.call("budget.add", id=record.id, ai_nusd=ai_nusd, compute_nusd=compute_nusd)
        resumed = str(record.state) == "stopped" and record.reason.startswith("budget")
        if resumed:
            resume_sandbox(session, record, reason="budget raised")
        if as_json:
            emit_json({"id": record.id, "resumed": resumed, "budget": budget_json(summary)})
            return
        pools = [
            f"{title} {dollars(summary[pool]['spent_nusd'])}/{dollars(summary[pool]['limit_nusd'])}"
            for pool, title in (("compute", "compute"), ("ai", "AI"))
            if summary[pool]["limit_nusd"] is not None
        ]
        click.echo(f"Budget updated: {', '.join(pools)}")
        if resumed:
            click.echo(f"Sandbox {record.id} resumed.")
    finally:
        session.close()


@budget.command(epilog="Example: km budget show dev1 --json")
@click.argument("ref")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def show(ref: str, as_json: bool) -> None:
    """Show what sandbox REF has spent, by model."""
    from km_core.cli.fleet import budget_json, show_budget
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        record = session.record(ref)
        data = budget_json(session.control.call("budget.get", id=record.id))
        if as_json:
            emit_json({"id": record.id, "budget": data})
        else:
            show_budget(data)
    finally:
        session.close()


def _amount(text: str | None, option: str) -> int:
    if text is None:
        return 0
    from km_core.ledger.money import nusd_from_usd

    return nusd_from_usd(text, where=option)
