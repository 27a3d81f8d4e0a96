"""Every built-in rule of the gate is explained where a refused person looks, and no other is."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RULE = re.compile(r"builtin:[a-z0-9-]+")


def test_every_builtin_rule_is_explained_and_every_explained_rule_is_there() -> None:
    used = set()
    for path in ROOT.glob("packages/*/src/**/*.py"):
        if "/testing/" in str(path):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and RULE.fullmatch(node.value):
                used.add(node.value)
    text = (ROOT / "docs" / "guide" / "denials.md").read_text(encoding="utf-8")

    assert set(RULE.findall(text)) == used
