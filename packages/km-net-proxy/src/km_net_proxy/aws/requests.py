"""One request to AWS: read, judged, recorded, refused so that the vendor's clients say why."""

from __future__ import annotations

from typing import TYPE_CHECKING

from km_core.policy.aws import judge_aws, judge_call, reads_body, unsigned
from km_core.policy.aws_hosts import aws_endpoint
from km_net_proxy.aws.refusal import aws_refusal
from km_net_proxy.aws.sigv4 import ScopeError, credential_scope
from km_net_proxy.http.head import as_read, connection_options
from km_net_proxy.http.refusal import denial_fields
from km_net_proxy.http.scope import RequestRefused
from km_net_proxy.inside_services import read_body

if TYPE_CHECKING:
    from km_core.policy.aws import AwsGuard
    from km_net_proxy.http.head import RequestHead
    from km_net_proxy.http.scope import Target
    from km_net_proxy.http.session import Session

_PLAIN_CODINGS = (b"", b"identity")


async def judge_aws_request(
    session: Session, guard: AwsGuard, request: RequestHead, target: Target
) -> bytes | None:
    """
    Judge a request to AWS by what it is signed for, and record the answer.

    Args:
        session: the client's.
        guard: covers the target's host.
        request: the client's.
        target: where it goes.

    Returns:
        The body where it had to be read, else None: it is still to come.

    Raises:
        RequestRefused: 403, in the shape of the vendor's errors.
        AuditError: the decision cannot be recorded.
    """
    gate = session.gate
    host = target.authority.host
    endpoint = aws_endpoint(host)
    body: bytes | None = None
    try:
        scope = credential_scope(_sent(request), target.path)
        if endpoint is None:
            raise ScopeError("the host is none of AWS")
        verdict = judge_aws(
            guard.access,
            endpoint,
            scope,
            request.method,
            target.path,
            copied=[value.decode("latin-1") for value in _values(request, b"x-amz-copy-source")],
            named=guard.named(host),
            regions=guard.regions,
        )
        if verdict.allow and reads_body(endpoint, scope):
            if request.index.get(b"content-encoding", b"").lower() not in _PLAIN_CODINGS:
                raise ScopeError("the request's body is compressed, and has to be read")
            body = await read_body(session.client, session.connection, request, gate.room)
            verdict = judge_call(target.path, body)
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
    return body


def _values(request: RequestHead, name: bytes) -> list[bytes]:
    return [value for key, value in request.fields if as_read(key) == name]


def _sent(request: RequestHead) -> list[tuple[bytes, bytes]]:
    """Return the fields that are judged: what ``Connection`` names would be gone when the service reads."""
    if any(
        option.startswith((b"authorization", b"x-amz-", b"content-"))
        for option in connection_options(request.index)
    ):
        raise ScopeError("the Connection field takes away what the signature stands in or covers")
    return request.fields
