"""
What each built-in becomes on the substrates that exist here: its plan, or exactly what refuses it.

``golden_builtins/NAME.SUBSTRATE.json`` is written anew by

    KM_UPDATE_GOLDEN=1 pytest packages/km-core/tests/test_builtins_golden.py

and a change of one of these files is a change of what a built-in means.
"""

from __future__ import annotations

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

from km_core.compile import groups
from km_core.compile.builtins import BUILTINS
from km_core.compile.claims import check_claims, claim_sources
from km_core.compile.pipeline import Overrides, check_file, plan_from_file
from km_core.config import load_config
from km_core.plugins import load_plugins
from km_core.types import EgressGroup, GroupResolution, Severity

GOLDEN = Path(__file__).parent / "golden_builtins"
NEEDED = ("km-substrate-local", "km-substrate-docker", "km-net-proxy", "km-embedded")


def missing_distributions():
    for name in NEEDED:
        try:
            version(name)
        except PackageNotFoundError:
            yield name


pytestmark = pytest.mark.skipif(
    bool(list(missing_distributions())), reason=f"needs {', '.join(missing_distributions())}"
)


@pytest.fixture(autouse=True)
def fixed_groups(monkeypatch):
    """Groups resolve to something that is the same on every machine."""

    def offer(name):
        host = f"{name.removeprefix('@')}.invalid:443"
        return EgressGroup(name, "", lambda: GroupResolution(name, (host,), source="a fixed answer"))

    found = {name: offer(name) for name in groups.core_groups()}
    monkeypatch.setattr(groups, "core_groups", lambda: found)


def outcome(name, substrate, config):
    plugins = load_plugins()
    problems, loaded = check_file(name, config, plugins, substrate=substrate)
    if not loaded.ok:
        # Rules between fields (volumes, hibernation) refuse it already; the claims say the rest.
        problems += check_claims(loaded, substrate, claim_sources(plugins))
    refused = [p for p in problems if p.severity is Severity.ERROR]
    if refused:
        return {
            "refused": [
                {"path": p.path, "code": p.code, "message": p.message, "hint": p.hint}
                for p in sorted(refused, key=lambda p: p.path)
            ]
        }
    options = Overrides(substrate=substrate, memory="1G", cpus=1.0, pids=256)
    plan = plan_from_file(name, config, plugins, options).plan
    return {"plan": json.loads(plan.to_json().replace(version("km-core"), "VERSION"))}


@pytest.mark.parametrize("substrate", ["local", "docker"])
@pytest.mark.parametrize("name", BUILTINS)
def test_a_built_in_becomes_what_its_golden_file_says(name, substrate, tmp_path):
    file = GOLDEN / f"{name}.{substrate}.json"
    config = load_config({"KM_HOME": str(tmp_path)})
    found = json.dumps(outcome(name, substrate, config), indent=2, sort_keys=True) + "\n"
    if os.environ.get("KM_UPDATE_GOLDEN"):
        GOLDEN.mkdir(exist_ok=True)
        file.write_text(found, encoding="utf-8")

    assert json.loads(file.read_text(encoding="utf-8")) == json.loads(found)


@pytest.mark.parametrize("substrate", ["ec2", "ecs"])
@pytest.mark.parametrize("name", BUILTINS)
def test_on_a_substrate_that_is_not_installed_one_thing_is_missing(name, substrate, tmp_path):
    if substrate in load_plugins().substrates():
        pytest.skip(f"{substrate} is installed")
    problems, _ = check_file(
        name, load_config({"KM_HOME": str(tmp_path)}), load_plugins(), substrate=substrate
    )
    missing = [p for p in problems if p.code.startswith("claim-")]

    assert [(p.path, p.hint) for p in missing] in (
        [("spec.runtime.substrate", f"install km-substrate-{substrate}")],
        [],  # rules between fields refuse it already (enforcement and volumes on ecs)
    )
    assert any(p.severity is Severity.ERROR for p in problems)


def test_no_golden_file_is_left_over():
    assert {path.stem for path in GOLDEN.glob("*.json")} == {
        f"{name}.{substrate}" for name in BUILTINS for substrate in ("local", "docker")
    }


def test_what_is_missing_can_be_dropped_where_that_is_no_policy(tmp_path):
    config = load_config({"KM_HOME": str(tmp_path)})
    options = Overrides(substrate="local", memory="1G", cpus=1.0, pids=256, drop=("spec.agent",))
    plan = plan_from_file("sealed", config, load_plugins(), options).plan

    assert [(rule.pattern, rule.kind) for rule in plan.network.hosts] == [
        ("anthropic.com", "suffix"),
        ("npm-packages.invalid", "exact"),
    ]
    assert plan.budget.ai_limit_nusd == 10_000_000_000
    assert plan.git.mode == "none"
