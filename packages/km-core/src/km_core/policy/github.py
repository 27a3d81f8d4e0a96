"""
GitHub's hosts, and what one request to them asks for (spec/network.md section 5.2, spec/github.md section 7).

`classify` is pure: host, method and request target in, repository and operation out.  What it does not
know it denies, and nothing is read in two ways: a path that another server could normalise differently
is refused, not repaired.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus, unquote_to_bytes

from attrs import frozen

from km_core.policy.github_api import api_write
from km_core.policy.repos import OWNER_PATTERN
from km_core.types.verdict import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from km_core.policy.github_api import ApiWrite

WEB = "github.com"
API = "api.github.com"
UPLOADS = "uploads.github.com"
SSH_HOST = "ssh.github.com"

GITHUB_SECRET = "github-token"  # noqa: S105 - the name of a secret, not its value
"""Name of the operator's credential for GitHub, which the gate puts on allowed requests."""

SIGNED_HOSTS = frozenset(
    {
        "objects.githubusercontent.com",
        "release-assets.githubusercontent.com",
        "github-cloud.githubusercontent.com",
        "github-cloud.s3.amazonaws.com",
        "lfs.github.com",
    }
)
"""Hosts whose URLs name no repository: only those that GitHub handed out to the sandbox are followed."""

GIT_HOSTS = SIGNED_HOSTS | {
    WEB,
    API,
    UPLOADS,
    "codeload.github.com",
    "raw.githubusercontent.com",
    "media.githubusercontent.com",
}
"""Hosts that a list of repositories opens, on port 443, each request judged."""

_PARENTS = ("github.com", "githubusercontent.com", "ghcr.io")
_SAFE = ("GET", "HEAD")
_SEGMENT = re.compile(r"[A-Za-z0-9._-]{1,100}\Z")
_OWNER = re.compile(OWNER_PATTERN + r"\Z")
_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_TWICE = re.compile(r"%(?:2[eEfF5]|5[cC]|0[0-9aA-Fa-f])")
_PAGES = frozenset(
    {
        "archive",
        "blob",
        "commit",
        "commits",
        "compare",
        "issues",
        "pull",
        "pulls",
        "raw",
        "releases",
        "tags",
        "tarball",
        "tree",
        "zipball",
    }
)
_ARCHIVES = frozenset({"zip", "tar.gz", "legacy.zip", "legacy.tar.gz"})
_OPEN_API = frozenset({"", "rate_limit", "meta", "zen", "user", "installation/repositories"})
_SERVICES = {
    "service=git-upload-pack": "fetch",
    "service=git-receive-pack": "push-discovery",
}


@frozen
class Route:
    """
    What a request asks for.

    Attributes:
        operation: ``fetch``, ``push-discovery``, ``push`` (refs stand in the body), ``lfs-batch`` (direction
            stands in the body), ``lfs-lock``, ``read``, ``api-write``, ``upload``, ``graphql``, ``signed``
            (only a URL that was handed out), ``open`` (about no repository), ``any-read`` (about no
            repository or any).
        repo: ``owner/name`` in lower case; empty when the request names none.
        repo_id: the number that stands for the repository instead, or empty.
        write: for ``api-write``, which refs it moves.
    """

    operation: str
    repo: str = ""
    repo_id: str = ""
    write: ApiWrite | None = None

    @property
    def smart(self) -> bool:
        """Whether a git client reads the answer."""
        return self.operation in {"fetch", "push-discovery", "push"}


class _UnclearError(ValueError):
    """The target can be read in several ways, or is none of GitHub's."""


def is_git_host(name: str) -> bool:
    """Say whether a canonical name is GitHub's, so that repository rules concern it."""
    return name in GIT_HOSTS or name.endswith(tuple(f".{parent}" for parent in _PARENTS)) or name in _PARENTS


def classify(host: str, method: str, target: str) -> Route | Verdict:
    """
    Say what a request asks for.

    Args:
        host: one of `GIT_HOSTS`.
        method: HTTP method.
        target: request target in origin form.

    Returns:
        The route, or the denial of a request that is no known one.
    """
    try:
        segments, query = _segments(target)
        if _overrides(query):
            raise _UnclearError("the request's query says that another method is meant")
        route = _CLASSIFIERS.get(host, _signed)(method, segments, query)
    except _UnclearError as error:
        return _denied("builtin:git-path", str(error))
    return route or _denied(
        "builtin:git-route", f"{host} serves this request for no repository that is allowed"
    )


def _denied(rule: str, reason: str) -> Verdict:
    return Verdict(False, rule, "git", reason)


def _segments(target: str) -> tuple[list[str], str]:
    """Return the path's decoded segments and the raw query."""
    path, _, query = target.partition("?")
    if not path.startswith("/") or "#" in target:
        raise _UnclearError("the request's path is malformed")
    if path == "/":
        return [], query
    segments = [_decoded(raw) for raw in path[1:].split("/")]
    if any(part in {"", ".", ".."} for segment in segments for part in segment.split("/")):
        raise _UnclearError("the request's path has an empty segment or one of dots")
    return segments, query


