"""Sandbox ids and aliases (spec/cli.md section 4)."""

from __future__ import annotations

import re
import secrets
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

ID_PATTERN = re.compile(r"[a-z][a-z0-9]{0,11}-[a-f0-9]{8}\Z")
ALIAS_PATTERN = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")


def new_sandbox_id(prefix: str = "sb", *, token_hex: Callable[[int], str] = secrets.token_hex) -> str:
    """Return a fresh id: *prefix*, a dash and 8 random hex digits."""
    return f"{prefix}-{token_hex(4)}"


def is_sandbox_id(text: str) -> bool:
    """Say whether *text* has the shape of a sandbox id."""
    return ID_PATTERN.match(text) is not None


def is_alias(text: str) -> bool:
    """Say whether *text* may be an alias."""
    return ALIAS_PATTERN.match(text) is not None
