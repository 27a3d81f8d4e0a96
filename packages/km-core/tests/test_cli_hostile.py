"""Odd arguments and files: each ends in a message, a fixed exit code and nothing that commands a terminal."""

from __future__ import annotations

import json
import os

import pytest

from km_core.cli.main import main

PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: t}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: local, instanceType: none, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace}
  sourceAccess: {mode: none}
  network: {egress: {allowedDNSSuffixes: [.example.org], allowedHosts: []}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    (tmp_path / "t.yaml").write_text(PROFILE)
    monkeypatch.setenv("KM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "field",
    ["spec", "spec.network", "spec.network.egress", "spec.budget", "spec.sourceAccess.mode", "spec.email"],
)
def test_what_policy_rests_on_is_not_dropped_and_neither_is_what_holds_it(capsys, field):
    code = main(["compile", "t.yaml", "--drop", field, "--json"])

    assert code == 2
    assert "never dropped" in json.loads(capsys.readouterr().out)["error"]["what"]


@pytest.mark.parametrize(
    "field", ["metadata", "spec.runtime", "spec.runtime.substrate", "spec.lifecycle.ttl"]
)
def test_dropping_what_a_profile_must_have_is_told_as_missing(capsys, field):
    code = main(["compile", "t.yaml", "--drop", field, "--json"])

    answer = json.loads(capsys.readouterr().out)
    assert code == 1
    assert {problem["path"].startswith(field) for problem in answer["problems"]} == {True}
    assert answer["problems"][0]["message"] == "is required"


@pytest.mark.parametrize("host", ["", "a b", "https://x", "x" * 300])
def test_a_host_that_is_none_is_a_usage_error(capsys, tmp_path, host):
    (tmp_path / "r.json").write_text("{}")

    code = main(
        ["explain", "usage", "--host", host, "--path", "/v1/messages", "--response", "r.json", "--json"]
    )

    assert code == 2
    assert "host name" in json.loads(capsys.readouterr().out)["error"]["what"]


def test_the_name_of_a_file_cannot_command_the_terminal(capsys, tmp_path):
    good, bad = "g\x1b[31m\nx.yaml", "b\x1b[31m\nx.yaml"
    (tmp_path / good).write_text(PROFILE)
    (tmp_path / bad).write_text(PROFILE.replace("1h", "never", 1))

    code = main(["validate", good, bad, "gone\x1b[31m.yaml"])

    seen = capsys.readouterr()
    assert code == 1
    assert "\x1b" not in seen.out + seen.err
    assert seen.out == "g\\x1b[31m\\nx.yaml: valid\n"


def test_a_file_that_cannot_be_read_is_told_with_its_cause(capsys, tmp_path):
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")

    code = main(["validate", "gone.yaml", "loop.yaml"])

    lines = capsys.readouterr().err.splitlines()
    assert code == 1
    assert lines[0] == "gone.yaml: error: $: the file cannot be read: No such file or directory"
    assert lines[1].startswith("loop.yaml: error: $: the file cannot be read: Too many levels")


def test_listing_profiles_neither_waits_for_a_pipe_nor_takes_a_directory_for_a_profile(capsys, tmp_path):
    (tmp_path / "profiles" / "dir.yaml").mkdir(parents=True)
    os.mkfifo(tmp_path / "profiles" / "pipe.yaml")
    (tmp_path / "profiles" / "dangling.yaml").symlink_to("nowhere")

    code = main(["profiles", "list", "--json"])

    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert code == 0
    assert not {"dir", "pipe"} & rows.keys()
    assert rows["dangling"]["valid"] is False


def test_the_schema_is_written_whole_beside_what_is_there(capsys, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "other").write_text("x")
    (tmp_path / "there" / ".s.json.new").symlink_to(tmp_path / "victim")

    assert main(["schema", "--out", "there/s.json"]) == 0
    assert main(["schema", "--out", "new/s.json"]) == 0
    assert main(["schema", "--out", "t.yaml/s.json"]) == 1

    assert json.loads((tmp_path / "there" / "s.json").read_text()) == json.loads(
        (tmp_path / "new" / "s.json").read_text()
    )
    assert not (tmp_path / "victim").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "t.yaml", "there"]
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    "access", ["{mode: none}", "{mode: allowlist}", "{mode: allowlist, github: {allowedRepos: []}}"]
)
@pytest.mark.parametrize(
    ("suffix", "verdict"),
    [(".github.com", "allow"), ("github.com", "allow"), ("api.github.com", "deny"), (".example.org", "deny")],
)
def test_explain_git_tells_when_github_is_open_as_a_plain_host(capsys, tmp_path, access, suffix, verdict):
    text = PROFILE.replace("{mode: none}", access).replace("allowedHosts: []", f"allowedHosts: [{suffix}]")
    (tmp_path / "t.yaml").write_text(text)

    assert main(["explain", "git", "t.yaml", "push", "a/b", "--ref", "main", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)

    assert main(["explain", "egress", "t.yaml", "https://github.com/a/b", "--json"]) == 0
    assert answer["verdict"] == verdict == json.loads(capsys.readouterr().out)["verdict"]
    assert (verdict == "deny") == ("plain host" not in answer["reason"])
