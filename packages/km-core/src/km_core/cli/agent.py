"""``km agent``: run an agent program inside a sandbox."""

from __future__ import annotations

import sys

import click

from km_core.cli.output import emit_json, note, printable, table


@click.group()
def agent() -> None:
    """Run agents inside sandboxes."""


@agent.command("list", epilog="Example: km agent list --json")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def list_agents(as_json: bool) -> None:
    """List the agents that installed plugins offer."""
    from km_core.plugins import load_plugins

    registry = load_plugins()
    owners = registry.owners("km_agents")
    rows = [
        {"name": name, "program": each.program, "plugin": owners[name], "summary": each.summary}
        for name, each in registry.agents().items()
    ]
    if as_json:
        emit_json(rows)
    elif not rows:
        note("No installed plugin offers an agent.")
    else:
        table(["AGENT", "PROGRAM", "PLUGIN", "SUMMARY"], [list(row.values()) for row in rows])


@agent.command(
    epilog="""\b
Examples:
  km agent run dev1 --agent goose --prompt "fix the failing test"
  km agent run dev1 --agent goose --prompt - --json < task.txt"""
)
@click.argument("ref")
@click.option("--agent", "name", required=True, metavar="NAME", help="Which agent (km agent list).")
@click.option("--prompt", required=True, metavar="TEXT", help="What it is asked; - reads standard input.")
@click.option("--session", "resumed", default="", metavar="ID", help="Go on with an earlier turn's session.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document; the output goes to stderr.")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[-- ARGS]...")
@click.pass_context
def run(
    ctx: click.Context,
    ref: str,
    name: str,
    prompt: str,
    resumed: str,
    as_json: bool,
    arguments: tuple[str, ...],
) -> None:
    """
    Run one turn of an agent inside sandbox REF.

    Its output is streamed; its exit code is passed through, and 1 when it says itself that it failed.
    """
    from km_core.errors import NotFoundError
    from km_core.ledger.money import usd_number
    from km_core.lifecycle.agent import run_turn
    from km_core.lifecycle.session import open_session
    from km_core.types import AgentRequest

    text = _standard_input() if prompt == "-" else prompt
    session = open_session()
    try:
        offers = session.plugins.agents()
        if name not in offers:
            why, hint = session.plugins.remedy(f"km-agent-{name}")
            known = ", ".join(offers) or "none"
            raise NotFoundError(
                f"no installed plugin offers the agent {name!r}", why=why, hint=f"{hint}; installed: {known}"
            )
        record = session.record(ref)
        request = AgentRequest(text, arguments, session=resumed)
        turn = run_turn(session, record, offers[name], request, out=2 if as_json else 1)
    finally:
        session.close()
    result = turn.result
    if as_json:
        cost = result.cost_nusd
        emit_json(
            {
                "sandbox_id": record.id,
                "agent": name,
                "ok": result.ok,
                "text": result.text,
                "session": result.session,
                "cost_usd": None if cost is None else usd_number(cost),
                "exit_code": turn.code,
                "truncated": turn.cut,
            }
        )
    elif result.session:
        # It comes from inside.
        note(f"session: {printable(result.session)}")
    ctx.exit(turn.code or (0 if result.ok else 1))


def _standard_input() -> str:
    """Return what is on standard input; more than a prompt may have is not waited for."""
    from km_core.errors import UsageError
    from km_core.lifecycle.agent import MAX_PROMPT_BYTES

    given = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(given) > MAX_PROMPT_BYTES:
        raise UsageError(
            f"the prompt has more than {MAX_PROMPT_BYTES} bytes",
            hint="put the text into a file in the sandbox and name that in the prompt",
        )
    try:
        return given.decode()
    except UnicodeDecodeError as error:
        raise UsageError("the prompt on standard input is not UTF-8", why=f"at byte {error.start}") from error
