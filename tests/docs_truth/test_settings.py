"""Every environment variable and configuration key that code reads has its row, and no other has one."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
from sitepages import reading

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("*/*/README.md")])
VARIABLE = re.compile(r"(?<![A-Za-z0-9_$])\$?\{?(KM_[A-Z][A-Z0-9_]*[A-Z0-9])(?![A-Za-z0-9_])")
NOT_VARIABLES = {"KM_PLUGIN_API"}


def read_in_code() -> set[str]:
    """Names that stand as whole strings in Python code, and those that scripts expand or export."""
    found = set()
    shell = [*ROOT.glob("scripts/*"), *ROOT.glob("scripts/image/*"), *ROOT.glob(".ci/*")]
    for path in [*ROOT.glob("packages/*/src/**/*.py"), *ROOT.glob("scripts/**/*.py"), *shell]:
        if not path.is_file() or "/testing/" in str(path):
            continue
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".py" or "python" in text.partition("\n")[0]:
            strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
            found |= {s for s in strings if isinstance(s, str) and re.fullmatch(r"KM_[A-Z0-9_]*[A-Z0-9]", s)}
        else:
            found |= set(VARIABLE.findall(text))
    return found - NOT_VARIABLES


def keys() -> tuple[set[str], set[str]]:
    """Return the configuration's keys, and the variables that stand for one."""
    from km_core.config import known_keys

    everything = set(known_keys())
    return everything, {"KM_" + key.upper() for key in everything if "." not in key}


def rows(page: str) -> set[str]:
    text = (ROOT / "docs" / "reference" / page).read_text(encoding="utf-8")
    return set(re.findall(r"^\| `([\w.]+)` \|", text, re.MULTILINE))


def test_every_variable_has_a_row_and_every_row_a_variable() -> None:
    assert rows("environment.md") == read_in_code() - keys()[1]


def test_every_configuration_key_has_a_row_and_every_row_a_key() -> None:
    assert rows("configuration.md") == keys()[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_page_names_a_variable_that_is_not_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    # Plugins have variables of their own: those of the examples, and those that code on the page reads.
    sources = [*(path.read_text(encoding="utf-8") for path in ROOT.glob("examples/*/src/**/*.py"))]
    theirs = set(re.findall(r"\"(KM_[A-Z0-9_]+)\"", "".join([*sources, *reading.code(text, "python")])))

    assert set(VARIABLE.findall(text)) - rows("environment.md") - keys()[1] - NOT_VARIABLES - theirs == set()
