"""``km diff`` in fields that no plan carries: nothing that may be looser goes unsaid."""

from __future__ import annotations

import json

import pytest

from km_core.cli.main import main
from km_core.compile.diff import PlanDiff
from km_core.compile.diff_fields import with_fields

PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: fields}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: ec2, instanceType: t3.small, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  sourceAccess: {mode: none}
  network:
    egress: {allowedDNSSuffixes: [], allowedHosts: []}
"""
IDENTITY = (
    "identity: {{roleSessionDuration: {}, allowedRegions: [{}], sessionPolicy: {}, allowedSecretPaths: [{}]}}"
)


def spec(**sections):
    return {"spec": sections}


def changes(before, after, **options):
    found = with_fields(PlanDiff(), before, after, **options)
    return [[change.text for change in part] for part in (found.loosened, found.tightened, found.other)]


def test_a_list_that_allows_is_compared_by_its_entries():
    before, after = (spec(identity={"allowedSecretPaths": paths}) for paths in (["/a"], ["/b"]))

    assert changes(before, after) == [
        ["identity.allowedSecretPaths newly lists /b"],
        ["identity.allowedSecretPaths no longer lists /a"],
        [],
    ]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"sessionPolicy": "minimal"}, {"sessionPolicy": "elevated"}),
        ({"roleSessionDuration": "1h"}, {"roleSessionDuration": "12h"}),
        ({"allowedRegions": ["us-east-1"]}, {"allowedRegions": []}),
        ({"allowedRegions": ["us-east-1"]}, {}),
    ],
)
def test_what_bears_on_rights_counts_as_looser_when_nobody_knows(before, after):
    loosened, tightened, other = changes(spec(identity=before), spec(identity=after))

    assert (len(loosened), tightened, other) == (1, [], [])
    assert loosened[0].endswith("may be looser")


def test_a_field_without_meaning_there_is_told_and_does_not_count():
    before, after = (spec(identity={"sessionPolicy": policy}) for policy in ("minimal", "elevated"))

    assert changes(before, after, inert=["spec.identity.sessionPolicy"])[:2] == [[], []]
    assert len(changes(before, after, inert=["spec.identity.sessionPolicy"])[2]) == 1


def test_true_is_not_one_and_values_are_not_told():
    assert changes(spec(observability={"learnMode": 1}), spec(observability={"learnMode": True}))[0]
    (text,) = changes(spec(cli={"claudeArgs": []}), spec(cli={"claudeArgs": ["--key=hunter2"]}))[0]
    assert "hunter2" not in text


def test_what_is_off_is_the_same_as_not_written_and_a_plugins_section_may_open_anything():
    assert changes(spec(), spec(cli={"claudeArgs": []}, execution={"useBedrock": False})) == [[], [], []]
    assert len(changes(spec(), spec(sidecars={"auditLog": {"enabled": False}}))[0]) == 1
    assert len(changes(spec(ticket={"queue": "a"}), spec(ticket={"queue": "b"}))[0]) == 1


def test_what_plans_carry_is_left_to_them():
    before = spec(network={"httpsOnly": True}, budget={}, execution={"env": {"A": "1"}})
    after = spec(network={"httpsOnly": False}, budget={"ai": {"maxSpendUSD": 1}}, execution={"env": {}})

    assert changes(before, after) == [[], [], []]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (("1h", "us-east-1", "minimal", ""), ("1h", "us-east-1", "minimal", "/km/a")),
        (("1h", "us-east-1", "minimal", ""), ("1h", "us-east-1, eu-west-1", "minimal", "")),
        (("1h", "us-east-1", "minimal", ""), ("12h", "us-east-1", "minimal", "")),
    ],
)
def test_the_command_never_calls_wider_rights_in_the_cloud_no_difference(
    tmp_path, monkeypatch, capsys, old, new
):
    monkeypatch.setenv("KM_HOME", str(tmp_path / "home"))
    files = []
    for name, values in (("old", old), ("new", new)):
        file = tmp_path / f"{name}.yaml"
        text = PROFILE + "  " + IDENTITY.format(*values) + "\n"
        file.write_text(text)
        files.append(str(file))

    assert 1 == main(["diff", *files, "--exit-code", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["loosened"]) == 1
    assert found["loosened"][0]["path"].startswith("spec.identity.")
