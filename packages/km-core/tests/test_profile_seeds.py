"""
The profiles of the user's own documents.

``data_seed_front_page.yaml`` is the README's front-page fragment with the keys it lacks; ``data_seed_goose.yaml``
its goose profile, the suffixes of two package indexes replaced by groups where they stood.  Nothing else is
changed: if one of them is refused, the validator is wrong.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from km_core.compile import load_profile
from km_core.compile.pipeline import data_from_file, egress_rules
from km_core.config import load_config
from km_core.policy import explain_egress
from km_core.testing.pm import manager_with
from km_core.types import EgressGroup, GroupResolution, Severity

HERE = Path(__file__).parent
SEEDS = ("front_page", "goose")


def seed(name):
    return HERE / f"data_seed_{name}.yaml"


@pytest.mark.parametrize("name", SEEDS)
def test_a_profile_of_the_users_documents_is_valid(name):
    loaded = load_profile(seed(name))

    assert [str(p) for p in loaded.problems if p.severity is Severity.ERROR] == []
    assert [p.path for p in loaded.problems] == ["spec.network.egress.allowedDNSSuffixes[0]"]
    assert loaded.ok


def test_what_the_front_page_leaves_out_is_filled_with_defaults():
    loaded = load_profile(seed("front_page"))

    assert loaded.value("spec.sidecars.httpProxy.enabled") is True
    assert loaded.value("spec.network.egress.allowedHosts") == []
    assert loaded.value("spec.observability.commandLog.destination") == "cloudwatch"
    assert loaded.value("spec.budget.warningThreshold") == 0.8


def test_the_goose_profile_is_valid_with_its_groups_in_either_list(tmp_path):
    text = seed("goose").read_text(encoding="utf-8")
    groups = '        - "@npm-packages"\n        - "@python-packages"\n'
    assert groups in text
    moved = tmp_path / "goose.yaml"
    moved.write_text(text.replace(groups, "      allowedHosts:\n" + groups), encoding="utf-8")

    assert load_profile(moved).ok


def test_a_group_in_place_of_a_suffix_opens_exactly_its_hosts(tmp_path, monkeypatch):
    from km_core.compile import groups

    def offered(name, host):
        return EgressGroup(name, "", lambda: GroupResolution(name, (f"{host}:443",), source="a test"))

    found = {"@npm-packages": offered("@npm-packages", "npm.invalid")}
    found["@python-packages"] = offered("@python-packages", "py.invalid")
    monkeypatch.setattr(groups, "core_groups", lambda: found)
    config = load_config({"KM_HOME": str(tmp_path)})
    policy = egress_rules(seed("goose"), config, manager_with()).policy

    assert explain_egress(policy, "https://npm.invalid/").rule == "@npm-packages npm.invalid:443 (a test)"
    assert explain_egress(policy, "https://py.invalid/").allow
    assert not explain_egress(policy, "https://sub.py.invalid/").allow
    assert explain_egress(policy, "https://s3.amazonaws.com/").allow
    assert data_from_file(seed("goose"), config, manager_with())["metadata"]["prefix"] == "gebpfgk"
