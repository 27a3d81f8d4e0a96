"""What spec/profile.md sections 2, 3 and 6 ask for and no other file of tests holds; any profile, and any defect."""

from __future__ import annotations

import copy
import json

import pytest
import yaml
from hypothesis import HealthCheck, given, settings

from km_core.cli.main import main
from km_core.compile import load_document, load_profile
from km_core.compile.dump import dump_document
from km_core.compile.pipeline import effective_text
from km_core.testing.strategies import broken_profiles, profiles
from km_core.types import Severity

BASE = yaml.safe_load("""
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: base}
spec:
  lifecycle: {ttl: 4h, idleTimeout: 1h, teardownPolicy: destroy}
  runtime: {substrate: ec2, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  sourceAccess: {mode: allowlist}
  network: {egress: {allowedDNSSuffixes: [.example.org]}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
""")
SLACK = {"notifySlackEnabled": True, "notifySlackPerSandbox": True}
OFF = {"enabled": False, "image": "x"}


def text_of(changes):
    data = copy.deepcopy(BASE)
    for path, value in changes.items():
        node = data
        *parents, last = path.split(".")
        for key in parents:
            node = node.setdefault(key, {})
        node[last] = copy.deepcopy(value)
    return dump_document(data)


def load(text):
    return load_profile(text, file="p.yaml")


def error_paths(loaded):
    return [p.path for p in loaded.problems if p.severity is Severity.ERROR]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(profiles())
def test_any_valid_profile_loads_and_its_effective_text_is_the_same_profile(data):
    loaded = load(dump_document(data))
    assert [] == error_paths(loaded), loaded.problems

    again = load(effective_text(loaded.data))
    assert (loaded.data, loaded.digest, loaded.profile) == (again.data, again.digest, again.profile)
    assert effective_text(loaded.data) == effective_text(again.data)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(broken_profiles())
def test_a_profile_with_one_defect_is_refused_at_exactly_that_path(broken):
    loaded = load(dump_document(broken.data))
    found = [p for p in loaded.problems if p.severity is Severity.ERROR]

    assert [broken.path] == [p.path for p in found], (broken.how, found)
    assert loaded.profile is None
    assert found[0].line > 0
    if broken.how == "unknown":
        assert "not a known key" in found[0].message
        assert found[0].hint


# Section 2


@pytest.mark.parametrize("word", ["no", "on", "n", "Yes", "OFF", "Y", "N", "On"])
def test_words_that_yaml_1_1_took_for_booleans_are_strings(word):
    assert {"a": word} == load_document(f"a: {word}\n").data


def test_encryption_off_needs_no_quotes():
    loaded = load(text_of({}) + "  email:\n    encryption: off\n    signing: required\n")

    assert loaded.ok, loaded.problems
    assert "off" == loaded.profile.spec.email.encryption


@pytest.mark.parametrize(
    "text", ["a: 1\n---\n", "---\na: 1\n---\nb: 2\n", "---\n---\n", "a: 1\n...\n---\nb: 1\n"]
)
def test_a_second_document_is_refused_even_when_it_is_empty(text):
    assert ["$"] == [p.path for p in load_document(text).problems]


def test_one_document_may_have_its_marks():
    assert {"a": 1} == load_document("%YAML 1.2\n---\na: 1\n...\n").data


@pytest.mark.parametrize("text", ["~\n", "null\n", "[]\n", "1\n", '""\n', "---\n"])
def test_a_root_that_is_no_mapping_is_refused_as_a_whole(text):
    assert ["$"] == [p.path for p in load_document(text).problems]


def test_the_tags_of_plain_data_are_accepted():
    loaded = load_document("a: !!seq [!!map {b: !!str 1}]\nc: !!float 1.5\n")

    assert ((), {"a": [{"b": "1"}], "c": 1.5}) == (loaded.problems, loaded.data)


@pytest.mark.parametrize("key", ["1", "1.5", "null", "True", "~", "0x1F", "-1"])
def test_a_key_that_is_no_string_is_refused_at_what_holds_it(key):
    assert ["a"] == [p.path for p in load_document(f"a:\n  {key}: x\n").problems]


