"""What one request takes with it: the operator's credential instead of the client's, and a clean path."""

from __future__ import annotations

from typing import TYPE_CHECKING

from attrs import frozen

from km_core.errors import ControlUnavailableError, KmError
from km_net_proxy.http.credentials import injected, strip_fields, strip_query
from km_net_proxy.http.withheld import forms

if TYPE_CHECKING:
    from km_core.types import InjectionRule
    from km_net_proxy.http.context import GateContext
    from km_net_proxy.http.head import RequestHead
    from km_net_proxy.http.scope import Target


class CredentialError(Exception):
    """A request cannot get its credential; the text is safe to show."""

    def __init__(self, code: str, message: str, next_step: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.next_step = next_step


class ControlPlaneLostError(Exception):
    """Nobody can say what the credential is."""


@frozen(repr=False)
class Sending:
    """
    What goes to a server besides the body.

    Attributes:
        path: request target without credentials.
        fields: the client's fields without credentials.
        own: the gate's: the operator's credential; never in a repr.
        withheld: forms of it that an answer must not show.
    """

    path: str
    fields: list[tuple[bytes, bytes]]
    own: tuple[tuple[bytes, bytes], ...] = ()
    withheld: tuple[bytes, ...] = ()


async def outgoing(
    gate: GateContext, rule: InjectionRule | None, request: RequestHead, target: Target, *, prefix: str = ""
) -> Sending:
    """
    Return what is sent to a host whose credential is the gate's business.

    Args:
        gate: the shared parts.
        rule: how its credential is put on a request; None when the host gets none.
        request: the client's.
        target: where it goes.
        prefix: of the codes of errors (``ai_``).

    Raises:
        CredentialError: there is no credential, or it may not be sent there.
        ControlPlaneLostError: the control plane does not answer.
    """
    fields, path = strip_fields(request.fields, rule), strip_query(target.path)
    if rule is None:
        return Sending(path, fields)
    host = target.authority.host
    override = gate.dialer.overrides.get(host)
    if override is not None and not override.protected:
        raise CredentialError(
            f"{prefix}upstream_not_protected",
            f"The stand-in for {host} is reached without TLS over the network, so the "
            "operator's credential is not sent there. In the host's config: upstreams with an https:// URL",
        )
    try:
        secret = await gate.secrets.value(rule.secret, host)
    except ControlUnavailableError as error:
        raise ControlPlaneLostError from error
    except KmError as error:
        # What is wrong with the place stays outside; the operator is told there.
        next_step = f"km secrets get {rule.secret}"
        raise CredentialError(
            f"{prefix}credential_unavailable",
            f"The credential for {host} cannot be read. On the host: {next_step}",
            next_step,
        ) from error
    if secret is None:
        next_step = f"km secrets set {rule.secret}"
        raise CredentialError(
            f"{prefix}credential_missing",
            f"No credential is set for {host}. On the host: {next_step}",
            next_step,
        )
    try:
        field = injected(rule, secret)
        return Sending(path, fields, (field,), forms(field[1].decode("ascii"), secret.strip()))
    except ValueError as error:
        raise CredentialError(f"{prefix}credential_malformed", str(error)) from error
