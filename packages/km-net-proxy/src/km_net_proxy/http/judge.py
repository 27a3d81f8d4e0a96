"""
Judging a connection by what its client says first: the server name, or that there is none.

Where the gate does not open TLS, the ClientHello is all it sees of the destination's name; it must be
the name that was dialled (spec/network.md section 4.3).
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from km_core.errors import AuditError
from km_core.policy import ai_vendor, canonical_name, is_public_resolver, parse_address
from km_core.types import Verdict
from km_net_proxy.http.hello import ClientHello, HelloError, read_client_hello
from km_net_proxy.http.refusal import printable
from km_net_proxy.http.relay import PASS, REFUSE
from km_net_proxy.http.second_hello import SecondHello

if TYPE_CHECKING:
    from km_net_proxy.http.context import GateContext
    from km_net_proxy.http.scope import Scope

_TLS_BYTE = 0x16
_OTHER_RECORDS = frozenset({0x14, 0x15, 0x17, 0x18})
METHODS = (
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
        """Say whether a ClientHello names what was dialled, and nothing in it could name something else."""
        if hello.ech and not self._gate.intercepts(scope.name):
            # What it hides is the name the server will read.  Where the gate ends TLS itself nothing can
            # be hidden from it.
            return Verdict(
                False,
                "builtin:tls-ech",
                "tls",
                "tls_ech: an encrypted ClientHello can hide another server name",
            )
        return self._named_hello(hello, scope) if scope.name else self._literal_hello(hello, scope)

    def _named_hello(self, hello: ClientHello, scope: Scope) -> Verdict:
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

    def tunnel(self, scope: Scope, hello: ClientHello | None = None) -> TunnelCheck:
        """
        Return the judge of what moves through one tunnel.

        Args:
            scope: where it leads.
            hello: the ClientHello at its start when that has been judged already.
        """
        return TunnelCheck(self, scope, hello)

    def first_bytes(self, data: bytes, scope: Scope) -> ClientHello | int:
        """
        Judge the first bytes a client sends into an opaque tunnel (see `relay.Check`).

        Returns:
            The ClientHello when there is one that may pass, else the answer.

        Raises:
            HelloError: what looked like TLS is none.
        """
        if not data:
            return PASS
        if data[0] == _TLS_BYTE:
            found = read_client_hello(data)
            if isinstance(found, int):
                return found
            verdict = self.hello(found, scope)
            if verdict.allow:
                return found
            self.decided(verdict, scope, sni=found.sni or "")
            return REFUSE
        if data[0] in _OTHER_RECORDS:
            # Some servers pass over an alert or the like before the hello that they then read.
            if len(data) < 2:
                return 2
            if data[1] == 3:
                raise HelloError("a TLS record before the ClientHello")
        if self._gate.policy.https_only and any(method.startswith(data) for method in METHODS):
            return len(data) + 1
        if self._gate.policy.https_only and data.startswith(METHODS):
            verdict = Verdict(False, "builtin:https-only", "http", "the profile allows HTTPS only")
            self.decided(verdict, scope)
            return REFUSE
        return PASS

    def _literal_hello(self, hello: ClientHello, scope: Scope) -> Verdict:
        """
        A server name towards an allowed address: any but those that a rule of their own must open.

        Model hosts are reached by name only; a public resolver would carry names past the DNS filter.
        """
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
        policy = self._gate.policy
        if (
            name in self._gate.owned
            or self._gate.intercepts(name)
            or (policy.ai_ceiling and ai_vendor(name) is not None)
        ):
            return Verdict(
                False,
                "builtin:tls-sni-mismatch",
                "tls",
                "tls_sni_mismatch: this host is not reached by address",
            )
        if is_public_resolver(name) and not policy.connect(name, scope.port, "tls").allow:
            return Verdict(
                False,
                "builtin:public-resolver",
                "tls",
                "DNS over HTTPS would pass the DNS filter by; only an exact rule opens this host",
            )
        return allowed

    def refused_quietly(self, error: HelloError, scope: Scope) -> None:
        """Record that bytes were cut off; they do not pass whether or not that succeeds."""
        with contextlib.suppress(AuditError):
            self.decided(Verdict(False, "builtin:tls-malformed", "tls", str(error)), scope)


class TunnelCheck:
    """
    Judges what moves through one tunnel until nothing that follows can name a host.

    Args:
        judge: decides and records.
        scope: where the tunnel leads.
        hello: the ClientHello at its start when that has been judged already.
    """

    def __init__(self, judge: Judge, scope: Scope, hello: ClientHello | None) -> None:
        self._judge = judge
        self._scope = scope
        self._second = SecondHello(self._another)
        self._begun = hello is not None
        if hello is not None:
            self._second.begin(hello)

    def up(self, data: bytes) -> int:
        """Look at what the client sends (see `relay.Check`)."""
        try:
            if not self._begun:
                found = self._judge.first_bytes(data, self._scope)
                if isinstance(found, int):
                    return found
                self._begun = True
                self._second.begin(found)
            return self._second.up(data)
        except HelloError as error:
            self._judge.refused_quietly(error, self._scope)
        except AuditError:
            pass
        return REFUSE

    def down(self, data: bytes) -> int:
        """Look at what the server sends."""
        return self._second.down(data)

    def _another(self, hello: ClientHello) -> None:
        verdict = self._judge.hello(hello, self._scope)
        if not verdict.allow:
            raise HelloError(f"second ClientHello: {verdict.reason}")
