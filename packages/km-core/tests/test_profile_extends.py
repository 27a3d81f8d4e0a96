"""Inheritance: whole sections, three hops, one finger for each defect (spec/profile.md section 7)."""

from __future__ import annotations

import pytest

from km_core.compile import load_profile
from km_core.types import Severity

HEAD = "apiVersion: klankermaker.ai/v1alpha1\nkind: SandboxProfile\n"
PARENT = (
    HEAD
    + """\
metadata:
  name: base
  prefix: bs
  labels: {tier: dev, team: a}
spec:
  lifecycle: {ttl: 4h, idleTimeout: 1h, teardownPolicy: destroy}
  runtime: {substrate: ec2, instanceType: t3.medium, region: us-east-1}
  execution: {shell: /bin/bash, workingDir: /workspace, env: {A: a}}
  sourceAccess: {mode: allowlist}
  network: {egress: {allowedDNSSuffixes: [.example.org]}, httpsOnly: true}
  identity: {roleSessionDuration: 1h, allowedRegions: [us-east-1], sessionPolicy: minimal}
  budget: {ai: {maxSpendUSD: 1}}
  email: {signing: required}
"""
)


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    return write


def child(extends="base", body="", name="child"):
    return f"{HEAD}metadata: {{name: {name}}}\nextends: {extends}\n{body}"


def errors(loaded):
    return [p for p in loaded.problems if p.severity is Severity.ERROR]


def test_what_the_child_leaves_out_comes_from_the_parent(write):
    write("base", PARENT)
    loaded = load_profile(write("child", child()))

    assert loaded.problems == ()
    assert loaded.profile.metadata.name == "child"
    assert loaded.profile.metadata.prefix == "bs"
    assert loaded.profile.metadata.labels == {"tier": "dev", "team": "a"}
    assert loaded.profile.spec.budget.ai.max_spend_usd == 1
    assert loaded.profile.spec.email.signing == "required"
    assert loaded.profile.extends is None
    assert "extends" not in loaded.data
    assert "extends" in loaded.written
    assert "spec.email.signing" in loaded.written
    assert loaded.origins["spec.budget"].endswith("base.yaml")
    assert "spec.sidecars" not in loaded.origins


def test_a_section_the_child_writes_replaces_the_parents_whole(write):
    write("base", PARENT)
    loaded = load_profile(
        write(
            "child",
            child(
                body="spec:\n  network: {egress: {allowedDNSSuffixes: []}}\n  budget: {compute: {maxSpendUSD: 2}}\n"
            ),
        )
    )

    assert loaded.ok
    assert loaded.profile.spec.network.https_only is False
    assert loaded.profile.spec.network.egress.allowed_dns_suffixes == ()
    assert loaded.profile.spec.budget.ai is None
    assert loaded.profile.spec.execution.env == {"A": "a"}
    assert loaded.origins["spec.network"].endswith("child.yaml")
    assert "spec.network.httpsOnly" not in loaded.written


def test_presence_decides_so_an_empty_section_blanks_the_parents(write):
    write("base", PARENT)
    loaded = load_profile(write("child", child(body="spec:\n  budget: {}\n  email: {}\n")))

    assert loaded.ok
    assert loaded.profile.spec.budget.ai is None
    assert loaded.profile.spec.email.signing == "optional"
    assert {"spec.budget", "spec.email"} <= loaded.written


def test_labels_are_merged_key_by_key_and_the_child_wins(write):
    write("base", PARENT)
    text = child().replace(
        "metadata: {name: child}", "metadata: {name: child, prefix: ch, labels: {tier: prod, x/y: z}}"
    )
    loaded = load_profile(write("child", text))

    assert loaded.profile.metadata.labels == {"tier": "prod", "team": "a", "x/y": "z"}
    assert loaded.profile.metadata.prefix == "ch"


def test_half_a_section_lacks_its_other_half_where_it_is_written(write):
    write("base", PARENT)
    path = write("child", child(body="spec:\n  lifecycle:\n    ttl: 2h\n"))
    loaded = load_profile(path)

    assert [(p.path, p.file, p.line, p.column) for p in loaded.problems] == [
        ("spec.lifecycle.idleTimeout", str(path), 6, 3),
        ("spec.lifecycle.teardownPolicy", str(path), 6, 3),
    ]


def test_a_defect_of_the_parent_is_shown_in_the_parents_file(write):
    base = write("base", PARENT.replace("ttl: 4h", "ttl: 4").replace("signing: required", "sining: required"))
    loaded = load_profile(write("child", child()))

    assert [(p.path, p.file, p.line, p.column) for p in loaded.problems] == [
        ("spec.lifecycle.ttl", str(base), 8, 20),
        ("spec.email.sining", str(base), 15, 11),
    ]


def test_a_defect_in_a_replaced_section_of_the_parent_is_still_shown_but_does_not_mute_rules(write):
    write("base", PARENT.replace("ttl: 4h", "ttl: 4"))
    loaded = load_profile(
        write("child", child(body="spec:\n  lifecycle: {ttl: 1m, idleTimeout: 1h, teardownPolicy: stop}\n"))
    )

    assert [(p.path, p.file.rpartition("/")[2]) for p in loaded.problems] == [
        ("spec.lifecycle.ttl", "base.yaml"),
        ("spec.lifecycle.ttl", "child.yaml"),
    ]


def test_a_rule_over_two_files_points_at_the_field_it_is_about(write):
    base = write("base", PARENT)
    body = "spec:\n  runtime: {substrate: ec2, instanceType: t3.medium, region: eu-west-1}\n"
    loaded = load_profile(write("child", child(body=body)))

    assert [(p.path, p.file, p.line) for p in loaded.problems] == [
        ("spec.identity.allowedRegions", str(base), 13)
    ]


