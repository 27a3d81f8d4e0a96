"""``km attack``."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from km_core.cli.output import emit_json, note, paint, printable, table
from km_core.errors import GuardError, UsageError
from km_core.types import SandboxState

if TYPE_CHECKING:
    from km_core.attack import Case, Result, Target
    from km_core.control.substrate import Box

_CLOUD = ("s3.us-east-1.amazonaws.com", "s3.us-east-1.api.aws", "sts.us-east-1.amazonaws.com")
"""Hosts of AWS that a suffix may open."""


@click.command(epilog="Example: km attack dev1 --row B-44 --json")
@click.argument("ref", required=False)
@click.option(
    "--row", "rows", multiple=True, metavar="ROW", help="Only this row (B-07), or one case (B-44 ipv6)."
)
@click.option(
    "--allowed",
    metavar="NAME",
    default="",
    help="An allowed host that may be dialled; default: one that `upstreams` in the configuration stands in for.",
)
@click.option(
    "--rebind", multiple=True, metavar="NAME", help="An allowed name that leads to an address of this host."
)
@click.option(
    "--list", "listing", is_flag=True, help="List the cases, and rows that cannot be tried; try nothing."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.pass_context
def attack(
    ctx: click.Context,
    ref: str | None,
    rows: tuple[str, ...],
    allowed: str,
    rebind: tuple[str, ...],
    listing: bool,
    as_json: bool,
) -> None:
    """
    Try every known way out of the running sandbox REF, as each of its users.

    km listens on this host's addresses meanwhile; what arrives there from inside is a failure.  Nothing
    else is contacted, and nothing in the sandbox changes but a temporary directory.  Exit code 1 when a
    case fails, or when none could be tried.
    """
    cases = _chosen(rows)
    if listing:
        _list(cases, as_json=as_json)
        return
    if ref is None:
        raise UsageError("there is no sandbox to try", hint="km attack REF, or km attack --list")
    results = _run(ref, cases, allowed=allowed, rebind=rebind, quiet=as_json)
    counts = {kind: sum(r.result == kind for r in results) for kind in ("pass", "fail", "skipped")}
    if as_json:
        emit_json(
            {
                "ok": counts["fail"] == 0 and counts["pass"] > 0,
                "counts": counts,
                "results": [result.to_dict() for result in results],
                "elsewhere": _elsewhere(rows),
            }
        )
    else:
        _summary(results, counts)
    if counts["fail"] or not counts["pass"]:
        ctx.exit(1)


def _chosen(rows: tuple[str, ...]) -> list[Case]:
    from km_core.attack import CASES, ELSEWHERE

    for row in rows:
        if row in ELSEWHERE:
            raise UsageError(f"{row} cannot be tried against a running sandbox", why=ELSEWHERE[row])
        if not any(row in {case.row, case.id} for case in CASES):
            raise UsageError(f"there is no row {row!r}", hint="km attack --list")
    return [case for case in CASES if not rows or case.row in rows or case.id in rows]


def _elsewhere(rows: tuple[str, ...]) -> dict[str, str]:
    from km_core.attack import ELSEWHERE

    return {} if rows else dict(ELSEWHERE)


def _list(cases: list[Case], *, as_json: bool) -> None:
    from km_core.attack import ELSEWHERE

    if as_json:
        data: list[dict[str, Any]] = [
            {"row": c.row, "name": c.name, "layer": c.layer, "title": c.title, "needs": list(c.needs)}
            for c in cases
        ]
        emit_json({"cases": data, "elsewhere": dict(ELSEWHERE)})
        return
    table(["ROW", "CASE", "LAYER", "WHAT HOLDS"], [[c.row, c.name, c.layer, c.title] for c in cases])
    for row, reason in ELSEWHERE.items():
        note(f"{row}: not here: {reason}")


def _run(ref: str, cases: list[Case], *, allowed: str, rebind: tuple[str, ...], quiet: bool) -> list[Result]:
    from km_core.attack import Attack, Canary
    from km_core.lifecycle.session import open_session

    session = open_session()
    try:
        record = session.record(ref)
        if record.state is not SandboxState.RUNNING:
            raise GuardError(
                f"the sandbox is {record.state}",
                where=record.id,
                hint=f"km resume {record.alias or record.id}",
            )
        substrate = session.substrate(record.substrate)
        if "exec" not in substrate.capabilities:
            raise GuardError(f"no command can run inside on {record.substrate}", where=record.id)
        target = _target(substrate, session.box(record), record.plan_digest, allowed, rebind)
        with tempfile.TemporaryDirectory(prefix="kma") as directory, Canary(Path(directory)) as canary:
            return Attack(target, canary, _quiet if quiet else _tell).run(cases)
    finally:
        session.close()


def _target(substrate: Any, box: Box, recorded: str, allowed: str, rebind: tuple[str, ...]) -> Target:
    from km_core.attack import Target, host_addresses
    from km_core.lifecycle.workload import workload_env
    from km_core.plugins import load_plugins
    from km_core.policy import NetworkPolicy, ai_vendor, canonical_name
    from km_core.policy.aws import AwsGuard
    from km_core.secrets import AwsAccess

    policy = NetworkPolicy.from_plan(box.plan.network, private_hosts=box.config.private_hosts)
    try:
        named = [canonical_name(name) for name in ((allowed,) if allowed else ()) + rebind]
    except ValueError as error:
        raise UsageError("that is no host name", why=str(error)) from error
    for name in named:
        if not policy.connect(name, 443).allow:
            raise UsageError(f"the profile does not allow {name}", hint="name one that it allows")
    played = [host for host in sorted(box.config.upstreams) if policy.connect(host, 443).allow]
    stand_ins = [host for host in played if not ai_vendor(host)]
    guard = AwsGuard(box.plan.network.hosts, AwsAccess(), git=box.plan.git.mode != "none")
    exact = [rule.pattern for rule in box.plan.network.hosts if rule.kind == "exact"]
    judged = [host for host in (*_CLOUD, *exact) if guard.covers(host) and policy.connect(host, 443).allow]
    models = [host for meter in load_plugins().meters().values() for host in meter.hosts]
    addresses = dict.fromkeys(a.partition("%")[0] for a in host_addresses() if not a.startswith("fe80"))
    return Target(
        substrate=substrate,
        box=box,
        env=workload_env(box),
        recorded=recorded,
        addresses=tuple(addresses),
        allowed=named[0] if allowed else next(iter(stand_ins), ""),
        rebind=tuple(named[1:] if allowed else named),
        ai=next((host for host in played if ai_vendor(host)), ""),
        model=next((host for host in models if policy.connect(host, 443).allow), ""),
        cloud=next(iter(judged), ""),
    )


def _quiet(result: Result) -> None:
    """Say nothing: the document at the end holds it."""


def _tell(result: Result) -> None:
    verdict = paint(f"{result.result:<7}", {"pass": "allow", "fail": "deny"}.get(result.result, "paused"))
    detail = f" ({printable(result.detail)})" if result.detail else ""
    name = f"{result.row} {result.name}"
    click.echo(f"{verdict} {name:<29} {result.layer:<8} {result.user:<7} {result.title}{detail}")


def _summary(results: list[Result], counts: dict[str, int]) -> None:
    layers = sorted({result.layer for result in results})
    rows = []
    for layer in layers:
        of_layer = [result.result for result in results if result.layer == layer]
        rows.append([layer, *(str(of_layer.count(kind)) for kind in ("pass", "fail", "skipped"))])
    table(["LAYER", "PASS", "FAIL", "SKIPPED"], rows)
    note(f"{counts['pass']} passed, {counts['fail']} failed, {counts['skipped']} skipped")
