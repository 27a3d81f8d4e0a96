"""One source: the schema and the reference page say what the validator does."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from km_core.compile.builtins import BUILTINS
from km_core.profile import PluginSection, grammar, optional
from km_core.profile.kinds import Choice, Flag, Listing, Number, Section, Table, Text, fields_of
from km_core.profile.model import SandboxProfile
from km_core.profile.schema import profile_schema, reference_page

REPOSITORY = Path(__file__).resolve().parents[3]


def kinds(model=SandboxProfile, path=""):
    for key, info in fields_of(model).items():
        below = f"{path}.{key}" if path else key
        yield below, info
        if isinstance(info.kind, Section):
            yield from kinds(info.kind.model, below)


def resolve(schema, node):
    return schema["$defs"][node["$ref"].rpartition("/")[2]] if "$ref" in node else node


def test_the_reference_page_is_the_generated_one():
    page = REPOSITORY / "docs" / "reference" / "profile.md"
    if not page.exists():
        pytest.skip("the documentation is not beside this distribution")

    assert page.read_text(encoding="utf-8") == reference_page()


def test_the_schema_is_json_and_closed_everywhere():
    schema = profile_schema()
    json.dumps(schema)

    for name, definition in schema["$defs"].items():
        assert definition["additionalProperties"] is False, name
        assert set(definition.get("required", ())) <= set(definition["properties"])


def test_the_schema_has_every_field_with_its_description_and_requiredness():
    schema = profile_schema()
    for path, info in kinds():
        node = schema
        for key in path.split("."):
            owner = resolve(schema, node)
            node = owner["properties"][key]
        assert node["description"] == info.doc
        if path.count(".") != 1 and path != "spec":
            assert (info.key in owner.get("required", ())) == info.required, path


def test_a_file_that_extends_may_leave_sections_out():
    schema = profile_schema()

    assert "spec" not in schema["required"]
    assert schema["if"] == {"required": ["extends"]}
    assert set(schema["else"]["properties"]["spec"]["required"]) == {
        "lifecycle",
        "runtime",
        "execution",
        "sourceAccess",
        "network",
        "identity",
    }


def test_patterns_are_ones_that_javascript_reads_too():
    text = json.dumps(profile_schema())

    assert not re.search(r"\\\\[AZz]|\(\?P|\(\?<|\(\?[aiLmsux]", text)


def test_every_default_passes_the_kind_of_its_own_field():
    for path, info in kinds():
        if isinstance(info.kind, (Text, Choice, Flag, Number)) and info.default is not None:
            assert info.kind.defect(info.default) is None, path


def test_every_example_passes_its_own_grammar():
    for path, info in kinds():
        for text in [info.kind, getattr(info.kind, "item", None), getattr(info.kind, "value", None)]:
            if isinstance(text, Text) and text.example:
                assert text.defect(text.example) is None, path


SAMPLES = {
    grammar.host: [
        ".a.org",
        "*.A.org",
        "*",
        "192.0.2.1",
        "10.0.0.0/8",
        "2001:db8::/32",
        "@py-x",
        "a_b.c.",
        "a.org:1",
        "*.a.org:65535",
        "*:8443",
        "192.0.2.1:80",
        "[2001:db8::1]:443",
    ],
    grammar.dns_suffix: [".a.org", "*.a.org", "*", "a", "xn--bcher-kva.example"],
    grammar.repo: ["*", "o/*", "github.com/o/n", "o/a-*"],
    grammar.ref: ["main", "feature/*", "refs/tags/v1.0", "é", "a@b"],
    grammar.secret_path: ["/a/b-c", "/a"],
    grammar.env_name: ["A", "_a1"],
    grammar.config_file: ["/home/sandbox/.x", "/etc/gitconfig"],
}


@pytest.mark.parametrize(("path", "info"), list(kinds()), ids=[path for path, _ in kinds()])
def test_the_pattern_never_refuses_what_the_rule_accepts(path, info):
    for text in [info.kind, getattr(info.kind, "item", None), getattr(info.kind, "key", None)]:
        if not isinstance(text, Text) or text.rule is None or not text.pattern:
            continue
        for sample in SAMPLES.get(text.rule, []):
            text.rule(sample)
            assert re.fullmatch(text.pattern, sample), (path, sample)


@settings(max_examples=400, deadline=None)
@given(st.text(alphabet="aA1.*-_:/@%~ ", max_size=14))
def test_no_text_passes_a_rule_and_fails_its_pattern(sample):
    for path, info in kinds():
        for text in [info.kind, getattr(info.kind, "item", None), getattr(info.kind, "key", None)]:
            if isinstance(text, Text) and text.rule is not None and text.pattern:
                try:
                    text.rule(sample)
                except ValueError:
                    continue
                assert re.fullmatch(text.pattern, sample), (path, sample)


def test_a_plugin_section_is_in_the_schema():
    from attrs import frozen

    @frozen(kw_only=True)
    class Gpu:
        shared: bool = optional("shared", Flag(), "Shared.", default=False)

    schema = profile_schema([PluginSection("gpu", Gpu, "km-gpu")])

    assert schema["$defs"]["Spec"]["properties"]["gpu"] == {"$ref": "#/$defs/Gpu"}
    assert schema["$defs"]["Gpu"]["properties"]["shared"]["default"] is False


def test_kinds_name_themselves_for_the_page():
    assert Listing(Text()).words() == "list of string"
    assert Table(Text(), Text()).words() == "mapping of strings"
    assert Number(0, 1).words() == "number 0…1"


@pytest.mark.parametrize("name", sorted(BUILTINS))
def test_another_validator_takes_the_built_ins_and_refuses_what_is_misspelt(name):
    schema = profile_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    judge = jsonschema.Draft202012Validator(schema)
    data = yaml.safe_load(BUILTINS[name])
    assert [] == [error.message for error in judge.iter_errors(data)]

    data["spec"]["netwrok"] = data["spec"].pop("network")
    assert any("netwrok" in error.message for error in judge.iter_errors(data))
