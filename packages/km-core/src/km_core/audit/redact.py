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

# In a URL within a URL the letter of an escape (%3D) may stand before a token.
_START = r"(?:(?<![A-Za-z0-9])|(?<=%[0-9A-Fa-f]{2}))"
# Only where a run of its letters begins: from each of them anew a long line would cost its square.
_JWT = (
    r"(?:(?<![A-Za-z0-9_-])|(?<=%[0-9A-Fa-f]{2}))eyJ[A-Za-z0-9_-]{8,}\.eyJ[A-Za-z0-9_-]{4,}\.[A-Za-z0-9_-]*"
)
_WHOLE = re.compile(
    r"(?:AKIA|ASIA|AROA|AIDA|ABIA|ACCA)[A-Z0-9]{16}"
    r"|ABSK[A-Za-z0-9+/]{40,}={0,2}"
    # Installation tokens may hold a JWT with its dots.
    r"|ghs_[A-Za-z0-9_.-]{36,}"
    r"|gh[pour]_[A-Za-z0-9_]{36,}"
    r"|github_pat_[A-Za-z0-9_]{22,}"
    r"|xox[abcdeprs][.-][A-Za-z0-9.%-]{8,}"
    r"|xapp-[A-Za-z0-9-]{8,}|xwfp-[A-Za-z0-9-]{8,}"
    r"|sk-ant-[A-Za-z0-9_-]{8,}"
    r"|sk-proj-[A-Za-z0-9_-]{8,}"
    rf"|{_START}sk-[A-Za-z0-9_-]{{20,}}"
    r"|(?:sk|rk|whsec)_(?:live_|test_)?[A-Za-z0-9]{24,}|(?:sk|rk)_(?:live|test)_[A-Za-z0-9]{16,}"
    r"|(?:gsk_|xai-|pplx-|hf_|r8_|gldt-|glrt-|glptt-|glcbt-|gloas-|dckr_[op]at_|do[opr]_v1_|hv[sbr]\.|lin_api_|sntry[su]_"
    r"|shp(?:at|ca|pa|ss)_|gl(?:sa|c|pat)[_-]|tskey-|sbp_|ntn_|figd_|GOCSPX-|ATATT3|pscale_tkn_|NRAK-)[A-Za-z0-9_=.-]{16,}"
    r"|npm_[A-Za-z0-9]{30,}|pypi-AgE[A-Za-z0-9_-]{16,}|dapi[0-9a-f]{32}"
    r"|AIza[A-Za-z0-9_-]{35}"
    r"|ya29\.[A-Za-z0-9_-]{20,}"
    r"|SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}"
    r"|AGE-SECRET-KEY-1[A-Z0-9]{40,}"
    r"|hooks\.slack\.com/(?:services|workflows|triggers)/[A-Za-z0-9_/-]{12,}"
    r"|/api/webhooks/[0-9]{10,24}/[A-Za-z0-9_-]{20,}"
    r"|[0-9]{8,12}:AA[A-Za-z0-9_-]{30,}"
    rf"|{_JWT}"
    r"|-----BEGIN [A-Z0-9 ]{0,40}PRIVATE KEY-----.*?(?:-----END [A-Z0-9 ]{0,40}PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
# What a name may hold of them: letters of either case, and nothing that ordinary names begin with.
_IN_NAME = re.compile(
    r"(?i)(?:(?:AKIA|ASIA)[A-Z0-9]{16}(?![A-Z0-9])"
    r"|gh[pousr]_[a-z0-9_]{30,}|github_pat_[a-z0-9_]{22,}"
    r"|xox[abcdeprs]-[a-z0-9-]{16,}|xapp-[0-9]-[a-z0-9-]{16,}"
    r"|sk-(?:ant|proj|svcacct|admin)-[a-z0-9_-]{16,}|(?<![a-z0-9])sk-[a-z0-9]{32,}"
    r"|gl(?:pat|dt|rt)-[a-z0-9_-]{20,}|(?:npm|hf)_[a-z0-9]{30,}|(?:sk|rk)_(?:live|test)_[a-z0-9]{16,}"
    r"|aiza[a-z0-9_-]{35}|(?<![a-z0-9_-])eyj[a-z0-9_-]{16,63}\.eyj[a-z0-9_-]{4,63}(?:\.[a-z0-9_-]{16,63})?)"
)
_QUOTE = r"\\{0,3}[\"']?"
_SET_TO = rf"({_QUOTE}\s*(?:[=:]|%3[dDaA])\s*{_QUOTE})"
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+[A-Za-z0-9\-._~+/]{6,}=*")
_HEADER = re.compile(rf"(?i)\b(authorization|x-api-key|cookie|set-cookie){_SET_TO}[^\r\n\"']+")
_USERINFO = re.compile(r"(://)(?:[^/\s:@]{0,256}:[^/\s@]{0,256}|[^/\s:@]{16,256})@")
_WORD = r"(secret|token|password|passwd|passphrase|pwd|api[_-]?key|access[_-]?key|private[_-]?key)"
_ASSIGNED = re.compile(rf"(?i){_WORD}{_SET_TO}[A-Za-z0-9+/_\-.~%]{{12,}}=*")
# With "=" or in quotes it is a value, however short; what follows a bare colon may be a sentence.
_VALUE = re.compile(
    rf"(?i)(?:{_WORD}|(?<=[?&;])(sig|signature))"
    r"(?:(\s?(?:=|%3[dD])\s?)[^\s\"'&,;\\)}\]]{1,512}"
    rf"|({_QUOTE}\s*[=:]\s*\\{{0,3}})([\"'])[^\"']{{1,4096}})"
)
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:[0-9a-f]{40,}|[0-9A-F]{40,})(?![0-9A-Za-z])")
_COMMIT = re.compile(r"(?i)\b(?:commit|sha|sha1|sha256|rev|revision|digest)\W{0,4}\Z")
# Most strings hold none of these: one scan decides whether the others are needed.
_HINT = re.compile(
    r"AKIA|ASIA|AROA|AIDA|ABIA|ACCA|ABSK|gh[pousr]_|github_pat|xox|xapp|xwfp|sk-|eyJ|://[^/]*@|[0-9a-fA-F]{40}"
    r"|[sr]k_|whsec|gsk_|xai-|pplx-|hf_|r8_|npm_|gl[a-z]{1,4}[_-]|dckr_|do[opr]_v1|hv[sbr]\.|pypi-|lin_api_|sntry"
    r"|shp[a-z]{2}_|sbp_|ntn_|figd_|GOCSPX|ATATT|pscale|NRAK|dapi|AIza|ya29\.|SG\.|hooks\.slack|/webhooks/|:AA"
    r"|(?i:bearer|basic|authorization|cookie|secret|token|passw|passph|pwd|key|sig)"
)


