"""One request to AWS: read, judged, recorded, refused so that the vendor's clients say why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core.policy.aws import aws_endpoint, judge_aws, unsigned
from km_net_proxy.aws.refusal import aws_refusal
from km_net_proxy.aws.sigv4 import ScopeError, credential_scope
from km_net_proxy.http.refusal import denial_fields
from km_net_proxy.http.scope import RequestRefused

if TYPE_CHECKING:
    from km_core.policy.aws import AwsGuard
    from km_net_proxy.http.context import GateContext
    from km_net_proxy.http.head import RequestHead
    from km_net_proxy.http.scope import Target


def judge_aws_request(gate: GateContext, guard: AwsGuard, request: RequestHead, target: Target) -> None:
    """
    Judge a request to AWS by what it is signed for, and record the answer.

    Args:
        gate: the shared parts.
        guard: covers the target's host.
        request: the client's.
        target: where it goes.

    Raises:
        RequestRefused: 403, in the shape of the vendor's errors.
        AuditError: the decision cannot be recorded.
    """
    host = target.authority.host
    endpoint = aws_endpoint(host)
    try:
        scope = credential_scope(request.fields, target.path)
        if endpoint is None:
            raise ScopeError("the host is none of AWS")
        verdict = judge_aws(guard.access, endpoint, scope, request.method, target.path)
        # Enough to tell keys apart; whole ids are redacted like secrets.
        detail = f"key …{scope.access_key_id[-4:]} {scope.region} {scope.service}"
    except ScopeError as error:
        verdict, detail = unsigned(str(error)), ""
    gate.evidence.decided(
        verdict, "aws_request", name=host, port=target.authority.port, detail=f"{request.method} {detail}"
    )
    if not verdict.allow:
        body, kind = aws_refusal(
            verdict,
            endpoint,
            sandbox=gate.sandbox_id,
            host=host,
            content_type=request.index.get(b"content-type", b"").decode("latin-1"),
        )
        fields = denial_fields(verdict, sandbox=gate.sandbox_id, target=str(target.authority))
        raise RequestRefused(403, body, content_type=kind, headers=fields)
