"""``km explain egress``: one verdict for a URL or a host, from the functions the wire uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from km_core.policy.addresses import parse_address
from km_core.policy.authority import Authority, parse_authority
from km_core.types import Verdict

if TYPE_CHECKING:
    from km_core.policy.network import NetworkPolicy

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)")
_PORTS = {"https": 443, "http": 80, "wss": 443, "ws": 80, "ssh": 22, "git": 9418, "ftp": 21}
_PLAIN = frozenset({"http", "ws"})


def explain_egress(policy: NetworkPolicy, target: str) -> Verdict:
    """
    Say what the gate would answer to a client that wants *target*.

    The layers are asked in the order in which the gate asks them; the first denial is the answer,
    otherwise the verdict on the connection.

    Args:
        policy: the compiled policy.
        target: a URL, or ``HOST[:PORT]`` (port 443 when absent; an IPv6 address may stand bare).
    """
    match = _URL.match(target)
    scheme = match[1].lower() if match else ""
    try:
        authority = _authority(match[2] if match else target, scheme)
    except ValueError as error:
        return Verdict(False, "builtin:malformed-name", "http" if match else "connect", str(error))
    if authority.address is not None:
        verdict = policy.address(authority.address, authority.port, "tcp")
    else:
        named = policy.name(authority.host)
        if not named.allow:
            return named
        verdict = policy.connect(authority.host, authority.port, "connect")
    if verdict.allow and scheme in _PLAIN and policy.https_only and verdict.rule != "builtin:inside-api":
        return Verdict(False, "builtin:https-only", "http", "the profile allows HTTPS only")
    return verdict


def _authority(text: str, scheme: str) -> Authority:
    if not scheme:
        address = parse_address(text)
        if address is not None and (":" in text or not text.isdigit()):
            return Authority(str(address), 443, address)
        return parse_authority(text, 443)
    return parse_authority(text, _PORTS.get(scheme))
