"""``km list`` and ``km status``."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING, Any

import click

from km_core.cli.output import dollars, emit_json, iso, note, paint, remaining, table
from km_core.errors import KmError, NotFoundError

if TYPE_CHECKING:
    from km_core.lifecycle.session import Session
    from km_core.types import SandboxRecord


def describe(session: Session, record: SandboxRecord) -> dict[str, Any]:
    """Return a sandbox as JSON data in the stable form of DESIGN section 11."""
    summary = session.control.call("budget.get", id=record.id)
    return {
        "id": record.id,
        "sandbox_id": record.id,
        "alias": record.alias or None,
        "number": record.number,
        "profile": record.profile,
        "substrate": record.substrate,
        "region": record.region or None,
        "state": str(record.state),
        "status": str(record.state),
        "reason": record.reason or None,
        "created_at": iso(record.created_at),
        "expires_at": iso(record.expires_at),
        "ttl_remaining": remaining(record.expires_at) if record.expires_at else None,
        "idle_timeout_s": record.idle_timeout_s or None,
        "teardown_policy": record.teardown,
        "restarts": record.restarts,
        "enforcement": record.redirect or None,
        "limits": record.limits_status or None,
        "labels": record.labels,
        "budget": budget_json(summary),
    }


def budget_json(summary: dict[str, Any]) -> dict[str, Any]:
    """Return a budget summary in dollars (floats for reading; the ledger keeps integers)."""
    from km_core.ledger.money import usd_number

    def usd(value: int | None) -> float | None:
        return None if value is None else usd_number(value)

    pools: dict[str, Any] = {}
    for pool in ("ai", "compute"):
        data = summary.get(pool) or {}
        limit, spent = data.get("limit_nusd"), data.get("spent_nusd", 0)
        pools[pool] = {
            "limit_usd": usd(limit),
            "spent_usd": usd(spent),
            "reserved_usd": usd(data.get("reserved_nusd", 0)),
            "reserved_nusd": data.get("reserved_nusd", 0),
            "percent": round(100 * spent / limit, 1) if limit else None,
            "spent_nusd": spent,
            "limit_nusd": limit,
        }
    pools["ai"]["exhausted"] = bool((summary.get("ai") or {}).get("exhausted"))
    pools["ai"]["models"] = [
        {**model, "spent_usd": usd(model["spent_nusd"])}
        for model in (summary.get("ai") or {}).get("models", [])
    ]
    pools["warning_threshold"] = summary.get("warning_threshold")
    return pools


def _all_of(session: Session, records: list[SandboxRecord]) -> list[dict[str, Any]]:
    """Describe sandboxes; one that is destroyed meanwhile is left out."""
    described = []
    for record in records:
        with contextlib.suppress(NotFoundError):
            described.append(describe(session, record))
    return described


@click.command("list", epilog="Example: km list --json | jq '.[].id'")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--wide", is_flag=True, help="More columns.")
def list_command(as_json: bool, wide: bool) -> None:
    """List the sandboxes of this KM_HOME."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        records = session.records()
        if as_json:
            emit_json(_all_of(session, records))
            return
        if not records:
            note("No running sandboxes.")
            return
        headers = ["#", "ALIAS", "SANDBOX ID", "STATUS", "TTL"]
        if wide:
            headers = ["#", "ALIAS", "SANDBOX ID", "PROFILE", "SUBSTRATE", "STATUS", "TTL", "AI SPEND"]
        rows = []
        for record in records:
            state = paint(str(record.state), str(record.state))
            row = [str(record.number), record.alias or "-", record.id]
            if wide:
                try:
                    ai = session.control.call("budget.get", id=record.id)["ai"]
                except NotFoundError:
                    continue
                spend = f"{dollars(ai['spent_nusd'])} / {dollars(ai['limit_nusd'])}"
                row += [record.profile, record.substrate, state, remaining(record.expires_at), spend]
            else:
                row += [state, remaining(record.expires_at)]
            rows.append(row)
        table(headers, rows)
    finally:
        session.close()


