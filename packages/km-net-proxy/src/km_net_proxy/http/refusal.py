"""
What a refused client is told: who refused, by which rule, and what to do next.

A refusal names the sandbox, the host, the layer and the rule; it never holds a secret, and what the
client sent comes back only in a form that no terminal interprets.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from km_core.types import Verdict

BLOCKED = "Blocked by km sandbox policy"
HTTPS_ONLY = "Blocked: HTTPS only — plain HTTP is not allowed by sandbox policy"

ACCESS_DENIED = b"\x15\x03\x03\x00\x02\x02\x31"
"""A fatal TLS alert, access_denied (RFC 8446 section 6.2), in a record of its own."""
UNRECOGNIZED_NAME = b"\x15\x03\x03\x00\x02\x02\x70"
"""A fatal TLS alert, unrecognized_name (RFC 6066 section 3)."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    403: "Forbidden",
    404: "Not Found",
    405: "Method Not Allowed",
    413: "Content Too Large",
    415: "Unsupported Media Type",
    421: "Misdirected Request",
    426: "Upgrade Required",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


def response(
    status: int,
    body: bytes,
    *,
    content_type: str = "text/plain; charset=utf-8",
    headers: tuple[tuple[str, str], ...] = (),
    close: bool = True,
    head_only: bool = False,
) -> bytes:
    """Return a whole response made by the gate; *head_only* for a HEAD request."""
    lines = [
        f"HTTP/1.1 {status} {_REASONS.get(status, 'Error')}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
        "Cache-Control: no-store",
        "X-Km-Gate: 1",
        *(f"{name}: {value}" for name, value in headers),
    ]
    if close:
        lines.append("Connection: close")
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head if head_only else head + body


def blocked_page(verdict: Verdict, *, sandbox: str, target: str, entry: str = "") -> bytes:
    """
    Return the text of a 403.

    Args:
        verdict: the denial.
        sandbox: id of the sandbox.
        target: ``host:port`` as judged.
        entry: what would open it, see `GateContext.entry_for`.
    """
    title = HTTPS_ONLY if verdict.rule == "builtin:https-only" else BLOCKED
    shown = printable(target)
    lines = [
        title,
        "",
        f"sandbox: {sandbox}",
        f"host:    {shown}",
        f"layer:   {verdict.layer}",
        f"rule:    {verdict.rule}",
        f"reason:  {printable(verdict.reason)}",
        f"next:    {_next(verdict, sandbox, shown, entry)}",
        "",
    ]
    return "\n".join(lines).encode("utf-8")


def denial_fields(
    verdict: Verdict, *, sandbox: str, target: str, entry: str = ""
) -> tuple[tuple[str, str], ...]:
    """
    Return the header fields of a denial, for clients that do not show bodies.

    Args:
        verdict: the denial.
        sandbox: id of the sandbox.
        target: ``host:port`` as judged.
        entry: what would open it, see `GateContext.entry_for`.
    """
    shown = printable(target)
    said = f"rule={verdict.rule}; layer={verdict.layer}; host={shown}; sandbox={sandbox}"
    return (("X-Km-Denied", _ascii(said)), ("X-Km-Next", _ascii(_next(verdict, sandbox, shown, entry))))


def denial_members(verdict: Verdict, *, sandbox: str, target: str) -> dict[str, str]:
    """Return what `denial_fields` says as members of a JSON body."""
    shown = printable(target)
    members = {"sandbox": sandbox, "host": shown, "layer": verdict.layer, "rule": verdict.rule}
    return {**members, "next": _next(verdict, sandbox, shown, "")}


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode("ascii")


_NEXT = {
    "builtin:https-only": "use https://",
    "builtin:intercepted-host": "use https://",
    "builtin:host-mismatch": "make the Host field name the host that the connection was made to",
    "builtin:method-override": "send the request with the method and path that are meant",
    "builtin:upgrade": "do without a protocol upgrade",
    "builtin:aws-unsigned": "sign the request, or let the profile name a public bucket's host exactly",
    "builtin:aws-key": "the operator can list the key or its account under aws in the configuration",
    "builtin:aws-scope": "the operator can list service and region under aws in the configuration",
    "builtin:aws-bucket": "the operator can list the bucket under aws.buckets in the configuration",
    "builtin:private-address": "the operator can name host and range under private_hosts in the configuration",
    "builtin:dns-over-https": "ask the sandbox's own resolver, which answers names that the profile allows",
    "builtin:http-malformed": "mend the client: servers could read this request in more than one way",
    "builtin:http-method": "use another method; tunnels are opened at the explicit proxy",
    "builtin:lease": "nothing is wrong with the request; `km doctor` checks the control plane",
    "builtin:audit": "nothing is wrong with the request; `km logs` and `km doctor` show why nothing is recorded",
    "builtin:credential": "the operator can give the secret a value with `km secrets set`",
}


def _next(verdict: Verdict, sandbox: str, target: str, entry: str) -> str:
    known = _NEXT.get(verdict.rule)
    if known is not None:
        return known
    ask = f"`km explain egress PROFILE {target}` shows the decision"
    if entry:
        return (
            f"the operator can open it for a time with `km allow {sandbox} {entry} --for 30m`, "
            f"or add {entry} to spec.network.egress.allowedHosts; {ask}"
        )
    return ask


def json_error(code: str, message: str, **members: object) -> bytes:
    """Return the JSON body of an error that is the gate's own: ``{"error": code, "message": …}``."""
    return json.dumps({"error": code, "message": message, **members}).encode()


def printable(text: str, limit: int = 300) -> str:
    """Return *text* without control characters and not longer than *limit*."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
