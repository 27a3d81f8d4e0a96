"""
Secrets out of records and logs (spec/network.md section 11).

A filter of last resort: code never hands a secret to a logger on purpose.  Structural fields of a record
(what was decided on what) are kept as they are, since they are the evidence.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import MutableMapping

REDACTED = "[REDACTED]"

STRUCTURAL = frozenset(
    {
        "seq", "time", "sandbox", "sandbox_id", "writer", "kind", "event", "level", "timestamp", "layer", "verdict",
        "rule", "name", "address", "port", "prev", "hash", "count", "number", "qtype", "call_id",
        "plan_digest", "policy_before", "policy_after",
    }
)  # fmt: skip
"""Fields of records and log lines whose values are never changed."""

_SECRET_KEY = re.compile(
    r"(?i)(?:^|[_.-])(?:secret|password|passwd|passphrase|token|api[_-]?key|apikey|access[_-]?key|private[_-]?key"
    r"|authorization|cookie|credential|credentials|session[_-]?key)s?(?:$|[_.-])"
)
# "token" alone is a secret; "input_tokens" is a count.
_COUNT_KEY = re.compile(
    r"(?i)(?:input|output|cache_read|cache_write|reasoning|total|max|cached)_?tokens?(?:_|$)"
)

_WHOLE = re.compile(
    r"(?:AKIA|ASIA|AROA|AIDA)[A-Z0-9]{16}"
    r"|ABSK[A-Za-z0-9+/]{40,}={0,2}"
    r"|gh[pousr]_[A-Za-z0-9_]{36,}"
    r"|github_pat_[A-Za-z0-9_]{22,}"
    r"|xox[abeprs]-[A-Za-z0-9-]{8,}"
    r"|xapp-[A-Za-z0-9-]{8,}"
    r"|sk-ant-[A-Za-z0-9_-]{8,}"
    r"|sk-proj-[A-Za-z0-9_-]{8,}"
    r"|sk-[A-Za-z0-9_-]{20,}"
    r"|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|(?:gsk_|xai-|pplx-|hf_|r8_|npm_|glpat-|gldt-|dckr_pat_|dop_v1_|hvs\.|pypi-|lin_api_)[A-Za-z0-9_-]{16,}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|ya29\.[A-Za-z0-9_-]{20,}"
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{40,}"
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9_/-]{12,}"
    r"|eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"
    r"|-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9\-._~+/]{6,}=*")
_HEADER = re.compile(r"(?i)\b(authorization|x-api-key|cookie|set-cookie)(\"?\s*[:=]\s*\"?)[^\r\n\"']+")
_USERINFO = re.compile(r"(://)[^/\s:@]{0,256}:[^/\s@]{0,256}@")
_ASSIGNED = re.compile(
    r"(?i)\b([a-z0-9_.-]{0,64}(?:secret|token|password|passwd|api[_-]?key|access[_-]?key))(\"?\s*[=:]\s*\"?)"
    r"[A-Za-z0-9+/_\-.~%]{12,}=*"
)
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-f]{40,}|[0-9A-F]{40,})(?![0-9A-Za-z])")
_COMMIT = re.compile(r"(?i)\b(?:commit|sha|sha1|sha256|rev|revision|digest)\W{0,4}\Z")
# Most strings hold none of these: one scan decides whether the others are needed.
_HINT = re.compile(
    r"AKIA|ASIA|AROA|AIDA|ABSK|gh[pousr]_|github_pat|xox|xapp|sk-|eyJ|PRIVATE KEY|://[^/]*@|[0-9a-fA-F]{40}"
    r"|[sr]k_(?:live|test)_|gsk_|xai-|pplx-|hf_|r8_|npm_|gl(?:pat|dt)-|dckr_pat_|dop_v1_|hvs\.|pypi-|lin_api_"
    r"|AIza|ya29\.|SG\.|SECRET-KEY|hooks\.slack"
    r"|(?i:bearer|basic|authorization|api-?key|cookie|secret|token|passw|key)"
)


def redact_text(text: str) -> str:
    """Return *text* with everything that looks like a secret replaced by ``[REDACTED]``."""
    if _HINT.search(text) is None:
        return text
    text = _WHOLE.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1\2{REDACTED}", text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    text = _USERINFO.sub(rf"\1{REDACTED}@", text)
    text = _ASSIGNED.sub(rf"\1\2{REDACTED}", text)
    return _HEX.sub(_hex, text)


def _hex(match: re.Match[str]) -> str:
    found = match[0]
    # A commit id or a digest is no secret and is what a reader looks for: its head stays.
    if len(found) in {40, 64} and _COMMIT.search(match.string[max(0, match.start() - 16) : match.start()]):
        return found[:7] + "…"
    return REDACTED


def redact(value: Any, *, key: str = "") -> Any:
    """
    Return plain data with its secrets replaced, at any depth.

    A mapping's value is replaced whole when its key is named like a secret; keys stay as they are.

    Args:
        value: JSON-like data; it is not changed.
        key: the key it stands under, if any.
    """
    if key and value and isinstance(value, str | bytes | list | tuple | dict) and is_secret_key(key):
        return REDACTED
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes):
        return redact_text(value.decode("utf-8", "replace"))
    if isinstance(value, dict):
        return {name: redact(inner, key=str(name)) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    return value


def is_secret_key(key: str) -> bool:
    """Say whether a field of this name holds a secret."""
    return _SECRET_KEY.search(key) is not None and _COUNT_KEY.search(key) is None


def redact_event(event: dict[str, Any]) -> dict[str, Any]:
    """Return a record's fields with secrets replaced; `STRUCTURAL` fields stay."""
    return {
        name: value
        if name in STRUCTURAL or value.__class__ in {int, float, bool}
        else redact(value, key=name)
        for name, value in event.items()
    }


def redact_processor(
    _logger: Any, _method: str, event_dict: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Redact a structlog event; put it last before the renderer, after exceptions were formatted."""
    for name, value in event_dict.items():
        if name == "event":
            event_dict[name] = redact_text(value) if isinstance(value, str) else value
        elif name not in STRUCTURAL:
            event_dict[name] = redact(value, key=name)
    return event_dict