def _decoded(raw: str) -> str:
    if "%" not in raw:
        text = raw
    elif _ESCAPE.search(raw):
        raise _UnclearError("the request's path is not encoded correctly")
    else:
        try:
            text = unquote_to_bytes(raw).decode("utf-8")
        except UnicodeDecodeError as error:
            raise _UnclearError("the request's path is not UTF-8") from error
    if "\\" in text or not text.isprintable() or _TWICE.search(text):
        raise _UnclearError("the request's path holds characters that servers read differently")
    return text


def _repo(owner: str, name: str, *, suffix: bool = False) -> str:
    """Return ``owner/name``; percent signs, white space and the like are in no repository's name."""
    if suffix:
        name = name.removesuffix(".git")
    if not _OWNER.match(owner) or not _SEGMENT.match(name) or name.lower().endswith(".git"):
        raise _UnclearError("the request's path names no repository")
    return f"{owner}/{name}".lower()


def _web(method: str, segments: Sequence[str], query: str) -> Route | None:
    if len(segments) < 2:
        return Route("open") if method in _SAFE and segments in ([], ["robots.txt"]) else None
    repo, rest = _repo(segments[0], segments[1], suffix=True), "/".join(segments[2:])
    if rest == "info/refs":
        operation = _SERVICES.get(query)
        return Route(operation, repo) if operation and method == "GET" else None
    if rest in {"git-upload-pack", "git-receive-pack"}:
        if method != "POST" or query:
            return None
        return Route("fetch" if rest == "git-upload-pack" else "push", repo)
    if rest == "info/lfs/objects/batch":
        return Route("lfs-batch", repo) if method == "POST" and not query else None
    if rest == "info/lfs/locks" or re.fullmatch(r"info/lfs/locks/(?:verify|[A-Za-z0-9-]+/unlock)", rest):
        return Route("read" if method in _SAFE else "lfs-lock", repo) if method in {*_SAFE, "POST"} else None
    if method in _SAFE and (len(segments) == 2 or segments[2] in _PAGES):
        return _compared(Route("read", repo), segments[2:])
    return None


def _api(method: str, segments: Sequence[str], _query: str) -> Route | None:
    if segments[:1] == ["repos"] and len(segments) >= 3:
        return _api_of(method, segments[3:], Route("read", _repo(segments[1], segments[2])))
    if segments[:1] == ["repositories"] and len(segments) >= 2 and re.fullmatch("[0-9]{1,20}", segments[1]):
        return _api_of(method, segments[2:], Route("read", repo_id=segments[1]))
    if segments == ["graphql"]:
        return Route("graphql") if method == "POST" else None
    if method not in _SAFE:
        return None
    return Route("open" if "/".join(segments) in _OPEN_API else "any-read")


def _api_of(method: str, rest: Sequence[str], read: Route) -> Route | None:
    if method in _SAFE:
        return _compared(read, rest)
    write = api_write(method, rest)
    return None if write is None else Route("api-write", read.repo, read.repo_id, write)


def _compared(read: Route, rest: Sequence[str]) -> Route:
    """Return *read*, or what it is in truth: ``compare/main...OWNER:NAME:BRANCH`` shows another repository."""
    kind, _, sides = "/".join(rest).lower().removeprefix("dependency-graph/").partition("/")
    if kind not in {"compare", "pull"}:
        return read
    owner, _, name = read.repo.partition("/")
    for side in sides.replace("...", "..").split(".."):
        if ":" in side and tuple(side.split(":")[:-1]) not in {(owner,), (owner, name)}:
            return Route("any-read")
    return read


def _overrides(query: str) -> bool:
    names = (unquote_plus(member.partition("=")[0]) for member in re.split("[&;]", query))
    return any(name.strip().lower() == "_method" for name in names)


def _raw(method: str, segments: Sequence[str], _query: str) -> Route | None:
    if method not in _SAFE or len(segments) < 4:
        return None
    return Route("read", _repo(segments[0], segments[1]))


def _media(method: str, segments: Sequence[str], _query: str) -> Route | None:
    if method not in _SAFE or len(segments) < 5 or segments[0] != "media":
        return None
    return Route("read", _repo(segments[1], segments[2]))


def _codeload(method: str, segments: Sequence[str], _query: str) -> Route | None:
    if method not in _SAFE or len(segments) < 4 or segments[2] not in _ARCHIVES:
        return None
    return Route("read", _repo(segments[0], segments[1]))


def _uploads(method: str, segments: Sequence[str], _query: str) -> Route | None:
    if method != "POST" or len(segments) != 6 or segments[0] != "repos":
        return None
    if segments[3] != "releases" or segments[5] != "assets" or not re.fullmatch("[0-9]{1,20}", segments[4]):
        return None
    return Route("upload", _repo(segments[1], segments[2]))


def _signed(method: str, _segments: Sequence[str], _query: str) -> Route | None:
    return Route("signed") if method in {*_SAFE, "PUT", "POST"} else None


_CLASSIFIERS: dict[str, Callable[[str, Sequence[str], str], Route | None]] = {
    WEB: _web,
    API: _api,
    UPLOADS: _uploads,
    "raw.githubusercontent.com": _raw,
    "media.githubusercontent.com": _media,
    "codeload.github.com": _codeload,
}
