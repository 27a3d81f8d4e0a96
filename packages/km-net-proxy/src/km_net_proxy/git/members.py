"""
What the JSON bodies of LFS and of the API name, read so that every server reads the same.

GitHub's LFS server is written in Go, whose decoder takes members in any case (encoding/json): a batch is
made anew from what is known of it (git-lfs, docs/api/batch.md).  Bodies of the API are open-ended, so
there a member that differs from a judged one in case only is refused.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.policy.refs import is_ref
from km_core.policy.repos import OWNER_PATTERN, canonical_repo
from km_net_proxy.http.exchange import ClientBodyError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from km_core.policy.github import Route
    from km_core.policy.repos import GitPolicy
    from km_core.types import Verdict

_OID = re.compile(r"[0-9a-f]{64}\Z")
_OWNER = re.compile(OWNER_PATTERN + r"\Z")
_LOOKED_UP = re.compile(r"(?:refs|heads|tags|remotes)/|(?:HEAD|@)\Z")
"""Names that git looks up in more places than one (gitrevisions(7))."""


@frozen
class Batch:
    """
    An LFS batch request.

    Attributes:
        direction: ``download`` or ``upload``.
        ref: the full ref that it is for; empty when it names none.
        members: the request as it is to be sent.
    """

    direction: str
    ref: str
    members: dict[str, Any]


def batch(body: Mapping[str, Any]) -> Batch:
    """
    Read an LFS batch request.

    Raises:
        ClientBodyError: it is none, or asks for something that is not known here.
    """
    direction, named, objects = body.get("operation"), body.get("ref"), body.get("objects", [])
    if direction not in ("download", "upload"):
        raise ClientBodyError("the LFS operation is neither download nor upload")
    if body.get("hash_algo", "sha256") != "sha256" or not isinstance(objects, list):
        raise ClientBodyError("the LFS request is malformed")
    ref = named.get("name") if isinstance(named, dict) else None
    ref = ref if isinstance(ref, str) and is_ref(ref) else ""
    # Other transfer adapters would move objects by ways that nobody judged.
    members = {"operation": direction, "transfers": ["basic"], "objects": [_object(each) for each in objects]}
    members |= {"ref": {"name": ref}} if ref else {}
    members |= {"hash_algo": "sha256"} if "hash_algo" in body else {}
    return Batch(direction, ref, members)


def _object(value: Any) -> dict[str, Any]:
    oid, size = (value.get("oid"), value.get("size")) if isinstance(value, dict) else (None, None)
    if not isinstance(oid, str) or not _OID.match(oid) or type(size) is not int or size < 0:
        raise ClientBodyError("an LFS object is not named by its digest and size")
    return {"oid": oid, "size": size}


def refs(route: Route, members: Mapping[str, Any]) -> list[str]:
    """
    Return the refs that the body of an API request names.

    Raises:
        ClientBodyError: a member that has to name one does not.
    """
    found = []
    for member, prefix in () if route.write is None else route.write.members:
        value = _only(members, member)
        if not isinstance(value, str) or not value or (prefix and _LOOKED_UP.match(value)):
            raise ClientBodyError(f"refs are limited, and the member {member} names none")
        if not is_ref(prefix + value):
            raise ClientBodyError(f"the member {member} is no ref")
        found.append(prefix + value)
    return found


def source(policy: GitPolicy, repo: str, members: Mapping[str, Any]) -> Verdict:
    """
    Judge where the commits of a pull request come from: ``head`` and ``head_repo``.

    Args:
        policy: the rules.
        repo: ``owner/name`` that the pull request is for.
        members: the body.

    Raises:
        ClientBodyError: it does not say.
    """
    head, named = _only(members, "head"), _only(members, "head_repo")
    if not isinstance(head, str) or not isinstance(named, str | None):
        raise ClientBodyError("the pull request does not say where its commits come from")
    owner, name = repo.split("/")
    user, mark, branch = head.partition(":")
    if not mark:
        user, branch = owner, head
    if not _OWNER.match(user) or not branch or ":" in branch:
        raise ClientBodyError("the pull request's head is neither a branch nor an owner and a branch")
    if named is not None:
        try:
            return policy.repository(canonical_repo(named if "/" in named else f"{user}/{named}"))
        except ValueError as error:
            raise ClientBodyError("the pull request's head_repo is no repository") from error
    return policy.repository(f"{owner}/{name}") if user.lower() == owner else policy.owner(user)


def _only(members: Mapping[str, Any], name: str) -> Any:
    if any(key != name and key.casefold() == name for key in members):
        raise ClientBodyError(f"the member {name} is there in another case")
    return members.get(name)
