"""
Paths of model hosts that keep or serve data instead of answering a call.

With them a host that is allowed for model calls would be a store: files, batches, fine-tuning sets, vector
stores, containers and shared objects of the provider's "files" family, as its references name them; so are
answers that it keeps.  Others hand out keys of their own for the operator's.  All are refused whether or not
a ceiling is set.
"""

from __future__ import annotations

import re

_PLAIN = re.compile(r"/(?:[A-Za-z0-9._~@:+-]+(?:/[A-Za-z0-9._~@:+-]+)*/?)?\Z")
STORES = frozenset(
    {
        "files",
        "uploads",
        "batches",
        "vector_stores",
        "containers",
        "fine_tuning",
        "fine-tunes",
        "fine_tunes",
        "evals",
        "assistants",
        "threads",
        "conversations",
        "skills",
        "environments",
        "sessions",
        "agents",
        "deployments",
        "dreams",
        "memory_stores",
        "vaults",
        "user_profiles",
        "webhooks",
        "webhook_endpoints",
        "voices",
        "voice_consents",
        "chatkit",
        "projects",
        "organization",
        "organizations",
        "client_secrets",
        "transcription_sessions",
        "api_keys",
        "create_api_key",
    }
)
"""Segments of a path, in any depth."""
_CALLS = frozenset({"POST", "OPTIONS"})
_KEPT_ANSWERS = ("chat", "completions")


def plain_path(target: str) -> str:
    """
    Return the path of a request target without its query, or an empty string when it is unusual.

    Unusual is what servers normalise in different ways: percent escapes, empty and dot segments,
    parameters, backslashes.
    """
    if target.startswith(("http://", "https://")):
        target = "/" + target.partition("//")[2].partition("/")[2]
    path = target.partition("?")[0].partition("#")[0]
    if not _PLAIN.match(path) or any(part in (".", "..") for part in path.split("/")):
        return ""
    return path


def stored_at(target: str, method: str = "POST") -> str | None:
    """
    Return the segment that names a store, or None.

    Args:
        target: request target in origin form; one whose path could be read in two ways counts as naming one.
        method: of the request: a path that takes calls may list, under another method, those that were kept.
    """
    path = plain_path(target)
    if not path:
        return "this path"
    segments = path.lower().strip("/").split("/")
    # What follows is the name of a model or, in Azure's paths, of its deployment.
    named = {segments.index("models") + 1} if "models" in segments else set()
    if segments[:2] == ["openai", "deployments"]:
        named = {1, 2}
    for at, segment in enumerate(segments):
        if segment in STORES and at not in named:
            return f"/{segment}"
        if tuple(segments[at : at + 2]) == _KEPT_ANSWERS and (len(segments) > at + 2 or method not in _CALLS):
            return "/chat/completions"
    return None


def store_denied(kept: str) -> str:
    """Return why a path is refused, where *kept* is from `stored_at`."""
    return (
        f"{kept} keeps what is sent, or serves what somebody else has kept, outside the sandbox's rules; "
        "model hosts are open for model calls"
    )
