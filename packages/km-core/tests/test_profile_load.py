"""The loader: YAML 1.2 core, places, caps, and no exception whatever it is given."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from km_core.compile import load_document, load_profile
from km_core.compile.dump import dump_document
from km_core.compile.load import MAX_BYTES, ancestry
from km_core.errors import ProfileError


def only(document):
    assert len(document.problems) == 1, document.problems
    return document.problems[0]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"),
        ("off", "off"),
        ("y", "y"),
        ("true", True),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("False", False),
        ("~", None),
        ("", None),
        ("Null", None),
        ("2026-01-05", "2026-01-05"),
        ("2026-01-05T10:00:00Z", "2026-01-05T10:00:00Z"),
        ("1:30", "1:30"),
        ("1_000", "1_000"),
        ("0123", 123),
        ("0o17", 15),
        ("0x1F", 31),
        ("+12", 12),
        ("-0", 0),
        ("0b11", "0b11"),
        (".5", 0.5),
        ("1.", 1.0),
        ("1e3", 1000.0),
        ("-", "-"),
        (".", "."),
        ("1.2.3", "1.2.3"),
        ("=", "="),
        ('"<<"', "<<"),
        ("'1'", "1"),
        ("!!str 1", "1"),
        ('!!int "12"', 12),
        ("!!float 1", 1.0),
        ("!!null ''", None),
        ("!!bool true", True),
        ("9223372036854775807", 2**63 - 1),
        ("-9223372036854775808", -(2**63)),
    ],
)
def test_scalars_follow_yaml_1_2_core(text, value):
    if text == "-":
        text = "'-'"
    loaded = load_document(f"a: {text}\n")

    assert loaded.problems == ()
    assert loaded.data == {"a": value}
    assert type(loaded.data["a"]) is type(value)


@pytest.mark.parametrize(
    ("text", "path", "place", "message"),
    [
        ("a: 9223372036854775808\n", "a", (1, 4), "64 bits"),
        (f"a: {'9' * 5000}\n", "a", (1, 4), "64 bits"),
        ("a: .inf\n", "a", (1, 4), "finite"),
        ("a: -.INF\n", "a", (1, 4), "finite"),
        ("a:\n  b: .nan\n", "a.b", (2, 6), "finite"),
        ("a: 1e999\n", "a", (1, 4), "finite"),
        ("a: !!int x\n", "a", (1, 4), "no !!int"),
        ("a: !!bool yes\n", "a", (1, 4), "no !!bool"),
        ("a: !!null x\n", "a", (1, 4), "no !!null"),
        ("a: !!python/object:os.system x\n", "a", (1, 4), "tag"),
        ("a: !!python/name:os.system\n", "a", (1, 1), "tag"),
        ("a: [x, !Ref y]\n", "a[1]", (1, 8), "tag"),
        ("a: !!binary aGk=\n", "a", (1, 4), "tag"),
        ("a: !!timestamp 2026-01-01\n", "a", (1, 4), "tag"),
        ("a: !!set {x: null}\n", "a", (1, 4), "tag"),
        ("a: !!omap []\n", "a", (1, 4), "tag"),
        ("a: !include other.yaml\n", "a", (1, 4), "tag"),
        ("a: !!map [x]\n", "a", (1, 4), "tag"),
        ("a: !<p> x\n", "a", (1, 4), "tag"),
        ("a: !<%01> x\n", "a", (1, 4), "tag"),
        ("%TAG ! tag:yaml.org,2002:python/\n---\na: !name x\n", "a", (3, 4), "tag"),
        ("a: ! 12\n", "$", (1, 4), "tag !"),
        ("!!seq {a: 1}\n", "$", (1, 1), "tag"),
        ("a: 1\nb: 2\na: 3\n", "a", (3, 1), "twice"),
        ("a:\n  x: 1\n  'x': 2\n", "a.x", (3, 3), "twice"),
        ("a:\n  /etc/x: 1\n  /etc/x: 2\n", 'a["/etc/x"]', (3, 3), "twice"),
        ("a:\n  1: x\n", "a", (2, 3), "key 1"),
        ("true: x\n", "$", (1, 1), "key true"),
        ("a: {~: x}\n", "a", (1, 5), "key ~"),
        ("? [a]\n: x\n", "$", (1, 3), "not a string"),
        ("a: {<<: 3}\n", 'a["<<"]', (1, 9), "merge a mapping"),
        ("a: {x: 1}\n---\nb: 1\n", "$", (2, 1), "more than one document"),
        ("", "$", (1, 1), "no document"),
        ("# just a remark\n", "$", (1, 1), "no document"),
        ("- a\n", "$", (1, 1), "mapping"),
        ("just text\n", "$", (1, 1), "mapping"),
        ("a: [1, 2\nb: 3\n", "$", (2, 2), "not valid YAML"),
        ("a:\n\tb: 1\n", "$", (2, 1), "not valid YAML"),
        ("a: *nowhere\n", "$", (1, 4), "not valid YAML"),
        ("a: &x [*x]\n", "$", (1, 4), "alias to what contains it"),
        ("a: &x {<<: *x}\n", "$", (1, 4), "alias to what contains it"),
        ("a: b\x07\n", "$", (1, 5), "U+0007"),
        ("a: b\x00\n", "$", (1, 5), "U+0000"),
        ("a: b # \u2028spec: x\n", "$", (1, 8), "U+2028"),
        ("a: 'x\u202ey'\n", "$", (1, 6), "U+202E"),
        ("a: 1\n\ufeffb: 2\n", "$", (2, 1), "U+FEFF"),
    ],
)
def test_what_the_loader_refuses_has_a_path_and_a_place(text, path, place, message):
    problem = only(load_document(text, file="p.yaml"))

    assert (path, *place) == (problem.path, problem.line, problem.column)
    assert message in problem.message
    assert problem.file == "p.yaml"


def test_a_byte_order_mark_and_windows_line_ends_are_tolerated():
    loaded = load_document(b"\xef\xbb\xbfa: 1\r\nb: x\r\n")

    assert loaded.problems == ()
    assert loaded.data == {"a": 1, "b": "x"}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_other_encodings_are_refused(encoding):
    problem = only(load_document("a: größe\n".encode(encoding)))

    assert problem.path == "$"


def test_a_file_that_is_not_utf8_names_the_place():
    problem = only(load_document(b"a: 1\nbc: \xff\n"))

    assert (problem.line, problem.column) == (2, 5)


def test_an_escaped_control_character_is_read_and_left_to_the_fields():
    assert load_document('a: "\\u2028\\x07"\n').data == {"a": "\u2028\x07"}


def test_anchors_aliases_and_merge_keys_expand():
    loaded = load_document(
        "base: &b {x: 1, y: 2}\nmore: &m {y: 3, z: 4}\nown: {y: 9, <<: [*b, *m]}\ncopy: *b\nlist: [*b]\n"
    )

    assert loaded.problems == ()
    assert loaded.data["own"] == {"y": 9, "x": 1, "z": 4}
    assert loaded.data["copy"] == {"x": 1, "y": 2}
    assert loaded.data["list"] == [{"x": 1, "y": 2}]
    assert loaded.position("own.x") == (1, 11)
    assert loaded.position("copy") == (4, 1)


def test_scalars_are_placed_at_their_value_and_collections_at_their_key():
    loaded = load_document("a:\n  b:   x\n  c:\n    - 1\n    - k: v\n  d: |\n    text\n  e:\n  f: {g: h}\n")

    assert loaded.position("a") == (1, 1)
    assert loaded.position("a.b") == (2, 8)
    assert loaded.position("a.c") == (3, 3)
    assert loaded.position("a.c[0]") == (4, 7)
    assert loaded.position("a.c[1]") == (5, 7)
    assert loaded.position("a.c[1].k") == (5, 10)
    assert loaded.position("a.d") == (6, 6)
    assert loaded.position("a.e") == (8, 3)
    assert loaded.position("a.f.g") == (9, 10)
    assert loaded.position("a.f.missing.deep") == (9, 3)
    assert loaded.position("nothing") == (1, 1)


def test_the_way_up_from_a_path_knows_quoted_keys():
    assert list(ancestry('a.b["/x[\\"1.2\\"]"].c[3]')) == [
        'a.b["/x[\\"1.2\\"]"].c[3]',
        'a.b["/x[\\"1.2\\"]"].c',
        'a.b["/x[\\"1.2\\"]"]',
        "a.b",
        "a",
    ]


def nine_times(levels):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]" for i in range(1, levels)]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        nine_times(30),
        nine_times(12)
        .replace("[", "{<<: [")
        .replace("]", "]}")
        .replace("x, x, x, x, x, x, x, x, x", "{x: 1}"),
        "[" * 200_000,
        "{a: " * 60_000,
        "a: " + "[" * 33 + "]" * 33,
        "- " * 130_000,
        "? " * 130_000,
        "\r" + "- " * 4_000,
        "a:\n" + "".join(" " * i + "a:\n" for i in range(1, 700)),
        "a: [" + "x," * 130_000 + "]",
        "a: " + "x" * MAX_BYTES,
        "a: [" + "b, " * 9_999 + "]",
    ],
    ids=[
        "aliases",
        "merges",
        "flow-lists",
        "flow-maps",
        "33-deep",
        "dashes",
        "questions",
        "dashes-after-cr",
        "indents",
        "many-nodes",
        "too-large",
        "10001-nodes",
    ],
)
def test_every_cap_is_one_problem_of_the_whole_document_within_a_second(text):
    start = time.perf_counter()
    problem = only(load_document(text))

    assert time.perf_counter() - start < 1
    assert problem.path == "$"


def test_what_just_fits_the_caps_is_read():
    deep = "a: " + "[" * 31 + "]" * 31
    many = "a: [" + "b, " * 9_997 + "]"

    assert load_document(deep).problems == ()
    assert len(load_document(many).data["a"]) == 9_997
    assert load_document("a: " + "x" * (MAX_BYTES - 3)).problems == ()


def test_brackets_inside_texts_do_not_count_as_nesting():
    text = "a: |\n" + "  [[[[ {{{{ - - - -\n" * 900

    assert load_document(text).problems == ()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300))
@example(b"a: \xc3\x28")
def test_no_bytes_bring_an_exception(data):
    load_document(data)
    load_profile(data)


@settings(max_examples=500, deadline=None)
@given(st.text(alphabet="ab:-?[]{}&*!|>%@\"'#, \n\t\r<~01.eE\\", max_size=120))
@example("a: !<\x01> x")
@example("? ? ? a")
@example("*a : b")
@example("&a a: *a")
@example("a: &a\nb: *a")
@example("a: !!int ''")
def test_no_yaml_brings_an_exception_and_every_problem_has_a_place(text):
    loaded = load_document(text, file="p.yaml")

    assert loaded.usable or loaded.problems
    for problem in loaded.problems:
        assert problem.line >= 1
        assert problem.column >= 1
        assert problem.path


plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=20)
    | st.sampled_from(
        ["yes", "1e3", "0o17", "<<", "~", "", "1:30", "0x1", "a\nb\n", "- x", "a: b", "#", "\u2028"]
    ),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8) | st.just("1e3"), inner, max_size=4)
    ),
    max_leaves=20,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.text(max_size=8), plain, max_size=5))
def test_dumped_data_loads_as_the_same_data(data):
    loaded = load_document(dump_document(data))

    assert loaded.problems == ()
    assert loaded.data == data


@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(st.sampled_from(["apiVersion", "kind", "metadata", "spec", "extends"]), plain, max_size=5)
)
def test_no_data_makes_a_profile_raise(data):
    loaded = load_profile(dump_document(data).encode(), file="p.yaml")

    assert not loaded.ok
    assert loaded.problems == tuple(
        sorted(loaded.problems, key=lambda p: (p.file, p.line, p.column, p.path, p.message))
    )


def test_without_libyaml_the_outcome_is_the_same():
    code = """
