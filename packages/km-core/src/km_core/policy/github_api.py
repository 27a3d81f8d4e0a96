"""
Which writes of GitHub's REST API are passed on, and which of them move refs (spec/network.md section 5.4).

An allow list: what administers a repository (visibility, collaborators, hooks, keys, secrets, forks,
transfers) or is not known here is no write that a list of repositories allows.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Sequence


@frozen
class ApiWrite:
    """
    What a write does to refs.

    Attributes:
        refs: full refs that the path names.
        members: members of the JSON body that name a ref, with what stands before their value:
            ``refs/heads/`` for a branch, ``refs/tags/`` for a tag, nothing for a full ref.  Each must be there.
        unclear: it moves a ref that neither path nor body names.
        stores: it stores objects without moving a ref.
        heads: the JSON body says which repository's commits are meant.
    """

    refs: tuple[str, ...] = ()
    members: tuple[tuple[str, str], ...] = field(default=())
    unclear: bool = False
    stores: bool = False
    heads: bool = False

    @property
    def moves(self) -> bool:
        """Whether any ref is moved, created or deleted."""
        return bool(self.refs or self.members or self.unclear)


_NUMBER = r"[0-9]{1,20}"
_PLAIN = (
    # Conversation: issues, pull requests, reviews, comments, labels, and what is said about a commit.
    # No sub-issues and no dependencies: their bodies name issues of other repositories by number.
    (("POST",), r"issues|labels|milestones"),
    (("POST", "PATCH", "PUT", "DELETE"), rf"issues/{_NUMBER}(?:/(?:labels(?:/.+)?|assignees|lock))?"),
    (("POST", "PATCH", "DELETE"), rf"issues/(?:{_NUMBER}|comments/{_NUMBER})(?:/reactions(?:/{_NUMBER})?)?"),
    (("POST", "PATCH", "DELETE"), rf"issues/{_NUMBER}/comments|labels/[^/]+|milestones/{_NUMBER}"),
    (("PATCH",), rf"pulls/{_NUMBER}"),
    (
        ("POST", "PUT", "PATCH", "DELETE"),
        rf"pulls/{_NUMBER}/(?:comments|reviews|requested_reviewers)(?:/.+)?",
    ),
    (("POST", "PATCH", "DELETE"), r"pulls/comments/.+|comments/.+"),
    (("POST",), r"commits/[0-9a-f]{7,64}/comments|statuses/[0-9a-f]{7,64}"),
    (("POST", "PATCH"), r"check-(?:runs|suites)(?:/.+)?"),
    # Runs of the repository's own workflows, again.
    (("POST",), rf"actions/runs/{_NUMBER}/(?:rerun|rerun-failed-jobs|cancel)|actions/jobs/{_NUMBER}/rerun"),
    (("POST",), r"releases/generate-notes"),
)
_BRANCH, _TAG = "refs/heads/", "refs/tags/"
_MOVING = (
    (("POST",), r"pulls", ApiWrite(heads=True)),
    (("POST",), r"git/refs", ApiWrite(members=(("ref", ""),))),
    (("PUT", "DELETE"), r"contents/.+", ApiWrite(members=(("branch", _BRANCH),))),
    (("POST",), r"merges", ApiWrite(members=(("base", _BRANCH),))),
    (("POST",), r"merge-upstream", ApiWrite(members=(("branch", _BRANCH),))),
    (("POST",), r"releases", ApiWrite(members=(("tag_name", _TAG),))),
    (("PATCH",), rf"releases/{_NUMBER}", ApiWrite(members=(("tag_name", _TAG),))),
    (("POST",), r"git/tags", ApiWrite(members=(("tag", _TAG),))),
    (("POST",), r"git/(?:blobs|trees|commits)", ApiWrite(stores=True)),
    (("PATCH", "DELETE"), rf"releases/assets/{_NUMBER}", ApiWrite(stores=True)),
    (("POST",), r"actions/workflows/[^/]+/dispatches", ApiWrite(unclear=True)),
    (("PUT",), rf"pulls/{_NUMBER}/(?:merge|update-branch)", ApiWrite(unclear=True)),
    (("POST",), r"branches/.+/rename", ApiWrite(unclear=True)),
)


def api_write(method: str, rest: Sequence[str]) -> ApiWrite | None:
    """
    Say what a write below ``/repos/OWNER/NAME`` does to refs.

    Args:
        method: anything but GET and HEAD.
        rest: decoded path segments after the repository.

    Returns:
        None when the request is not passed on for any repository.
    """
    path = "/".join(rest)
    if method in {"PATCH", "DELETE"} and path.startswith("git/refs/"):
        return ApiWrite(refs=("refs/" + path.removeprefix("git/refs/"),))
    for methods, pattern, write in _MOVING:
        if method in methods and re.fullmatch(pattern, path):
            return write
    if any(method in methods and re.fullmatch(pattern, path) for methods, pattern in _PLAIN):
        return ApiWrite()
    return None
