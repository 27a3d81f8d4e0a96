"""A refusal in the shape that the vendor's clients show as an error, and do not try again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from km_net_proxy.http.refusal import printable

if TYPE_CHECKING:
    from km_core.policy.aws_hosts import AwsEndpoint
    from km_core.types import Verdict

CODE = "KmPolicyDenied"


def aws_refusal(
    verdict: Verdict, endpoint: AwsEndpoint | None, *, sandbox: str, host: str, content_type: str
) -> tuple[bytes, str]:
    """
    Return body and content type of a 403.

    Args:
        verdict: the denial.
        endpoint: what the host's name says; S3 has an error document of its own.
        sandbox: id of the sandbox.
        host: of the request.
        content_type: of the request: services that take JSON answer in it.
    """
    message = printable(
        f"Blocked by km sandbox policy: {verdict.reason} "
        f"(sandbox {sandbox}, host {host}, layer {verdict.layer}, rule {verdict.rule})",
        600,
    )
    if endpoint is not None and endpoint.s3:
        return (
            f"<Error><Code>{CODE}</Code><Message>{_escaped(message)}</Message></Error>".encode(),
            "application/xml",
        )
    if "json" in content_type.lower():
        return json.dumps({"__type": CODE, "code": CODE, "message": message}).encode(), "application/json"
    error = f"<Type>Sender</Type><Code>{CODE}</Code><Message>{_escaped(message)}</Message>"
    return f"<ErrorResponse><Error>{error}</Error></ErrorResponse>".encode(), "text/xml"


def _escaped(text: str) -> str:
    # Of the standard library's own, the one brings an HTTP client into memory and the other all of HTML's entities.
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