@click.command(epilog="Example: km status dev1")
@click.argument("ref", required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def status(ref: str | None, as_json: bool) -> None:
    """Show one sandbox, or all: state, enforcement, limits, time left, spend by model."""
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        records = [session.record(ref)] if ref else session.records()
        described = []
        for record in records:
            try:
                data = describe(session, record)
            except NotFoundError:
                if ref:
                    raise
                continue
            data["runtime"] = _runtime(session, record)
            data["upstreams"] = {host: up.url for host, up in session.config.upstreams.items()}
            described.append(data)
            if not as_json:
                _show(record, data)
        if as_json:
            emit_json(described[0] if ref else described)
        elif not records:
            note("No running sandboxes.")
    finally:
        session.close()


def _runtime(session: Session, record: SandboxRecord) -> dict[str, Any]:
    try:
        return session.substrate(record.substrate).status(session.box(record))
    except KmError as error:
        return {"running": False, "error": str(error)}


def _show(record: SandboxRecord, data: dict[str, Any]) -> None:
    runtime = data["runtime"]
    gate = runtime.get("gate") or {}
    lines = [
        ("Sandbox", f"#{record.number} {record.id}" + (f" ({record.alias})" if record.alias else "")),
        ("Profile", record.profile),
        ("Substrate", record.substrate),
        (
            "Status",
            paint(str(record.state), str(record.state)) + (f" ({record.reason})" if record.reason else ""),
        ),
        ("Created", data["created_at"]),
        ("Expires", _expiry(record, data)),
        ("Teardown", record.teardown),
    ]
    if record.idle_timeout_s:
        left = remaining(record.last_activity_at + record.idle_timeout_s)
        lines.append(("Idle", f"{left} left of {record.idle_timeout_s // 60}m"))
    lines += [
        (
            "Enforcement",
            (
                f"proxy ({record.redirect or '-'}; gate {'pid ' + str(gate['pid']) if gate.get('pid') else 'down'}, "
                f"restarts {gate.get('restarts', 0)}, lease {gate.get('lease', '-')})"
            ),
        ),
        ("Limits", record.limits_status or "-"),
    ]
    if data["upstreams"]:
        lines.append(("Upstreams", ", ".join(f"{host} -> {url}" for host, url in data["upstreams"].items())))
    width = max(len(name) for name, _ in lines)
    for name, text in lines:
        click.echo(f"{name + ':':<{width + 1}} {text}")
    show_budget(data["budget"])
    click.echo("")


def _expiry(record: SandboxRecord, data: dict[str, Any]) -> str:
    if not record.expires_at:
        left = int(record.ttl_remaining_s)
        return f"{left // 60}m{left % 60:02d}s after it is resumed" if left else "never"
    expired = data["ttl_remaining"] == "expired"
    return f"{data['expires_at']} ({'expired' if expired else 'in ' + data['ttl_remaining']})"


def show_budget(budget: dict[str, Any]) -> None:
    """Print the budget block of spec/metering-budget.md section 9."""
    click.echo("Budget:")
    for pool, title in (("compute", "Compute"), ("ai", "AI")):
        data = budget[pool]
        spent, limit = data["spent_nusd"], data["limit_nusd"]
        if limit is None and not spent:
            if pool == "ai":
                click.echo("  AI:      $0.0000, no ceiling")
            continue
        share = f" ({data['percent']}%)" if data["percent"] is not None else ""
        ceiling = dollars(limit) if limit is not None else "no ceiling"
        reserved = data["reserved_nusd"]
        held = f", {dollars(reserved)} reserved" if reserved else ""
        click.echo(f"  {title + ':':<8} {dollars(spent)} / {ceiling}{share}{held}")
    for provider in sorted({model["provider"] for model in budget["ai"]["models"]}):
        click.echo(f"    {provider}:")
        for model in (m for m in budget["ai"]["models"] if m["provider"] == provider):
            star = "*" if model.get("rate_source") == "fallback" else ""
            cached = model.get("cache_read_tokens", 0)
            extra = f", {_tokens(cached)} cached" if cached else ""
            click.echo(
                f"      {model['model'] + star + ':':<34} {dollars(model['spent_nusd'])} "
                f"({_tokens(model['input_tokens'])} in / {_tokens(model['output_tokens'])} out{extra}, "
                f"{model['calls']} calls)"
            )
    if budget["ai"]["exhausted"]:
        click.echo("  AI calls are refused: the ceiling is reached. Raise it with km budget add.")
    if budget.get("warning_threshold") is not None and budget["ai"]["limit_nusd"] is not None:
        click.echo(f"  Warning threshold: {round(budget['warning_threshold'] * 100)}%")


def _tokens(count: int) -> str:
    if count < 1000:
        return str(count)
    return f"{count / 1000:.1f}k" if count < 1_000_000 else f"{count / 1_000_000:.1f}M"


def age(since: float) -> str:
    """Return how long ago Unix seconds *since* were, in seconds or minutes."""
    seconds = int(time.time() - since)
    return f"{seconds}s" if seconds < 120 else f"{seconds // 60}m"