import yaml
del yaml.CSafeLoader
from km_core.compile import load_document
for text in ("a: yes\\nb: [1, 0x1F]\\n", "a: ! 1\\n", "a: &x [*x]\\n", "[" * 100_000, "a: !!set {x}\\n", "a: 1\\n---\\n"):
    loaded = load_document(text)
    print(loaded.data, [(p.path, p.line, p.column, p.message) for p in loaded.problems])
"""
    here = code.replace("del yaml.CSafeLoader\n", "")
    without, with_it = (subprocess.check_output([sys.executable, "-c", text]) for text in (code, here))

    assert without.decode() == with_it.decode()


def test_an_unreadable_file_is_an_error_of_the_profile_family(tmp_path):
    with pytest.raises(ProfileError) as caught:
        load_profile(tmp_path / "nothing.yaml")
    assert "nothing.yaml" in caught.value.where

    with pytest.raises(ProfileError):
        load_profile(tmp_path)


def test_an_endless_file_is_read_only_to_the_cap():
    if not os.path.exists("/dev/zero"):
        pytest.skip("needs /dev/zero")
    loaded = load_profile("/dev/zero")

    assert [p.path for p in loaded.problems] == ["$"]


@pytest.mark.parametrize(
    "text",
    [
        "".join(f"metadat{i}: 1\n" for i in range(4_990)),
        "spec:\n" + "".join(f"  lifecycl{i}: 1\n" for i in range(4_990)),
        "spec: {network: {egress: {allowedHosts: [" + "!x a, " * 9_900 + "]}}}",
        "spec: {network: {egress: {allowedHosts: [" + "a:, " * 4_900 + "]}}}",
        "spec: {network: {egress: {allowedHosts: [" + "a" * 250_000 + "]}}}",
        "spec: {network: {egress: {allowedDNSSuffixes: [" + "a." * 125_000 + "]}}}",
        "spec: {email: {allowedSenders: [" + "a@" * 125_000 + "]}}",
        "spec: {execution: {shell: " + "/a" * 125_000 + "}}",
        "spec: {execution: {configFiles: {/home/sandbox/.claude/settings.json: '" + "[" * 200_000 + "'}}}",
    ],
    ids=["keys", "keys-below", "tags", "maps", "host", "labels", "sender", "shell", "json"],
)
def test_a_hostile_file_is_judged_within_a_second(text):
    start = time.perf_counter()
    loaded = load_profile(text, file="p.yaml")

    assert time.perf_counter() - start < 1
    assert not loaded.ok


def test_a_hostile_file_is_judged_within_100_mib():
    # VmHWM, not ru_maxrss: exec keeps the latter from the process that forked, a pytest of any size.
    code = """
import pathlib
from km_core.compile import load_document
for text in ("a: [" + "b, " * 80_000 + "]", "[" * 250_000, "a: [" + "b," * 9_990 + "]", "- " * 130_000, "a: '" + "x" * 250_000 + "'"):
    load_document(text)
print(pathlib.Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
"""
    assert int(subprocess.check_output([sys.executable, "-c", code])) < 100 * 1024
