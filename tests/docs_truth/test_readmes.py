"""Each distribution's README has the same parts in the same order, and names what the code offers."""

from __future__ import annotations

import ast
import re
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sitepages import reading

from km_core.types import Answer

ROOT = Path(__file__).resolve().parents[2]
PARTS = [
    "What it does",
    "Profile fields it owns",
    "Sidecars",
    "Metrics and events",
    "Health checks",
    "Examples",
]
FOLDERS = sorted(
    path.parent for path in [*ROOT.glob("packages/*/pyproject.toml"), *ROOT.glob("examples/*/pyproject.toml")]
)
INSTALLED = [path for path in FOLDERS if path.parent.name == "packages"]


def readme(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def part(folder: Path, title: str) -> str:
    """Return the text below one heading."""
    match = re.search(rf"^## {title}$(.*?)(?=^## |\Z)", readme(folder), re.MULTILINE | re.DOTALL)
    assert match is not None, title
    return match[1]


def offered(folder: Path, hook: str) -> list[Any]:
    project = tomllib.loads((folder / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found = []
    for target in project.get("entry-points", {}).get("km.plugins", {}).values():
        function = getattr(import_module(target), hook, None)
        found += list(function()) if function is not None else []
    return found


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_readme_has_the_parts_in_order(folder: Path) -> None:
    titles = reading.headings(readme(folder))

    assert titles[0] == (1, folder.name)
    assert [title for level, title in titles if level == 2 and title in PARTS] == PARTS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda p: p.name)
def test_a_readme_says_something_in_every_part(folder: Path) -> None:
    assert [title for title in PARTS if not part(folder, title).strip()] == []


@pytest.mark.parametrize("folder", INSTALLED, ids=lambda p: p.name)
def test_a_readme_names_the_sidecars_and_health_checks(folder: Path) -> None:
    sidecars = [sidecar.name for sidecar in offered(folder, "km_sidecars")]
    checks = [check.name for check in offered(folder, "km_doctor_checks")]

    assert [name for name in sidecars if f"`{name}`" not in part(folder, "Sidecars")] == []
    assert [name for name in checks if f"`{name}`" not in part(folder, "Health checks")] == []


@pytest.mark.parametrize("folder", INSTALLED, ids=lambda p: p.name)
def test_a_readme_names_the_fields_that_the_distribution_enforces(folder: Path) -> None:
    from km_core.compile.claims import core_claims

    owned = re.findall(r"`([a-zA-Z]+(?:\.[a-zA-Z]+)*)(?:\.\*)?`", part(folder, "Profile fields it owns"))
    claims = [*core_claims(), *offered(folder, "km_field_claims")]
    enforced = {c.path for c in claims if c.by == folder.name and c.answer is Answer.ENFORCED}

    assert sorted(p for p in enforced if not any(p == o or p.startswith(f"{o}.") for o in owned)) == []


@pytest.mark.parametrize("folder", INSTALLED, ids=lambda p: p.name)
def test_events_that_a_readme_names_are_raised_by_code(folder: Path) -> None:
    text = part(folder, "Metrics and events")
    named = [
        word
        for word in re.findall(r"`([a-z]+(?:_[a-z]+)*)`", text)
        if "_" in word or folder.name == "km-embedded"
    ]
    sources = "".join(path.read_text(encoding="utf-8") for path in ROOT.glob("packages/*/src/**/*.py"))

    assert [word for word in named if f'"{word}"' not in sources] == []


def test_events_that_are_told_to_notifiers_are_named_in_a_readme() -> None:
    """A call ``emit(ID, "kind", …)`` without ``tell=False`` is told."""
    told = set()
    for path in ROOT.glob("packages/*/src/**/*.py"):
        if "/testing/" in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "emit" and len(node.args) > 1:
                kind = node.args[1]
                quiet = any(k.arg == "tell" for k in node.keywords)
                if isinstance(kind, ast.Constant) and not quiet:
                    told.add(str(kind.value))
    texts = "".join(part(folder, "Metrics and events") for folder in INSTALLED)

    assert told
    assert sorted(kind for kind in told if f"`{kind}`" not in texts) == []