@pytest.mark.parametrize("key", ['"1"', "'true'", "!!str 1", "yes", "2026-01-05", "1:30"])
def test_a_key_that_only_looks_like_something_else_is_a_string(key):
    assert () == load_document(f"a:\n  {key}: x\n").problems


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.agent.maxConcurrentTasks", True),
        ("spec.agent.maxConcurrentTasks", "1"),
        ("spec.agent.maxConcurrentTasks", 1.5),
        ("spec.agent.maxConcurrentTasks", None),
        ("spec.runtime.rootVolumeSize", False),
        ("spec.budget.ai.maxSpendUSD", True),
        ("spec.budget.ai.maxSpendUSD", "5"),
        ("metadata.name", 1),
        ("metadata.name", None),
        ("metadata.labels", None),
        ("metadata.labels", []),
        ("spec.lifecycle", None),
        ("spec.network.egress.allowedHosts", None),
        ("spec.network.egress.allowedHosts", {}),
        ("spec.network.egress.allowedHosts", "a.example.org"),
        ("spec.network.httpsOnly", 1),
        ("spec.network.httpsOnly", "true"),
        ("spec.network.httpsOnly", None),
        ("spec.execution.shell", ["/bin/sh"]),
    ],
)
def test_no_value_is_coerced(path, value):
    changes = (
        {"spec.agent": {"maxConcurrentTasks": 1, "taskTimeout": "30m"}}
        if path.startswith("spec.agent")
        else {}
    )
    loaded = load(text_of({**changes, path: value}))

    assert [path] == error_paths(loaded)


def test_an_integral_float_is_an_integer():
    loaded = load(text_of({"spec.agent": {"maxConcurrentTasks": 4.0, "taskTimeout": "30m"}}))

    assert (True, 4) == (loaded.ok, loaded.profile.spec.agent.max_concurrent_tasks)


# Section 3


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        (
            {"spec.network.egress.allowedHosts": ["a.example.org", "b.example.org", "http://c"]},
            "spec.network.egress.allowedHosts[2]",
        ),
        ({"spec.execution.configFiles": {"/etc/shadow": "x"}}, 'spec.execution.configFiles["/etc/shadow"]'),
        ({"spec.execution.configFiles": {'/a"b': "x"}}, 'spec.execution.configFiles["/a\\"b"]'),
        ({"metadata.labels": {"a.b": 1}}, 'metadata.labels["a.b"]'),
        ({"metadata.labels": {"a-b_9": 1}}, "metadata.labels.a-b_9"),
        ({"spec.lifecycle": {"ttl": "4h", "teardownPolicy": "stop"}}, "spec.lifecycle.idleTimeout"),
        ({"spec.bad key": 1}, 'spec["bad key"]'),
    ],
)
def test_paths_are_written_as_documented(changes, path):
    assert [path] == error_paths(load(text_of(changes)))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lifecycel", "did you mean lifecycle?"),
        ("Network", "did you mean network?"),
        ("ntwrk", "did you mean network?"),
    ],
)
def test_a_key_within_two_slips_of_a_known_one_is_suggested(key, hint):
    (problem,) = [p for p in load(text_of({f"spec.{key}": {}})).problems if p.severity is Severity.ERROR]

    assert (f"spec.{key}", hint) == (problem.path, problem.hint)


