"""What a local sandbox has no place for is refused before anything is made."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from km_core.cli.main import main
from km_core.config import Config
from km_core.plan import SandboxPlan, WorkloadPlan
from km_substrate_local.places import directory_problems, file_problems
from km_substrate_local.plugin import km_validate_profile
from km_substrate_local.substrate import LocalSubstrate

CONFIG = Config(home=Path("/nonexistent/home"), runtime_dir=Path("/nonexistent/run"))
PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: places}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: local, instanceType: none, region: us-east-1}
  execution:
    shell: /bin/sh
    workingDir: /workspace
    configFiles:
      /home/sandbox/.gitconfig: ""
      /etc/tool.conf: ""
  sourceAccess: {mode: none}
  network:
    egress: {allowedDNSSuffixes: [], allowedHosts: []}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


def files(*paths):
    return {"spec": {"execution": {"configFiles": dict.fromkeys(paths, "")}}}


@pytest.mark.parametrize(
    "path", ["/etc/tool.conf", "/opt/x", "/workspace", "/workspaces/x", "/home/other/x", "/x"]
)
def test_a_file_that_cannot_be_written_inside_is_refused(path):
    (problem,) = file_problems(files(path))
    assert problem.path == f'spec.execution.configFiles["{path}"]'
    assert list(km_validate_profile(files(path), "docker")) == []


@pytest.mark.parametrize("path", ["/workspace/a", "/home/sandbox/.a/b", "/tmp/a", "/var/tmp/a", "/dev/shm/a"])
def test_a_file_below_what_is_writable_is_not(path):
    assert list(file_problems(files(path))) == []


def test_a_profile_without_files_has_none():
    assert list(file_problems({"spec": {"execution": {}}})) == []


@pytest.mark.parametrize(
    "path", ["/workspace", "/workspace/a", "/home/sandbox/a/b", "/", "/usr/share", "/opt/tools/bin"]
)
def test_a_working_directory_that_is_there_or_can_be_made_is_fine(path):
    assert list(directory_problems(path, ["/opt/tools"])) == []


@pytest.mark.parametrize("path", ["/opt/x", "/srv/a", "/usr/no-such-directory", "/work space", "/etc/passwd"])
def test_a_working_directory_that_could_never_be_entered_is_refused(path):
    plan = SandboxPlan("p", "", "sb", "local", workload=WorkloadPlan(working_dir=path))
    found = LocalSubstrate().problems(plan, CONFIG)
    assert [problem.path for problem in found if problem.path == "spec.execution.workingDir"]
    allowed = evolve(plan, workload=WorkloadPlan(working_dir="/workspace"))
    assert not [p for p in LocalSubstrate().problems(allowed, CONFIG) if "workingDir" in p.path]


@given(st.text(alphabet="/a.-", max_size=20))
def test_any_path_has_an_answer(path):
    assert len(list(file_problems(files(path)))) <= 1
    assert len(list(directory_problems(path or "/", []))) <= 1


def test_the_command_names_the_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("KM_HOME", str(tmp_path / "home"))
    file = tmp_path / "places.yaml"
    file.write_text(PROFILE)

    assert main(["validate", str(file), "--substrate", "local"]) == 1
    assert f"{file}:12:" in capsys.readouterr().err
    assert main(["validate", str(file)]) == 0
