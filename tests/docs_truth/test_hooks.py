"""Every hook has a page that says all a plugin's author needs; no page names a hook that is not there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from sitepages import hooks

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")])
HOOKS = {hook.name: hook for hook in hooks.hooks()}
MODULES = {path.name for path in [*ROOT.glob("packages/*/src/*"), *ROOT.glob("examples/*/src/*")]}


def test_there_is_a_page_for_every_hook_that_the_manager_knows() -> None:
    from km_core.plugins import new_manager

    known = {name for name in vars(new_manager().hook) if name.startswith("km_")}

    assert set(HOOKS) == known
    assert {f"hooks/{name}.md" for name in known} <= set(hooks.pages())


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_a_hooks_documentation_is_whole(name: str) -> None:
    hook = HOOKS[name]
    parameters = re.findall(r"(\w+): ", hook.signature.partition(" -> ")[0])

    assert hook.doc.summary.endswith("."), "the first paragraph is one sentence"
    assert hook.doc.shape in hooks.SHAPES, "Shape: offer, collect or tell"
    assert "Called" in str(hook.doc.notes) + str(hook.doc.text), "who calls it, and when"
    assert hook.doc.notes.get("Failure"), "what happens when an implementation raises"
    assert list(hook.doc.args) == parameters
    if not hook.signature.endswith("-> None"):
        assert hook.doc.returns, "what comes back"


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_a_hooks_example_is_python_that_implements_it(name: str) -> None:
    example = HOOKS[name].doc.example

    assert example, "no example"
    compile(example, name, "exec")
    assert "@hookimpl" in example
    assert f"def {name}(" in example


@pytest.mark.parametrize("name", sorted(HOOKS))
def test_a_hooks_page_shows_signature_shape_and_types(name: str) -> None:
    page = hooks.pages()[f"hooks/{name}.md"]

    assert HOOKS[name].signature in page
    assert f"Shape: **{HOOKS[name].doc.shape}**" in page
    assert all(f"`~{kind}`" in page for kind in HOOKS[name].types)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_names_a_hook_that_is_not_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = set(re.findall(r"`(km_[a-z_]+)(?:\(\))?`", text)) | set(re.findall(r"def (km_[a-z_]+)\(", text))

    assert named - set(HOOKS) - MODULES == set()


def test_the_parser_keeps_the_parts_of_a_docstring_apart() -> None:
    doc = hooks.parse(
        "Do a thing.\n\nMore: about it.\n\nShape: tell.  Called once,\n    or twice.\nFailure: it ends.\n\n"
        "Args:\n    one: the first,\n        in two lines.\n    two: the second.\n\nReturns:\n    Nothing: at all.\n\n"
        "Example:\n    ::\n\n        @hookimpl\n        def f():\n\n            pass\n"
    )

    assert doc.summary == "Do a thing."
    assert doc.shape == "tell"
    assert doc.notes == {"More": "about it.", "Shape": "tell. Called once, or twice.", "Failure": "it ends."}
    assert doc.args == {"one": "the first, in two lines.", "two": "the second."}
    assert doc.returns == "Nothing: at all."
    assert doc.example == "@hookimpl\ndef f():\n\n    pass"
