"""
The credential scope of a request signed with Signature Version 4, in its header or its query.

The signature itself is the service's to check; what the gate needs is whose it claims to be, since a
claim that is not true is refused there.  Whatever could be read in two ways is refused here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_plus

from km_core.policy.aws import CredentialScope
from km_net_proxy.http.head import as_read

if TYPE_CHECKING:
    from collections.abc import Iterable

_ALGORITHM = "AWS4-HMAC-SHA256"
_SCOPE = re.compile(r"([A-Z0-9]{16,128})/([0-9]{8})/([a-z0-9-]{1,64})/([a-z0-9-]{1,64})/aws4_request\Z")
_SIGNED = re.compile(r"[a-z0-9;_.-]{1,4096}\Z")
_SIGNATURE = re.compile(r"[0-9a-f]{64}\Z")
_IN_QUERY = frozenset({"x-amz-algorithm", "x-amz-credential", "x-amz-signature", "x-amz-signedheaders"})
_OLD_QUERY = frozenset({"awsaccesskeyid", "signature", "signatureversion", "signaturemethod"})


class ScopeError(ValueError):
    """A request has no scope that can be judged; the text is safe to show."""


def credential_scope(fields: Iterable[tuple[bytes, bytes]], target: str) -> CredentialScope:
    """
    Return the scope that a request is signed for.

    Args:
        fields: the request's fields as sent.
        target: its target in origin form, with the query.

    Raises:
        ScopeError: it is unsigned, signed in two places or in another way.
    """
    headers = [value for name, value in fields if as_read(name) == b"authorization"]
    query = _query(target)
    if len(headers) > 1:
        raise ScopeError("the request has several Authorization fields")
    if query and headers:
        raise ScopeError("the request is signed in its header and in its query")
    if headers:
        return _from_header(headers[0].decode("latin-1"))
    if not query:
        raise ScopeError("the request is not signed")
    if set(query) != _IN_QUERY or query["x-amz-algorithm"] != _ALGORITHM:
        raise ScopeError(f"the request's query is not signed with {_ALGORITHM}")
    return _scope(query["x-amz-credential"], query["x-amz-signedheaders"], query["x-amz-signature"])


def _from_header(value: str) -> CredentialScope:
    algorithm, _, rest = value.strip().partition(" ")
    if algorithm != _ALGORITHM:
        raise ScopeError(f"the request is not signed with {_ALGORITHM}")
    parts: dict[str, str] = {}
    for part in rest.split(","):
        name, mark, text = part.strip().partition("=")
        if not mark or name in parts:
            raise ScopeError("the Authorization field is malformed")
        parts[name] = text
    if set(parts) != {"Credential", "SignedHeaders", "Signature"}:
        raise ScopeError("the Authorization field is malformed")
    return _scope(parts["Credential"], parts["SignedHeaders"], parts["Signature"])


def _scope(credential: str, signed: str, signature: str) -> CredentialScope:
    match = _SCOPE.match(credential)
    if match is None or not _SIGNATURE.match(signature) or not _SIGNED.match(signed):
        raise ScopeError("the scope of the signature is malformed")
    if "host" not in signed.split(";"):
        raise ScopeError("the signature does not cover the host")
    return CredentialScope(match[1], match[2], match[3], match[4])


def _query(target: str) -> dict[str, str]:
    """Return the members that sign a request, by lower-case name."""
    found: dict[str, str] = {}
    for member in re.split("[&;]", target.partition("?")[2]):
        raw, _, value = member.partition("=")
        name = unquote_plus(raw).strip().lower()
        if name in _OLD_QUERY:
            raise ScopeError("the request is signed with an older method than Signature Version 4")
        if name in _IN_QUERY:
            if name in found:
                raise ScopeError(f"the query has several members {name}")
            found[name] = unquote_plus(value)
    return found
