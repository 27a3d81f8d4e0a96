"""
Judging a connection by what its client says first: the server name, or that there is none.

Where the gate does not open TLS, the ClientHello is all it sees of the destination's name; it must be
the name that was dialled (spec/network.md section 4.3).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from km_core.errors import AuditError
from km_core.policy import canonical_name, parse_address
from km_core.types import Verdict
from km_net_proxy.http.hello import ClientHello, HelloError, read_client_hello
from km_net_proxy.http.refusal import printable
from km_net_proxy.http.relay import PASS, REFUSE

if TYPE_CHECKING:
    from km_net_proxy.http.context import GateContext
    from km_net_proxy.http.scope import Scope

_TLS_BYTE = 0x16
_METHODS = (
    b"GET ",
    b"POST ",
    b"PUT ",
    b"HEAD ",
    b"DELETE ",
    b"OPTIONS ",
    b"PATCH ",
    b"CONNECT ",
    b"TRACE ",
    b"PRI ",
)


class Judge:
    """
    Decides about first bytes and records it.

    Args:
        gate: the shared parts.
    """

    def __init__(self, gate: GateContext) -> None:
        self._gate = gate

    def decided(self, verdict: Verdict, scope: Scope, *, sni: str = "") -> None:
        """Record a decision about a connection; raises AuditError."""
        self._gate.evidence.decided(
            verdict,
            "connect",
            name=scope.name,
            address="" if scope.address is None else str(scope.address),
            port=scope.port,
            detail=f"sni={printable(sni, 255)}" if sni else "",
        )

    def hello(self, hello: ClientHello, scope: Scope) -> Verdict:
        """Say whether a ClientHello names what was dialled."""
        if hello.sni is None:
            return Verdict(False, "builtin:tls-sni-missing", "tls", "tls_sni_missing: no server name is sent")
        try:
            name = canonical_name(hello.sni)
        except ValueError:
            name = ""
        if name != scope.name:
            return Verdict(
                False,
                "builtin:tls-sni-mismatch",
                "tls",
                "tls_sni_mismatch: the server name is not the name that was dialled",
            )
        return Verdict(True, "builtin:tls-sni", "tls", "the server name is the name that was dialled")

    def first_bytes(self, data: bytes, scope: Scope) -> int:
        """Judge the first bytes a client sends into an opaque tunnel (see `relay.Check`)."""
        if not data:
            return PASS
        try:
            if data[0] == _TLS_BYTE:
                found = read_client_hello(data)
                if isinstance(found, int):
                    return found
                return self._opaque_hello(found, scope)
            if self._gate.policy.https_only and any(method.startswith(data) for method in _METHODS):
                return len(data) + 1
            if self._gate.policy.https_only and data.startswith(_METHODS):
                verdict = Verdict(False, "builtin:https-only", "http", "the profile allows HTTPS only")
                self.decided(verdict, scope)
                return REFUSE
        except HelloError as error:
            self._refused_quietly(Verdict(False, "builtin:tls-malformed", "tls", str(error)), scope)
            return REFUSE
        except AuditError:
            return REFUSE
        return PASS

    def _opaque_hello(self, hello: ClientHello, scope: Scope) -> int:
        verdict = self.hello(hello, scope) if scope.name else self._literal_hello(hello)
        if verdict.allow:
            return PASS
        self.decided(verdict, scope, sni=hello.sni or "")
        return REFUSE

    def _literal_hello(self, hello: ClientHello) -> Verdict:
        """A server name towards an allowed address: any but a model host's, which is reached by name only."""
        allowed = Verdict(True, "builtin:tls-literal", "tls", "the address is allowed")
        if hello.sni is None:
            return allowed
        try:
            name = canonical_name(hello.sni)
        except ValueError:
            if parse_address(hello.sni) is not None:
                return allowed  # forbidden by RFC 6066, sent by some clients, and no name
            reason = "tls_sni_malformed: the server name is none"
            return Verdict(False, "builtin:tls-malformed", "tls", reason)
        model_host = name in self._gate.owned or self._gate.intercepts(name)
        if model_host or self._gate.policy.connect(name, 443, "tls").rule == "builtin:unmetered-ai-host":
            return Verdict(
                False,
                "builtin:tls-sni-mismatch",
                "tls",
                "tls_sni_mismatch: this host is not reached by address",
            )
        return allowed

    def _refused_quietly(self, verdict: Verdict, scope: Scope) -> None:
        with contextlib.suppress(AuditError):
            self.decided(verdict, scope)
