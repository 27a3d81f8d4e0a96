"""``docs/errors.md`` has one heading for each error code in the sources, and no other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = re.compile(r"[a-z]+(-[a-z]+)*")
RAISERS = re.compile(r"(Error|Denied|Exceeded|Problem|Defect|add)$")


def codes_in(tree: ast.AST) -> set[str]:
    """Error codes: class attributes of errors, and ``code=`` given to errors and findings."""
    found = set()
    named = {
        target.id: node.value.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for item in node.body:
                if isinstance(item, ast.Assign | ast.AnnAssign) and isinstance(item.value, ast.Constant):
                    targets = item.targets if isinstance(item, ast.Assign) else [item.target]
                    if any(isinstance(t, ast.Name) and t.id == "code" for t in targets):
                        found.add(str(item.value.value))
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for keyword in node.keywords:
                if keyword.arg == "code" and RAISERS.search(called):
                    value = keyword.value
                    if isinstance(value, ast.Constant):
                        found.add(str(value.value))
                    elif isinstance(value, ast.Name):
                        found.add(str(named.get(value.id, "")))
    return {code for code in found if CODE.fullmatch(code)}


def test_every_error_code_has_a_heading_and_every_heading_a_code() -> None:
    codes = set()
    for path in sorted((ROOT / "packages").glob("*/src/**/*.py")):
        codes |= codes_in(ast.parse(path.read_text(encoding="utf-8")))
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    headings = set(re.findall(r"^## (.+)$", text, re.MULTILINE))

    assert headings == codes


def test_headings_are_not_repeated() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)

    assert len(set(headings)) == len(headings)
