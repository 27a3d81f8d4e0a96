"""
Repository and ref rules (spec/network.md sections 5.1 and 5.4).

Repositories are compared case-insensitively; refs exactly.  Default deny: an empty list allows nothing.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from km_core.types.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

_REPO = re.compile(r"[a-z0-9-]{1,39}/[a-z0-9._-]{1,100}\Z")


def canonical_repo(text: str) -> str:
    """
    Return ``owner/name`` in lower case, without scheme, host, ``.git`` or a trailing slash.

    Raises:
        ValueError: the text names no repository.
    """
    name = text.strip().lower()
    for prefix in ("https://", "http://", "ssh://git@", "git@"):
        name = name.removeprefix(prefix)
    for prefix in ("github.com/", "github.com:"):
        name = name.removeprefix(prefix)
    name = name.rstrip("/").removesuffix(".git")
    if not _REPO.match(name) or name.rpartition("/")[2] in {".", ".."}:
        raise ValueError(f"{text!r} is not owner/name")
    return name


def repo_allowed(patterns: Sequence[str], repo: str) -> Verdict:
    """Judge a repository against ``allowedRepos``: ``*``, ``owner/*``, ``owner/prefix-*`` or exact."""
    name = canonical_repo(repo)
    owner, _, short = name.partition("/")
    for index, pattern in enumerate(patterns):
        rule = f"sourceAccess.github.allowedRepos[{index}] {pattern}"
        wanted = pattern.lower().removeprefix("github.com/")
        if wanted == "*":
            return Verdict(allow=True, rule=rule, layer="git", reason="every repository is allowed")
        wanted_owner, _, wanted_short = wanted.partition("/")
        if owner == wanted_owner and fnmatchcase(short, wanted_short):
            return Verdict(allow=True, rule=rule, layer="git", reason=f"{name} is allowed")
    reason = "no repository is allowed" if not patterns else f"{name} is not in allowedRepos"
    return Verdict(allow=False, rule="default-deny", layer="git", reason=reason)


def ref_allowed(patterns: Sequence[str] | None, ref: str) -> Verdict:
    """
    Judge a ref that would be pushed.

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
