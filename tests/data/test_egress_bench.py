"""
The URLs of a public corpus of exfiltration attempts, and our own of the same families, get the right verdict.

The corpus (agent-egress-bench) is not part of this repository: it is read from ``shared/data`` beside a
checkout.  What km does not claim, judging content, is not applicable, each with its reason.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from km_core.plan.plan import HostRule, NetworkPlan
from km_core.policy import NetworkPolicy, explain_egress

HERE = Path(__file__).parent
MAPPING = json.loads((HERE / "egress_bench.json").read_text(encoding="utf-8"))
POLICY = NetworkPolicy.from_plan(
    NetworkPlan(hosts=tuple(HostRule(name, "exact", (80, 443)) for name in MAPPING["allowed_hosts"]))
)


def verdict(url: str) -> str:
    try:
        return "allow" if explain_egress(POLICY, url).allow else "block"
    except ValueError:
        return "block"


def corpus() -> list[dict[str, Any]]:
    for parent in HERE.parents:
        found = parent / "shared" / "data" / MAPPING["corpus"] / "cases"
        if found.is_dir():
            return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(found.glob("*/*.json"))]
    return []


def not_applicable(case: dict[str, Any]) -> str:
    reasons = MAPPING["not_applicable"]
    if reason := reasons["transports"].get(case["transport"]):
        return str(reason)
    if case["expected_verdict"] == "block":
        return str(reasons["blocked_categories"].get(case["category"], ""))
    return ""


@pytest.mark.parametrize("case", MAPPING["families"], ids=lambda case: case["url"])
def test_each_family_gets_its_verdict(case: dict[str, str]) -> None:
    assert verdict(case["url"]) == case["verdict"], case["family"]


def test_every_case_of_the_corpus_passes_or_is_not_applicable_with_a_reason() -> None:
    cases = corpus()
    if not cases:
        pytest.skip("the corpus is not beside this checkout")
    assert len(cases) == MAPPING["cases"]
    judged = [case for case in cases if not not_applicable(case)]
    wrong = [
        (case["id"], case["payload"]["url"])
        for case in judged
        if verdict(case["payload"]["url"]) != case["expected_verdict"]
    ]
    assert wrong == []
    assert len(judged) > len(cases) // 3