@pytest.fixture
def km(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = main(["validate", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return run


def test_every_file_is_checked_after_a_failure_and_each_says_its_own(km, tmp_path):
    (tmp_path / "bad.yaml").write_text(text_of({"spec.lifecycle.ttl": 0, "spec.typo": 1}))
    (tmp_path / "good.yaml").write_text(text_of({}))
    (tmp_path / "odd.yaml").write_text(text_of({"spec.identity.sessionPolicy": "standard"}))
    code, out, err = km("bad.yaml", "missing.yaml", "good.yaml", "odd.yaml")

    assert (1, ["good.yaml: valid", "odd.yaml: valid (with warnings)"]) == (code, out.splitlines())
    assert "error: spec.lifecycle.ttl: " in err
    assert "error: spec.typo: " in err
    assert "missing.yaml" in err
    assert "warning: spec.identity.sessionPolicy: " in err
    for line in err.splitlines():
        if line.startswith(("bad.yaml:", "odd.yaml:")):
            _, row, column, rest = line.split(":", 3)
            assert int(row) > 0
            assert int(column) > 0
            assert rest.startswith((" error: ", " warning: "))


def test_warnings_alone_leave_the_exit_code_at_0(km, tmp_path):
    (tmp_path / "odd.yaml").write_text(text_of({"spec.identity.sessionPolicy": "standard"}))
    code, out, _ = km("odd.yaml", "--json")
    data = json.loads(out)

    assert (0, True) == (code, data["valid"])
    assert [("warning", "spec.identity.sessionPolicy")] == [
        (p["severity"], p["path"]) for p in data["problems"]
    ]
    assert {"file", "line", "column", "path", "severity", "message", "hint"} <= set(data["problems"][0])


def test_no_file_is_a_usage_error(km):
    assert 2 == km()[0]


def test_the_same_finding_twice_is_one():
    loaded = load(text_of({}).replace("ttl: 4h", "ttl: &t 5x").replace("idleTimeout: 1h", "idleTimeout: *t"))

    assert len(loaded.problems) == len({(p.path, p.message) for p in loaded.problems}) == 2


# Section 6: each clause of its own

CLAUSES = [
    # A repository that cannot be read is one defect, and not also one of the enforcement.
    (
        {"spec.network.enforcement": "ebpf", "spec.sourceAccess.github.allowedRepos": [5]},
        ["spec.sourceAccess.github.allowedRepos[0]"],
    ),
    ({"spec.lifecycle.maxLifetime": "4h"}, []),
    (
        {"spec.lifecycle.ttl": "0", "spec.lifecycle.idleTimeout": "30d", "spec.lifecycle.maxLifetime": "1h"},
        [],
    ),
    ({"spec.runtime.substrate": "local", "spec.network.enforcement": "ebpf"}, []),
    ({"spec.runtime.substrate": "ecs", "spec.network.enforcement": "proxy"}, []),
    ({"spec.cli": {**SLACK, "notifySlackInboundEnabled": True}}, []),
    (
        {"spec.cli": {**SLACK, "notifySlackEnabled": False, "notifySlackInboundEnabled": True}},
        ["notifySlackInboundEnabled"],
    ),
    (
        {"spec.cli": {"notifySlackEnabled": True, "notifySlackInboundEnabled": True}},
        ["notifySlackInboundEnabled"],
    ),
    (
        {"spec.cli": {**SLACK, "notifySlackEnabled": False, "notifySlackTranscriptEnabled": True}},
        ["notifySlackTranscriptEnabled"],
    ),
    (
        {"spec.cli": {"notifySlackEnabled": True, "notifySlackTranscriptEnabled": True}},
        ["notifySlackTranscriptEnabled"],
    ),
    (
        {
            "spec.cli": {
                "notifySlackEnabled": True,
                "notifySlackTranscriptEnabled": True,
                "notifySlackChannelOverride": "C1",
            }
        },
        ["notifySlackTranscriptEnabled"] * 2,
    ),
    ({"spec.cli": {"notifySlackEnabled": True, "notifySlackChannelOverride": "C1"}}, []),
    (
        {"spec.sidecars.httpProxy": OFF, "spec.network.enforcement": "both"},
        ["spec.sidecars.httpProxy.enabled"],
    ),
    (
        {"spec.sidecars.httpProxy": OFF, "spec.network.enforcement": "both", "spec.budget.ai.maxSpendUSD": 1},
        ["spec.sidecars.httpProxy.enabled"],
    ),
    (
        {
            "spec.sidecars.httpProxy": OFF,
            "spec.network.enforcement": "ebpf",
            "spec.budget.compute.maxSpendUSD": 1,
        },
        [],
    ),
    ({"spec.sourceAccess": {"mode": "none"}}, []),
    ({"spec.network.enforcement": "ebpf", "spec.sourceAccess.github.allowedRepos": []}, []),
    ({"spec.network.enforcement": "ebpf", "spec.budget.compute.maxSpendUSD": 1}, []),
    ({"spec.runtime.hibernation": True, "spec.runtime.ami": "ubuntu-24.04"}, []),
]


@pytest.mark.parametrize(("changes", "expected"), CLAUSES, ids=[str(i) for i in range(len(CLAUSES))])
def test_clause_of_a_rule(changes, expected):
    found = error_paths(load(text_of(changes)))

    assert [path if path.startswith("spec.") else f"spec.cli.{path}" for path in expected] == found