def chain(write, length):
    write("p0", PARENT.replace("name: base", "name: p0"))
    for i in range(1, length):
        path = write(f"p{i}", child(f"p{i - 1}", name=f"p{i}"))
    return path


def test_three_hops_are_followed(write):
    loaded = load_profile(chain(write, 4))

    assert loaded.ok
    assert len(loaded.chain) == 4


def test_the_fourth_hop_is_too_deep(write):
    loaded = load_profile(chain(write, 5))

    (problem,) = errors(loaded)
    assert problem.path == "extends"
    assert "depth exceeded" in problem.message
    assert "p4 -> p3 -> p2 -> p1 -> p0" in problem.message


def test_a_cycle_is_named_whole(write):
    write("a", child("b", name="a"))
    write("b", child("c", name="b"))
    path = write("c", child("a", name="c"))
    loaded = load_profile(path)

    (problem,) = errors(loaded)
    assert problem.path == "extends"
    assert "c -> a -> b -> c" in problem.message


def test_a_profile_cannot_extend_itself(write):
    (problem,) = errors(load_profile(write("me", child("me", name="me"))))

    assert (problem.path, problem.line, problem.column) == ("extends", 4, 10)
    assert "me -> me" in problem.message


def test_a_cycle_is_found_before_the_depth(write):
    for i in range(4):
        write(f"q{i}", child(f"q{(i + 1) % 4}", name=f"q{i}"))
    (problem,) = errors(load_profile(write("q0", child("q1", name="q0"))))

    assert "cycle" in problem.message


@pytest.mark.parametrize("name", ["../base", "/etc/passwd", "a/b", "..", "", "a b", "5"])
def test_a_parent_is_a_name_and_never_a_path(write, name):
    write("base", PARENT)
    (problem,) = errors(load_profile(write("child", child(f'"{name}"' if name != "5" else "5"))))

    assert problem.path == "extends"


def test_an_extension_is_just_part_of_a_name_that_is_not_found(write):
    write("base", PARENT)
    (problem,) = errors(load_profile(write("child", child("base.yaml"))))

    assert "not found" in problem.message
    assert "base.yaml.yaml" in problem.hint


def test_a_missing_parent_is_one_error_and_not_one_for_each_section(write):
    path = write("child", child("nobody"))
    (problem,) = load_profile(path, search_paths=["/nowhere"], builtins={"hardened": PARENT}).problems

    assert (problem.path, problem.line, problem.column) == ("extends", 4, 10)
    assert "/nowhere/nobody.yaml" in problem.hint
    assert "hardened" in problem.hint


def test_a_parent_that_cannot_be_read_is_named_with_its_file(write):
    write("base", "a: [\n")
    (problem,) = load_profile(write("child", child())).problems

    assert problem.path == "extends"
    assert "base.yaml:2:1" in problem.message


def test_a_parent_of_another_version_is_refused(write):
    write("base", PARENT.replace("v1alpha1", "v1alpha2"))
    found = errors(load_profile(write("child", child())))

    assert [p.path for p in found] == ["extends"]
    assert "v1alpha2" in found[0].message


def test_built_ins_come_first_and_files_never_shadow_them(write):
    write("hardened", PARENT.replace("4h", "9h"))
    builtins = {"hardened": PARENT.replace("name: base", "name: hardened")}
    loaded = load_profile(write("child", child("hardened")), builtins=builtins)

    assert loaded.ok
    assert loaded.profile.spec.lifecycle.ttl == "4h"
    assert loaded.origins["spec.lifecycle"] == "<built-in hardened>"


def test_the_files_own_directory_comes_before_the_search_paths(write, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "base.yaml").write_text(PARENT.replace("4h", "9h"))
    (tmp_path / "lib" / "other.yaml").write_text(
        PARENT.replace("name: base", "name: other").replace("4h", "8h")
    )
    write("base", PARENT)

    near = load_profile(write("child", child()), search_paths=[tmp_path / "lib"])
    far = load_profile(write("child", child("other")), search_paths=[tmp_path / "lib"])

    assert near.profile.spec.lifecycle.ttl == "4h"
    assert far.profile.spec.lifecycle.ttl == "8h"


def test_the_tilde_in_a_search_path_is_expanded(write, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "lib").mkdir(parents=True)
    (tmp_path / "home" / "lib" / "base.yaml").write_text(PARENT)

    assert load_profile(write("child", child()), search_paths=["~/lib"]).ok


def test_a_parents_parent_is_looked_for_beside_the_parent(write, tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "mid.yaml").write_text(child("base", name="mid"))
    (tmp_path / "lib" / "base.yaml").write_text(PARENT)

    assert load_profile(write("child", child("mid")), search_paths=[tmp_path / "lib"]).ok


def test_a_parent_whose_name_differs_from_its_file_is_a_warning(write):
    base = write("base", PARENT.replace("name: base", "name: basis"))
    loaded = load_profile(write("child", child()))

    assert loaded.ok
    assert [(p.severity, p.path, p.file) for p in loaded.problems] == [
        (Severity.WARNING, "metadata.name", str(base))
    ]


def test_a_child_needs_a_name_of_its_own(write):
    write("base", PARENT)
    found = errors(load_profile(write("child", child().replace("metadata: {name: child}\n", ""))))

    assert [p.path for p in found] == ["metadata.name"]


def test_a_parent_whose_spec_is_no_mapping_is_one_error(write):
    write("base", HEAD + "metadata: {name: base}\nspec: 5\n")
    found = errors(load_profile(write("child", child())))

    assert [p.path for p in found] == ["spec"]
