"""The built-in profiles: what they are, and that their names mean them everywhere."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from km_core.compile import load_profile
from km_core.compile.builtins import BUILTINS, find_profile, profiles_on, summary_of
from km_core.compile.resolved import resolved_text
from km_core.errors import ProfileError
from km_core.types import Severity

REPOSITORY = Path(__file__).resolve().parents[3]
KM = (sys.executable, "-m", "km_core.cli.main")

# The only remarks that built-ins may draw: the README gives them this suffix, which their AWS services need.
AWS = '".amazonaws.com" allows every name below amazonaws.com, where anybody can host'
DOCUMENTED_WARNINGS = {
    "open-dev": [("spec.network.egress.allowedDNSSuffixes[0]", AWS)],
    "restricted-dev": [("spec.network.egress.allowedDNSSuffixes[0]", AWS)],
    "hardened": [("spec.network.egress.allowedDNSSuffixes[0]", AWS)],
    "sealed": [],
    "goose": [("spec.network.egress.allowedDNSSuffixes[0]", AWS)],
    "codex": [("spec.network.egress.allowedDNSSuffixes[0]", AWS)],
    "ao": [("spec.network.egress.allowedDNSSuffixes[0]", AWS)],
    "learn": [],
}
# The README's table of built-in profiles: ttl, enforcement, compute and AI dollars.
README_TABLE = {
    "hardened": ("4h", "both", None, None),
    "sealed": ("1h", "proxy", 5, 10),
    "goose": ("4h", "both", 0.5, 1),
    "codex": ("4h", "proxy", 2, 5),
    "ao": ("8h", "both", 4, 10),
    "learn": ("2h", "both", 2, None),
}


def builtin(name, **more):
    return load_profile(BUILTINS[name], file=f"<built-in {name}>", builtins=BUILTINS, **more)


def km(*arguments, cwd=None, home, **env):
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("KM_", "_KM_"))}
    return subprocess.run(
        [*KM, *arguments],
        env={**kept, "KM_HOME": str(home / "h"), "KM_RUNTIME_DIR": str(home / "r"), **env},
        cwd=cwd or home,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("name", BUILTINS)
def test_a_built_in_is_valid_with_no_remark_but_the_documented_ones(name):
    loaded = builtin(name)

    assert [p for p in loaded.problems if p.severity is Severity.ERROR] == []
    assert [(p.path, p.message) for p in loaded.problems] == DOCUMENTED_WARNINGS[name]
    assert loaded.profile.metadata.name == name
    assert loaded.profile.metadata.labels["builtin"] == "true"
    assert summary_of(BUILTINS[name]).endswith(".")


@pytest.mark.parametrize("name", README_TABLE)
def test_a_built_in_has_the_values_of_the_readmes_table(name):
    loaded = builtin(name)

    assert README_TABLE[name] == (
        loaded.value("spec.lifecycle.ttl"),
        loaded.value("spec.network.enforcement"),
        loaded.value("spec.budget.compute.maxSpendUSD"),
        loaded.value("spec.budget.ai.maxSpendUSD"),
    )


@pytest.mark.parametrize("name", BUILTINS)
def test_a_built_in_names_registries_by_group_only(name):
    loaded = builtin(name)
    entries = [
        *loaded.value("spec.network.egress.allowedDNSSuffixes"),
        *loaded.value("spec.network.egress.allowedHosts"),
    ]

    assert [entry for entry in entries if re.search(r"npm|pypi|python|debian|node", entry.lstrip("@"))] == [
        entry for entry in entries if entry.startswith("@")
    ]


@pytest.mark.parametrize("name", BUILTINS)
def test_what_a_built_in_installs_is_pinned_and_checked(name):
    for command in builtin(name).value("spec.execution.initCommands") or []:
        assert len(command) < 600
        assert "curl" not in command
        if "npm " in command and not command.startswith("yum "):
            assert command.startswith("set -e\n")
            package = re.search(r"npm pack --silent (\S+)", command)[1]
            assert re.search(r"@[0-9]+\.[0-9]+\.[0-9]+(?:-linux-x64)?\Z", package), package
            assert re.search(r'echo "[0-9a-f]{128}  [a-z0-9.-]+\.tgz" \| sha512sum --check', command)
            assert command.index("sha512sum") < command.index("tar -x")


def test_every_file_of_the_package_is_a_built_in_and_the_other_way_round():
    found = {
        path.stem for path in (Path(load_profile.__code__.co_filename).parent / "builtin").glob("*.yaml")
    }

    assert found == set(BUILTINS)


def test_a_profile_extends_a_built_in_which_no_file_can_stand_in_for(tmp_path):
    (tmp_path / "hardened.yaml").write_text("apiVersion: klankermaker.ai/v1alpha1\nkind: Impostor\n")
    child = tmp_path / "mine.yaml"
    child.write_text(
        "apiVersion: klankermaker.ai/v1alpha1\nkind: SandboxProfile\nmetadata: {name: mine}\n"
        "extends: hardened\nspec:\n  lifecycle: {ttl: 2h, idleTimeout: 1h, teardownPolicy: destroy}\n"
    )
    loaded = load_profile(child, builtins=BUILTINS, search_paths=[tmp_path])

    assert loaded.ok
    assert loaded.chain == (str(child), "<built-in hardened>")
    assert loaded.value("spec.lifecycle.ttl") == "2h"
    assert loaded.value("spec.network.enforcement") == "both"
    assert loaded.origins["spec.network"] == "<built-in hardened>"


def test_a_name_means_the_built_in_before_any_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "hardened").write_text("kind: Impostor\n")
    (tmp_path / "hardened.yaml").write_text("kind: Impostor\n")

    assert find_profile("hardened", [tmp_path]).builtin
    assert find_profile("./hardened").path == Path("hardened")
    assert find_profile("hardened.yaml").path == Path("hardened.yaml")
    assert find_profile(Path("hardened")).path == Path("hardened")


def test_a_name_is_looked_for_on_the_search_paths_after_built_ins_and_files(tmp_path, monkeypatch):
    near, far = tmp_path / "near", tmp_path / "far"
    for directory in (near, far):
        directory.mkdir()
        (directory / "mine.yaml").write_text("x: 1\n")
    (far / "other.yaml").write_text("x: 1\n")
    (far / "goose.yaml").write_text("x: 1\n")
    (tmp_path / "mine").mkdir()  # a directory is no profile
    monkeypatch.chdir(tmp_path)

    assert find_profile("mine", [near, far]).path == near / "mine.yaml"
    assert find_profile("other", [near, far]).path == far / "other.yaml"
    assert find_profile("goose", [near, far]).builtin
    assert [source.name for source in profiles_on([near, tmp_path / "absent", far])] == [
        "mine",
        "goose",
        "mine",
        "other",
    ]
    with pytest.raises(ProfileError, match="is called hardend") as caught:
        find_profile("hardend", [near])
    assert caught.value.hint == "did you mean hardened?"


@pytest.mark.parametrize("name", [*BUILTINS, "child"])
def test_the_resolved_text_reads_back_as_the_same_data(name, tmp_path):
    if name == "child":
        child = tmp_path / "child\nkind: x.yaml"
        child.write_text(
            "apiVersion: klankermaker.ai/v1alpha1\nkind: SandboxProfile\nextends: goose\n"
            "metadata: {name: mine, labels: {a: b}}\n"
            'spec: {execution: {shell: /bin/sh, workingDir: /w, env: {A: "  x\\n\\n y ", B: "1e3"}}}\n'
        )
        loaded = load_profile(child, builtins=BUILTINS)
    else:
        loaded = builtin(name)
    assert loaded.ok
    text = resolved_text(loaded)

    again = load_profile(text, file="again.yaml")
    assert again.data == loaded.data
    assert "  # default\n  sidecars:" in text
    if name == "child":
        assert re.search(r"  # from '.*child\\nkind: x.yaml'\n  execution:", text)
        assert "  # from <built-in goose>\n  network:" in text
        assert re.search(r"# from '.*child\\nkind: x.yaml', <built-in goose>\nmetadata:", text)


def test_the_first_comment_is_a_profiles_summary():
    assert summary_of("# yaml-language-server: $schema=x\n\n#   Two words. \na: 1") == "Two words."
    assert summary_of("a: 1\n# late") == ""
    assert summary_of("") == ""


def test_profiles_list_shows_built_ins_and_the_search_path(tmp_path):
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "mine.yaml").write_text("# Mine.\nkind: x\n")
    (tmp_path / "profiles" / "goose.yaml").write_text(BUILTINS["goose"])
    done = km("profiles", "list", "--json", home=tmp_path)
    rows = {(row["name"], row["source"]): row for row in json.loads(done.stdout)}

    assert done.returncode == 0
    assert [name for name, source in rows if source == "built-in"] == list(BUILTINS)
    assert rows["sealed", "built-in"]["budget"] == {"compute_usd": 5, "ai_usd": 10}
    assert rows["sealed", "built-in"]["substrate"] == "ec2"
    assert rows["mine", "file"]["valid"] is False
    assert rows["mine", "file"]["summary"] == "Mine."
    assert rows["goose", "file"]["shadowed"] is True
    plain = km("profiles", "list", home=tmp_path)
    assert "(invalid: km validate profiles/mine.yaml) Mine." in plain.stdout
    assert "not reached by its name" in plain.stdout


def test_profiles_show_prints_a_profile_as_written_resolved_or_as_data(tmp_path):
    assert km("profiles", "show", "sealed", home=tmp_path).stdout == BUILTINS["sealed"]
    resolved = km("profiles", "show", "sealed", "--resolved", home=tmp_path).stdout
    assert "  # default\n  sidecars:" in resolved
    data = json.loads(km("profiles", "show", "sealed", "--resolved", "--json", home=tmp_path).stdout)
    assert data["origins"]["spec.network"] == "<built-in sealed>"
    assert data["profile"]["spec"]["sidecars"]
    written = json.loads(km("profiles", "show", "sealed", "--json", home=tmp_path).stdout)
    assert "sidecars" not in written["profile"]["spec"]
    missing = km("profiles", "show", "seeled", "--json", home=tmp_path)
    assert missing.returncode == 5
    assert json.loads(missing.stdout)["error"]["hint"] == "did you mean sealed?"


def test_every_command_that_takes_a_file_takes_a_built_in(tmp_path):
    valid = km("validate", "sealed", "--show-resolved", home=tmp_path)
    assert valid.returncode == 0
    assert valid.stdout.startswith("sealed: valid\n")
    assert "  # from <built-in sealed>\n  network:" in valid.stdout
    explained = km("explain", "egress", "hardened", "https://s3.amazonaws.com/", "--json", home=tmp_path)
    assert json.loads(explained.stdout)["rule"] == "builtin:aws-key", explained.stderr
    git = km("explain", "git", "codex", "push", "my-org/api", "--ref", "main", "--json", home=tmp_path)
    assert json.loads(git.stdout)["verdict"] == "allow", git.stderr
    same = km("diff", "sealed", "sealed", "--substrate", "local", home=tmp_path)
    assert "No such" not in same.stderr


def test_what_nobody_enforces_and_is_no_policy_can_be_left_out_as_the_hint_says(tmp_path):
    refused = km("create", "sealed", "--substrate", "local", "--dry-run", home=tmp_path)
    assert refused.returncode == 1
    hint = refused.stderr.splitlines()[-1]
    assert hint.startswith("  hint: or add --drop spec.agent ")
    options = hint.partition("or add ")[2].removesuffix("   [profile]").split()

    done = km("create", "sealed", "--substrate", "local", "--dry-run", *options, home=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    # Where policy is among what is refused, leaving the rest out would not help.
    assert "--drop" not in km("create", "learn", "--substrate", "local", "--dry-run", home=tmp_path).stderr


def test_create_of_a_built_in_whose_substrate_is_missing_says_in_one_line_what_to_install(tmp_path):
    for command in (["create", "hardened", "--dry-run"], ["compile", "hardened"]):
        done = km(*command, home=tmp_path)

        assert done.returncode == 1
        assert done.stdout == ""
        lines = done.stderr.splitlines()
        assert [line for line in lines if "install" in line and "hint" in line] == [
            "  hint: install km-substrate-ec2"
        ]
        assert lines[-1] == "error: hardened has 1 problem; nothing was made"
    km("daemon", "stop", home=tmp_path)


def test_with_km_core_alone_a_plan_is_refused_in_one_line_that_says_what_to_install(tmp_path):
    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.config import load_config
    from km_core.testing.pm import manager_with

    sample = Path(__file__).parent / "data_quickstart.yaml"
    with pytest.raises(ProfileError) as caught:
        plan_from_file(sample, load_config({"KM_HOME": str(tmp_path)}), manager_with(), Overrides())

    assert [(p.message, p.hint) for p in caught.value.problems if p.severity is Severity.ERROR] == [
        (
            "nothing installed can run a profile on local",
            "install km-substrate-local, km-net-proxy and km-embedded",
        )
    ]


def test_with_km_core_alone_a_plan_can_be_reviewed_and_says_what_it_needs(tmp_path):
    from km_core import __version__
    from km_core.compile.pipeline import Overrides, plan_from_file
    from km_core.config import load_config
    from km_core.testing.pm import manager_with

    sample = Path(__file__).parent / "data_quickstart.yaml"
    config = load_config({"KM_HOME": str(tmp_path)})
    compiled = plan_from_file(sample, config, manager_with(), Overrides(), for_review=True)

    assert [p.hint for p in compiled.unmet] == ["install km-substrate-local, km-net-proxy and km-embedded"]
    assert compiled.plan.requirements == (f"km-core=={__version__}", "km-net-proxy", "km-substrate-local")
    with pytest.raises(ProfileError, match="sealed has"):
        plan_from_file("sealed", config, manager_with(), Overrides(substrate="local"), for_review=True)


def test_the_schema_for_editors_is_the_generated_one(tmp_path):
    from km_core.profile.schema import profile_schema, schema_text

    shipped = REPOSITORY / "profiles" / "profile.schema.json"
    if not shipped.parent.exists():
        pytest.skip("the sample profiles are not beside this distribution")
    assert shipped.read_text(encoding="utf-8") == schema_text(profile_schema())

    done = km("schema", "--out", "made/schema.json", home=tmp_path, KM_BLOCK_PLUGINS="")
    assert done.returncode == 0
    assert json.loads((tmp_path / "made" / "schema.json").read_text())["$schema"].endswith("2020-12/schema")
    assert json.loads(km("schema", home=tmp_path).stdout)["title"] == "SandboxProfile v1alpha1"


@pytest.mark.parametrize(
    "sample", sorted((REPOSITORY / "profiles").glob("*.yaml")), ids=lambda path: path.name
)
def test_samples_name_the_schema_for_editors(sample):
    first = sample.read_text(encoding="utf-8").splitlines()[0]

    assert first == "# yaml-language-server: $schema=profile.schema.json"
