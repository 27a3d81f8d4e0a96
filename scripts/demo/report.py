"""The quick start's report, for people."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

from demo.journey import denials

if TYPE_CHECKING:
    from demo.journey import Facts

_COLOURS = {"ok": 32, "bad": 31, "title": 1}


def paint(text: str, kind: str) -> str:
    """Colour *text* on a terminal that wants it (``NO_COLOR``, ``TERM``)."""
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not sys.stdout.isatty()
    return text if plain else f"\033[{_COLOURS[kind]}m{text}\033[0m"


def report(facts: Facts, elapsed_s: float) -> str:
    """Return the whole report."""
    blocks = [
        ("Sandbox", _sandbox(facts)),
        ("Allowed and denied", _doors(facts)),
        ("Money", _money(facts)),
        ("Evidence", _evidence(facts)),
        ("Checks", _checks(facts)),
    ]
    text = ""
    for title, lines in blocks:
        text += "\n" + paint(title, "title") + "\n" + "".join(f"  {line}\n" for line in lines)
    kept = sum(kept for _, kept, _ in facts.checks)
    word = paint("all checks passed", "ok") if facts.ok else paint("FAILED", "bad")
    return text + f"\n{word}: {kept} of {len(facts.checks)} in {elapsed_s:.1f} s\n"


def _sandbox(facts: Facts) -> list[str]:
    box = facts.sandbox
    return [
        f"{box.get('id')} from profile {box.get('profile')} on {box.get('substrate')}",
        f"enforcement {box.get('enforcement')}, limits {box.get('limits')}",
    ]


def _doors(facts: Facts) -> list[str]:
    refused = denials(facts.decisions)
    lines = []
    for door in facts.doors:
        host = door["url"].split("/")[2]
        rule = next((r for r in refused if host in {r.get("name"), r.get("address")}), {})
        verdict = "allowed" if door["reached"] else "denied"
        why = f"[{rule.get('rule')}] {rule.get('reason', '')}" if not door["reached"] else door["detail"]
        lines.append(f"{verdict:<8} {door['url']:<46} {why}")
    return lines


def _money(facts: Facts) -> list[str]:
    ai = facts.budget.get("ai", {})
    lines = [
        f"{model['provider']:<10} {model['model']:<24} {_usd(model['spent_nusd'])}  "
        f"{model['calls']} calls, {model['input_tokens']} tokens in, {model['output_tokens']} out"
        for model in ai.get("models", [])
    ]
    if ai.get("limit_nusd") is not None:
        lines.append(f"{'total':<35} {_usd(ai['spent_nusd'])} of {_usd(ai['limit_nusd'])}")
    refusal: dict[str, Any] = facts.calls[-1].get("refusal", {}) if facts.calls else {}
    message = refusal.get("error", {}).get("message", "")
    lines.append(f"call {len(facts.calls)} was refused: {message}")
    return lines


def _evidence(facts: Facts) -> list[str]:
    data = facts.audit
    records = data.get("records", {})
    counts = ", ".join(f"{count} by {writer}" for writer, count in records.items())
    word = "verified" if data.get("ok") else "BROKEN"
    return [f"audit chains {word}: {counts} records, {data.get('checkpoints', 0)} signed checkpoints"]


def _checks(facts: Facts) -> list[str]:
    lines = []
    for promise, kept, detail in facts.checks:
        lines.append(f"{paint('✓', 'ok') if kept else paint('✗', 'bad')} {promise}")
        if not kept and detail:
            lines.append(f"    {detail[:2000]}")
    return lines


def _usd(nusd: int) -> str:
    return f"${nusd / 1e9:.4f}"
