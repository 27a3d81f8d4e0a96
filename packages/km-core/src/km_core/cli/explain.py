"""``km explain``: ask the policy the questions that the wire asks."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from km_core.cli.explain_at import at
from km_core.cli.output import emit_json, note, paint, printable
from km_core.errors import NotFoundError, UsageError

if TYPE_CHECKING:
    from km_core.types import Verdict

_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group()
def explain() -> None:
    """Say what a profile allows, with the same functions that the gate uses."""


explain.add_command(at)


def _show(verdict: Verdict, as_json: bool) -> None:
    if as_json:
        emit_json(verdict.to_dict())
        return
    word = "allow" if verdict.allow else "deny"
    click.echo(f"{paint(word, word)}: {printable(verdict.reason)}")
    click.echo(f"  rule:  {printable(verdict.rule)}\n  layer: {verdict.layer}")


@explain.command(
    epilog="""\b
Examples:
  km explain egress profile.yaml https://api.example.org/v1
  km explain egress sealed '[2001:db8::1]:443'
  km explain egress profile.yaml https://api.anthropic.com/v1/messages --method POST"""
)
@click.argument("file")
@click.argument("target", metavar="URL|HOST[:PORT]")
@click.option("--method", default="", help="HTTP method for a URL with a path; default: any usual one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def egress(file: str, target: str, method: str, as_json: bool) -> None:
    """
    Say whether a sandbox of profile FILE (or a built-in) may reach TARGET.

    The path of a URL matters on hosts whose model calls are metered; elsewhere the gate does not see it.
    """
    from km_core.compile.explain import explain_target
    from km_core.compile.pipeline import egress_rules
    from km_core.config import load_config
    from km_core.plugins import load_plugins

    rules = egress_rules(file, load_config(), load_plugins())
    try:
        verdict = explain_target(rules, target, method=method)
    except ValueError as error:
        raise UsageError(f"{target!r} cannot be judged", why=str(error)) from error
    _show(verdict, as_json)


@explain.command(epilog="Example: km explain git profile.yaml push my-org/api --ref main")
@click.argument("file")
@click.argument("operation", type=click.Choice(["fetch", "push"]))
@click.argument("repo", metavar="OWNER/REPO")
@click.option("--ref", help="The ref that would be pushed: a branch, or from refs/ on.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def git(file: str, operation: str, repo: str, ref: str | None, as_json: bool) -> None:
    """Say whether a repository may be fetched, or a ref pushed, by profile FILE (or a built-in)."""
    from km_core.compile.explain import as_plain_host, explain_git, filters_git
    from km_core.compile.pipeline import data_from_file, egress_rules
    from km_core.config import load_config
    from km_core.plugins import load_plugins

    config, plugins = load_config(), load_plugins()
    access = data_from_file(file, config, plugins)["spec"].get("sourceAccess") or {}
    try:
        verdict = explain_git(access, operation, repo, ref)
    except ValueError as error:
        raise UsageError(
            str(error), hint="write the repository as owner/name, a ref as main or refs/tags/v1"
        ) from error
    if not filters_git(access):
        verdict = as_plain_host(verdict, egress_rules(file, config, plugins).policy)
    _show(verdict, as_json)


@explain.command(
    epilog="Example: km explain usage --host api.anthropic.com --path /v1/messages --request q.json --response r.json"
)
@click.option("--host", required=True, help="Host that answered.")
@click.option("--path", "target", required=True, help="Path that was asked for.")
@click.option("--status", default=200, show_default=True, help="Status of the answer.")
@click.option("--header", "headers", multiple=True, metavar="K: V", help="A header of the answer.")
@click.option("--request", "request_file", type=_FILE, help="Body of the request, which names the model.")
@click.option("--response", "response_file", type=_FILE, required=True, help="Body of the answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def usage(
    host: str,
    target: str,
    status: int,
    headers: tuple[str, ...],
    request_file: Path | None,
    response_file: Path,
    as_json: bool,
) -> None:
    """Price a recorded model call as the gate would."""
    from km_core.config import load_config
    from km_core.ledger import PriceTable, format_usd, price, usd_number
    from km_core.ledger.overlay import load_overlay
    from km_core.plugins import load_plugins
    from km_core.policy import canonical_name
    from km_core.types import EndpointKind

    try:
        name = canonical_name(host)
    except ValueError as error:
        raise UsageError(f"--host {host!r} is no host name", why=str(error)) from error
    meter = next((m for m in load_plugins().meters().values() if name in m.hosts), None)
    if meter is None:
        raise NotFoundError(f"no installed meter owns the host {name}", hint="km plugins list")
    parsed = _headers(headers)
    endpoint = meter.endpoint("POST", target, {})
    if endpoint.kind is EndpointKind.REFUSED:
        raise UsageError(f"{target} is not a metered endpoint", why=endpoint.reason)
    request = request_file.read_bytes() if request_file is not None else b"{}"
    plan = meter.plan_call(endpoint, {}, request)
    parser = meter.parser(endpoint, plan, status, parsed)
    decoder = meter.decoder(parsed.get("content-encoding", ""))
    with response_file.open("rb") as source:
        while chunk := source.read(65536):
            parser.feed(decoder.feed(chunk))
    parser.feed(decoder.finish())
    seen = parser.finish()
    priced = price(seen, PriceTable.load(load_overlay(load_config())))
    data: dict[str, Any] = {
        "provider": seen.provider,
        "model": seen.model,
        "input_tokens": seen.input_tokens,
        "output_tokens": seen.output_tokens,
        "cache_read_tokens": seen.cache_read_tokens,
        "cache_write_tokens": seen.cache_write_tokens,
        "cost_usd": usd_number(priced.cost_nusd),
        "priced": priced.rate_source != "fallback",
        "rate_source": priced.rate_source,
        "complete": seen.complete,
    }
    if as_json:
        emit_json(data)
        return
    if priced.rate_source == "fallback":
        # An answer need not name the model, so without the request there may be nothing to look up.
        known = (
            "no price of the model is known"
            if request_file
            else "the request, which names the model, is not given"
        )
        note(
            f"warning: {known}, so the dearest known rate counts"
            + ("" if request_file else ": add --request")
        )
    click.echo(
        f"{seen.provider} {seen.model or '(unknown model)'}: {seen.input_tokens} in, {seen.output_tokens} out, "
        f"{seen.cache_read_tokens} cache read, {seen.cache_write_tokens} cache write: "
        f"{format_usd(priced.cost_nusd)} ({priced.rate_source})"
    )


def _headers(items: tuple[str, ...]) -> dict[str, str]:
    result = {}
    for item in items:
        name, colon, value = item.partition(":")
        if not colon:
            raise UsageError(f"--header wants 'K: V', not {item!r}")
        result[name.strip().lower()] = value.strip()
    return result
