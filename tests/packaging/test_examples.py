"""The distributions under ``examples/``: built as wheels, tried with km-core alone."""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path

import pytest
from standins.clean_venv import ROOT, CleanVenv, build_wheels

from km_core.scaffold import render
from km_core.scaffold.names import Names

AUTHOR = "The Klanker Maker authors"
EXAMPLES = {
    "km-notify-file": Names("km-notify-file", "notifier", "km_notify_file", "notify-file", "file"),
    "km-substrate-offline": Names(
        "km-substrate-offline", "substrate", "km_substrate_offline", "substrate-offline", "offline"
    ),
}
PROFILE = """\
apiVersion: klankermaker.ai/v1alpha1
kind: SandboxProfile
metadata: {name: quiet}
spec:
  lifecycle: {ttl: 1h, idleTimeout: 30m, teardownPolicy: destroy}
  runtime: {substrate: offline, instanceType: none, region: us-east-1}
  execution: {shell: /bin/sh, workingDir: /workspace, initCommands: [echo made > made]}
  sourceAccess: {mode: none}
  network: {egress: {allowedDNSSuffixes: [], allowedHosts: []}}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
"""


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    packages = [ROOT / "packages" / name for name in ("km-core", "km-embedded")]
    return build_wheels(
        tmp_path_factory.mktemp("wheels"), *packages, *(ROOT / "examples" / n for n in EXAMPLES)
    )


@pytest.fixture(scope="module")
def venv(wheels: Path, tmp_path_factory: pytest.TempPathFactory) -> CleanVenv:
    made = CleanVenv(tmp_path_factory.mktemp("clean") / "venv", wheels)
    made.install("km-core[testing]", *EXAMPLES)
    return made


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_what_the_scaffold_writes(name: str) -> None:
    files = render(EXAMPLES[name], author=AUTHOR)
    tree = ROOT / "examples" / name

    assert {path: (tree / path).read_text(encoding="utf-8") for path in files} == files


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_passes_its_own_tests_with_km_core_alone(
    name: str, venv: CleanVenv, tmp_path: Path
) -> None:
    tree = tmp_path / name
    shutil.copytree(ROOT / "examples" / name / "tests", tree / "tests")
    shutil.copy(ROOT / "examples" / name / "pyproject.toml", tree)

    done = venv.run("python", "-m", "pytest", "-q", cwd=tree, check=False)

    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_both_are_listed_and_found_well(venv: CleanVenv, tmp_path: Path) -> None:
    found = json.loads(venv.run("km", "plugins", "list", "--json", KM_HOME=str(tmp_path)).stdout)

    assert {(item["name"], item["status"]) for item in found} == {
        ("notify-file", "ok"),
        ("substrate-offline", "ok"),
    }
    venv.run("km", "plugins", "check", KM_HOME=str(tmp_path))


def test_what_the_offline_substrate_cannot_give_is_refused_by_name(venv: CleanVenv, tmp_path: Path) -> None:
    wishes = {
        "allowedHosts: [www.example.com]": "spec.network.egress.allowedHosts",
        "allowedDNSSuffixes: [example.com]": "spec.network.egress.allowedDNSSuffixes",
    }
    for wish, path in wishes.items():
        key = wish.partition(":")[0]
        (tmp_path / "p.yaml").write_text(PROFILE.replace(f"{key}: []", wish))
        done = venv.run(
            "km",
            "validate",
            "p.yaml",
            "--substrate",
            "offline",
            cwd=tmp_path,
            check=False,
            KM_HOME=str(tmp_path),
        )
        assert done.returncode == 1
        assert path in done.stderr
    (tmp_path / "p.yaml").write_text(f"{PROFILE}  budget: {{ai: {{maxSpendUSD: 1}}}}\n")
    done = venv.run(
        "km", "validate", "p.yaml", "--substrate", "offline", cwd=tmp_path, check=False, KM_HOME=str(tmp_path)
    )
    assert (done.returncode, "spec.budget.ai" in done.stderr) == (1, True)


@pytest.mark.namespaces
def test_a_sandbox_lives_and_dies_and_every_event_is_told(wheels: Path, tmp_path: Path) -> None:
    venv = CleanVenv(tmp_path / "venv", wheels)
    venv.install("km-embedded", *EXAMPLES)
    short = Path(tempfile.mkdtemp(prefix="km", dir="/tmp"))
    events = tmp_path / "events.jsonl"
    env = {
        "KM_HOME": str(short / "h"),
        "KM_RUNTIME_DIR": str(short / "r"),
        "KM_NOTIFY_FILE": str(events),
    }
    (tmp_path / "p.yaml").write_text(PROFILE)

    def km(*words: str) -> str:
        return venv.run("km", *words, cwd=tmp_path, **env).stdout

    try:
        sandbox = json.loads(km("create", "p.yaml", "--alias", "quiet", "--json"))
        assert (sandbox["substrate"], sandbox["state"]) == ("offline", "running")
        assert km("exec", "--no-tty", "quiet", "--", "cat", "made") == "made\n"
        km("stop", "quiet")
        km("resume", "quiet")
        assert km("exec", "--no-tty", "quiet", "--", "cat", "made") == "made\n"
        km("destroy", "quiet", "--yes")
        assert json.loads(km("list", "--json")) == []
        assert json.loads(km("reconcile", "--json")) == []
        km("daemon", "stop")
        kinds = [json.loads(line)["kind"] for line in events.read_text().splitlines()]
        assert {"created", "stopped", "resumed"} <= set(kinds)
    finally:
        venv.run("km", "destroy", "quiet", "--yes", cwd=tmp_path, check=False, **env)
        venv.run("km", "daemon", "stop", check=False, **env)
        shutil.rmtree(short, ignore_errors=True)
