"""What is judged on the operator's host, from the plan and from what the substrate says."""

from __future__ import annotations

import socket
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.attack.forms import look_alikes
from km_core.policy import NetworkPolicy

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from km_core.config import Config
    from km_core.plan import SandboxPlan

RESOLVERS = ("dns.google", "cloudflare-dns.com", "one.one.one.one", "dns.quad9.net", "doh.opendns.com")
_CLOSED = (
    "127.0.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "fd00:ec2::254",
    "::1",
    "224.0.0.251",
    "198.18.1.1",
)
_WAIT_S = 1.0


@frozen
class Subject:
    """
    What the checks look at.

    Attributes:
        plan: the sandbox's stored plan.
        recorded: the digest of the plan that the sandbox was made with.
        config: the operator's configuration.
        status: `Substrate.status` of the sandbox.
        addresses: of this host.
    """

    plan: SandboxPlan
    recorded: str
    config: Config
    status: Mapping[str, Any]
    addresses: Sequence[str]

    @property
    def policy(self) -> NetworkPolicy:
        """The rules of the plan, compiled with the functions of the wire."""
        return NetworkPolicy.from_plan(self.plan.network, private_hosts=self.config.private_hosts)


def public_resolvers(subject: Subject) -> list[str]:
    """Return the public resolvers that are open without being listed by name."""
    policy = subject.policy
    listed = {rule.pattern for rule in subject.plan.network.hosts if rule.kind == "exact"}
    return [name for name in RESOLVERS if name not in listed and policy.connect(name, 443).allow]


def look_alike_names(subject: Subject) -> list[str]:
    """Return the look-alikes of allowed names that are open."""
    policy = subject.policy
    if any(rule.kind == "any" for rule in subject.plan.network.hosts):
        return []
    hosts = [rule.pattern for rule in subject.plan.network.hosts if rule.kind == "exact"]
    names = look_alikes(subject.plan, "kmattack") + [f"kmattack{host}" for host in hosts]
    return [name for name in names if name not in hosts and policy.name(name).allow]


def closed_ranges(subject: Subject) -> list[str]:
    """Return the addresses that must never be open and are."""
    policy = subject.policy
    ports = (22, 80, 443)
    return [text for text in _CLOSED if any(policy.address(ip_address(text), port).allow for port in ports)]


def gate_elsewhere(subject: Subject) -> list[str]:
    """Return the addresses of this host at which something answers as a gate does."""
    found = []
    for address in subject.addresses:
        try:
            with socket.create_connection((address, 3128), _WAIT_S) as sock:
                sock.settimeout(_WAIT_S)
                sock.sendall(b"GET http://km.internal/ HTTP/1.1\r\nHost: km.internal\r\n\r\n")
                if b"x-km-gate" in sock.recv(4096).lower():
                    found.append(address)
        except OSError:
            continue
    return found


def enforcement(subject: Subject) -> list[str]:
    """Return what of the enforcement is not in force."""
    status = subject.status
    wrong = []
    if not status.get("running"):
        wrong.append("the substrate does not know it as running")
    if status.get("enforcement") not in {"tproxy", "redirect"}:
        wrong.append(f"enforcement is {status.get('enforcement')!r}")
    gate = status.get("gate") or {}
    if gate.get("lease") not in {None, "valid"}:
        wrong.append(f"the gate's lease is {gate.get('lease')}")
    return wrong


def same_plan(subject: Subject) -> list[str]:
    """Return what differs between the stored plan and the one the control plane recorded."""
    stored = subject.plan.digest()
    return [] if stored == subject.recorded else [f"stored {stored[:12]}, recorded {subject.recorded[:12]}"]


CHECKS: dict[str, Callable[[Subject], list[str]]] = {
    "public_resolvers": public_resolvers,
    "look_alikes": look_alike_names,
    "closed_ranges": closed_ranges,
    "gate_elsewhere": gate_elsewhere,
    "enforcement": enforcement,
    "same_plan": same_plan,
}
"""By the name that `Case.attempt` gives: each returns what does not hold."""
