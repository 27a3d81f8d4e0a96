"""
Which repositories may be reached (spec/network.md section 5.1), and `GitPolicy`, the rules of one sandbox.

Repositories are compared case-insensitively.  Default deny: an empty list allows nothing.
"""

from __future__ import annotations

import re
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.policy.refs import ref_allowed
from km_core.types.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.plan import GitPlan
    from km_core.policy.github import Route

_UNKNOWN = "the URL names no repository and was not handed out by an answer about one that is allowed"
OWNER_PATTERN = r"[A-Za-z0-9_-]{1,39}"
"""An account's name; those that a company manages end in ``_`` and the company's short code."""

_REPO = re.compile(rf"{OWNER_PATTERN}/[a-z0-9._-]{{1,100}}\Z")


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


def _wanted(pattern: str) -> str:
    return pattern.lower().removeprefix("github.com/").removesuffix(".git")


def repo_allowed(patterns: Sequence[str], repo: str) -> Verdict:
    """Judge a repository against ``allowedRepos``: ``*``, ``owner/*``, ``owner/prefix-*`` or exact."""
    name = canonical_repo(repo)
    owner, _, short = name.partition("/")
    for index, pattern in enumerate(patterns):
        rule = f"sourceAccess.github.allowedRepos[{index}] {pattern}"
        wanted = _wanted(pattern)
        if wanted == "*":
            return Verdict(allow=True, rule=rule, layer="git", reason="every repository is allowed")
        wanted_owner, _, wanted_short = wanted.partition("/")
        if owner == wanted_owner and fnmatchcase(short, wanted_short):
            return Verdict(allow=True, rule=rule, layer="git", reason=f"{name} is allowed")
    reason = "no repository is allowed" if not patterns else f"{name} is not in allowedRepos"
    return Verdict(allow=False, rule="default-deny", layer="git", reason=reason)


@frozen
class GitPolicy:
    """
    The repository and ref rules of one sandbox.

    Attributes:
        repos: patterns of `repo_allowed`.
        refs: patterns of `ref_allowed`; None for every ref.
    """

    repos: tuple[str, ...]
    refs: tuple[str, ...] | None

    @property
    def everything(self) -> bool:
        """Whether every repository is allowed."""
        return any(_wanted(pattern) == "*" for pattern in self.repos)

    @classmethod
    def from_plan(cls, git: GitPlan) -> GitPolicy | None:
        """Return the rules of a plan; None when it names no repository, so that GitHub is a host like others."""
        if git.mode == "none" or not git.repos:
            return None
        return cls(git.repos, git.refs)

    def repository(self, repo: str) -> Verdict:
        """Say whether a repository may be reached."""
        return repo_allowed(self.repos, repo)

    def owner(self, owner: str) -> Verdict:
        """Say whether every repository of an owner may be reached, as where one is meant but not named."""
        for index, pattern in enumerate(self.repos):
            if _wanted(pattern) in {"*", f"{owner.lower()}/*"}:
                rule = f"sourceAccess.github.allowedRepos[{index}] {pattern}"
                return Verdict(True, rule, "git", f"every repository of {owner} is allowed")
        return Verdict(
            False, "default-deny", "git", f"which repository of {owner} is meant is not said in head_repo"
        )

    def ref(self, ref: str) -> Verdict:
        """Say whether a ref may be pushed."""
        return ref_allowed(self.refs, ref)

    def route(self, route: Route) -> Verdict:
        """
        Judge what a request asks for as far as its head says it; a body may still name refs that are denied.

        A ``signed`` URL and a repository given by number are for the caller to judge, who knows what was
        handed out: here they are denied.
        """
        operation = route.operation
        if operation == "open":
            return Verdict(True, "builtin:git-open", "git", "the request is about no repository")
        if operation in {"any-read", "graphql"}:
            return self._any(operation)
        if not route.repo:
            return Verdict(False, "builtin:git-unknown", "git", _UNKNOWN)
        verdict = self.repository(route.repo)
        if not verdict.allow:
            return verdict
        moves = route.write is not None and (route.write.moves or route.write.stores)
        if operation in {"push", "push-discovery", "upload", "lfs-lock"} or moves:
            pushes = self.pushes()
            if not pushes.allow:
                return pushes
        if route.write is not None and route.write.unclear and self.refs is not None:
            return Verdict(
                False, "builtin:git-ref-unknown", "git", "this request moves a ref without naming it"
            )
        if route.write is not None:
            denied = [answer for answer in map(self.ref, route.write.refs) if not answer.allow]
            return denied[0] if denied else verdict
        return verdict

    def _any(self, operation: str) -> Verdict:
        if not self.everything:
            return Verdict(
                False, "builtin:git-any", "git", "this request can reach any repository; only * allows it"
            )
        if operation == "graphql" and self.refs is not None:
            return Verdict(
                False, "builtin:git-ref-unknown", "git", "GraphQL can move refs, and refs are limited"
            )
        return self.repository("any/repository")

    def pushes(self) -> Verdict:
        """Say whether anything may be pushed at all."""
        if self.refs is not None and not self.refs:
            return Verdict(False, "default-deny", "git", "allowedRefs is empty, so no ref may be pushed")
        return Verdict(True, "allowedRefs", "git", "some refs may be pushed")
