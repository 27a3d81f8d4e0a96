"""``km explain egress``: one verdict for a URL or a host, from the functions the wire uses."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from attrs import frozen

from km_core.policy.addresses import parse_address
from km_core.policy.authority import Authority, parse_authority
from km_core.types import Verdict

if TYPE_CHECKING:
    from km_core.policy.network import NetworkPolicy

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/?#]*)([^#]*)")
_PORTS = {"https": 443, "http": 80, "wss": 443, "ws": 80, "ssh": 22, "git": 9418, "ftp": 21}
_PLAIN = frozenset({"http", "ws"})


@frozen
class Target:
    """
    What a client wants.

    Attributes:
        scheme: of the URL, lower case; empty for ``HOST[:PORT]``.
        authority: host and port.
        path: what follows in the URL, with its query; empty when nothing does.
    """

    scheme: str
    authority: Authority
    path: str


def parse_target(text: str) -> Target:
    """
    Read a URL, or ``HOST[:PORT]`` (port 443 when absent; an IPv6 address may stand bare).

    Raises:
        ValueError: it has no host that a request could name.
    """
    match = _URL.match(text)
    scheme = match[1].lower() if match else ""
    path = match[3] if match else ""
    return Target(scheme, _authority(match[2] if match else text, scheme), path)


def explain_egress(policy: NetworkPolicy, target: str) -> Verdict:
    """
    Say what the gate would answer to a client that wants *target*.

    The layers are asked in the order in which the gate asks them; the first denial is the answer,
    otherwise the verdict on the connection.

    Args:
        policy: the compiled policy.
        target: a URL, or ``HOST[:PORT]`` (port 443 when absent; an IPv6 address may stand bare).
    """
    try:
        parsed = parse_target(target)
    except ValueError as error:
        layer = "http" if _URL.match(target) else "connect"
        return Verdict(False, "builtin:malformed-name", layer, str(error))
    scheme, authority = parsed.scheme, parsed.authority
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