def redact_text(text: str) -> str:
    """Return *text* with everything that looks like a secret replaced by ``[REDACTED]``."""
    if _HINT.search(text) is None:
        return text
    text = _WHOLE.sub(REDACTED, text)
    text = _HEADER.sub(rf"\1\2{REDACTED}", text)
    text = _BEARER.sub(rf"\1 {REDACTED}", text)
    text = _USERINFO.sub(rf"\1{REDACTED}@", text)
    text = _VALUE.sub(_valueless, text)
    text = _ASSIGNED.sub(rf"\1\2{REDACTED}", text)
    return _HEX.sub(_hex, text)


def redact_name(name: str) -> str:
    """
    Return a host name with the tokens in it replaced.

    A name is evidence, and the way by which a secret leaves through DNS: what is left of it says where to.
    """
    return _IN_NAME.sub(REDACTED, name)


def _valueless(match: re.Match[str]) -> str:
    word, other, sign, opened, quote = match.groups()
    return f"{word or other}{sign or opened}{quote or ''}{REDACTED}"


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
    """Return a record's fields with secrets replaced; `STRUCTURAL` fields stay, names as in `redact_name`."""
    clean = {
        name: value
        if name in STRUCTURAL or value.__class__ in {int, float, bool}
        else redact(value, key=name)
        for name, value in event.items()
    }
    if isinstance(clean.get("name"), str):
        clean["name"] = redact_name(clean["name"])
    return clean


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
