"""
Which refs may be pushed (spec/network.md section 5.4, spec/github.md section 6).

Refs are compared exactly, case included.  What no pattern takes is denied.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from km_core.types.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_REF = 4096
"""Longest name of a ref that is looked at, in characters."""

_FORBIDDEN = re.compile(r"[\x00-\x20\x7f~^:?*\[\\]|\.\.|@\{|//|/\.|\.lock(?:/|\Z)|\.(?:/|\Z)|/\Z")


def is_ref(name: str) -> bool:
    """Say whether *name* is a full ref: from ``refs/`` on and well formed (git-check-ref-format(1))."""
    return len(name) <= MAX_REF and re.match(r"refs/[^./]", name) is not None and not _FORBIDDEN.search(name)


def ref_allowed(patterns: Sequence[str] | None, ref: str) -> Verdict:
    """
    Judge a ref that would be pushed: created, moved or deleted.

    Absent patterns allow every ref, an empty list none (DESIGN section 6).  A pattern is compared with
    the short name of ``refs/heads/…``; tags and everything else must be spelled from ``refs/`` on.
    """
    if patterns is None:
        return Verdict(allow=True, rule="allowedRefs absent", layer="git", reason="every ref is allowed")
    full = ref if ref.startswith("refs/") or ref == "HEAD" else f"refs/heads/{ref}"
    for index, pattern in enumerate(patterns):
        wanted = pattern if pattern.startswith("refs/") else f"refs/heads/{pattern}"
        plain = full.startswith(("refs/heads/", "refs/tags/"))
        if (plain and fnmatchcase(full, wanted)) or full == wanted:
            return Verdict(
                allow=True,
                rule=f"sourceAccess.github.allowedRefs[{index}] {pattern}",
                layer="git",
                reason=f"{full} is allowed",
            )
    return Verdict(allow=False, rule="default-deny", layer="git", reason=f"{full} is not in allowedRefs")
