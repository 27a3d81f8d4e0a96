"""`NetworkPolicy`: which names, ports and addresses a sandbox may reach."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_network
from typing import TYPE_CHECKING

from attrs import define, field

from km_core.errors import PlanError
from km_core.policy.addresses import (
    Address,
    Network,
    embedded_ipv4,
    forbidden_range,
    names_range,
    normalise_address,
)
from km_core.policy.ai_hosts import ai_vendor
from km_core.policy.github import GIT_HOSTS, SSH_HOST, is_git_host
from km_core.policy.names import INSIDE_NAME, canonical_name, is_local_name
from km_core.policy.public_resolvers import is_public_resolver, is_resolver_address
from km_core.policy.repos import GitPolicy
from km_core.types import Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from km_core.plan import GitPlan, NetworkPlan
    from km_core.policy.authority import Authority

WEB_PORTS = (443, 80)
INSIDE_PORT = 80

_NO_RULE = "no rule of the profile allows this name"


@define
class _Ports:
    """Port to the source of the rule that opens it."""

    by_port: dict[int, str] = field(factory=dict)

    def add(self, ports: Iterable[int], source: str) -> None:
        for port in ports:
            self.by_port.setdefault(port, source)

    def first(self) -> str:
        return next(iter(self.by_port.values()))


@define
class _AddressEntry:
    network: Network
    ports: frozenset[int]
    source: str
    any_port: bool = False
    """Of an exception that names no ports; one whose ports are all closed opens nothing."""


class NetworkPolicy:
    """
    The compiled network rules of one sandbox.

    Immutable after `from_plan`; every method is pure and costs one dictionary lookup per label, so ten
    thousand rules cost what ten do.  Every answer is a `Verdict`; what nothing allows is denied.

    Attributes:
        https_only: plain HTTP is refused by the HTTP layer and port 80 here.
        ai_ceiling: a dollar ceiling is set: model hosts without a meter are denied.
        git: the repository rules, None when there are none: GitHub's hosts are open for them, and those of
            its hosts where nobody can tell a repository are denied.
    """

    def __init__(self) -> None:
        self.https_only = False
        self.ai_ceiling = False
        self.git: GitPolicy | None = None
        self._exact: dict[str, _Ports] = {}
        self._suffix: dict[str, _Ports] = {}
        self._subdomains: dict[str, _Ports] = {}
        self._any: _Ports | None = None
        self._addresses: dict[tuple[int, int], dict[int, list[_AddressEntry]]] = {}
        self._exceptions: dict[str, list[_AddressEntry]] = {}
        self._metered: frozenset[str] = frozenset()
        self._no_rule = Verdict(False, "builtin:default-deny", "dns", _NO_RULE)
        self._shared: dict[tuple[bool, str, str, str], Verdict] = {}

    @classmethod
    def from_plan(
        cls,
        network: NetworkPlan,
        *,
        ai_ceiling: bool = False,
        private_hosts: Sequence[tuple[str, str]] = (),
        metered_hosts: Sequence[str] = (),
        git: GitPlan | None = None,
    ) -> NetworkPolicy:
        """
        Compile a plan's network part.

        Args:
            network: the plan.
            ai_ceiling: whether a dollar ceiling is set.
            private_hosts: ``(host, CIDR)`` exceptions of the operator's configuration.
            metered_hosts: canonical names that a meter owns.
            git: the plan's repository rules.

        Raises:
            PlanError: a rule is not in canonical form.
        """
        policy = cls()
        policy.https_only = network.https_only
        policy.ai_ceiling = ai_ceiling
        policy.git = None if git is None else GitPolicy.from_plan(git)
        try:
            policy._metered = frozenset(canonical_name(host) for host in metered_hosts)
            for rule in network.hosts:
                policy._add_host(
                    rule.pattern, rule.kind, rule.ports, rule.source or f"{rule.kind} {rule.pattern}"
                )
            if policy.git is not None:
                for host in sorted(GIT_HOSTS):
                    policy._add_host(host, "exact", (443,), "spec.sourceAccess.github.allowedRepos")
            for address in network.addresses:
                policy._add_address(
                    address.cidr, address.ports, address.host, address.source or f"address {address.cidr}"
                )
            for host, cidr in private_hosts:
                policy._add_address(cidr, (), host, f"private_hosts {host} {cidr}", any_port=True)
        except ValueError as error:
            raise PlanError("the network rules of the plan are not valid", why=str(error)) from error
        return policy

    def _add_host(self, pattern: str, kind: str, ports: Sequence[int], source: str) -> None:
        opened = self._ports(ports)
        if not opened:
            return
        if kind == "any":
            if pattern != "*":
                raise ValueError(f"a rule of kind any has the pattern *, not {pattern!r}")
            if self._any is None:
                self._any = _Ports()
            self._any.add(opened, source)
            return
        tables = {"exact": self._exact, "suffix": self._suffix, "subdomains": self._subdomains}
        if kind not in tables:
            raise ValueError(f"unknown rule kind {kind!r}")
        if canonical_name(pattern) != pattern:
            raise ValueError(f"{pattern!r} is not in canonical form")
        tables[kind].setdefault(pattern, _Ports()).add(opened, source)

    def _ports(self, ports: Sequence[int]) -> list[int]:
        opened = list(ports or WEB_PORTS)
        if any(not 0 < port < 65536 for port in opened):
            raise ValueError(f"a port is a number from 1 to 65535: {opened}")
        # With httpsOnly a rule for port 80 opens nothing, not even the name.
        return [port for port in opened if not (self.https_only and port == 80)]

    def _add_address(
        self, cidr: str, ports: Sequence[int], host: str, source: str, *, any_port: bool = False
    ) -> None:
        network = ip_network(cidr, strict=True)
        if host:
            every = any_port or not ports
            allowed = frozenset[int]() if every else frozenset(self._ports(ports))
            entry = _AddressEntry(network, allowed, source, every)
            self._exceptions.setdefault(canonical_name(host), []).append(entry)
            return
        entry = _AddressEntry(network, frozenset(self._ports(ports)), source)
        table = self._addresses.setdefault((network.version, network.prefixlen), {})
        table.setdefault(int(network.network_address), []).append(entry)

    def _verdict(self, allow: bool, rule: str, layer: str, reason: str) -> Verdict:
        # Verdicts are few (one per rule and layer) and asked for per packet: made once, shared.
        key = (allow, rule, layer, reason)
        verdict = self._shared.get(key)
        if verdict is None:
            verdict = Verdict(allow, rule, layer, reason)
            if len(self._shared) < 65536:
                self._shared[key] = verdict
        return verdict

    def _guard(self, name: str, layer: str, rule: _Ports, *, listed: bool = False) -> Verdict | None:
        """
        Return the built-in denial of a canonical name that *rule* opens, which it does not outweigh.

        Some are outweighed by a rule for exactly this name; *listed* answers as if there were one.
        """
        listed = listed or name in self._exact
        if name == "localhost" or name.endswith((".localhost", "." + INSIDE_NAME)):
            return self._verdict(
                False, "builtin:reserved-name", layer, "the name is reserved and leads to no outside host"
            )
        if rule is self._any and is_local_name(name) and name not in self._exceptions:
            return self._verdict(
                False,
                "builtin:local-name",
                layer,
                "the name has no meaning outside the operator's network; only a rule that names it opens it",
            )
        if self.ai_ceiling and name not in self._metered:
            vendor = ai_vendor(name)
            if vendor is not None:
                return self._verdict(
                    False,
                    "builtin:unmetered-ai-host",
                    layer,
                    f"a dollar ceiling is set and nothing meters this {vendor} host",
                )
        if self.git is not None and is_git_host(name) and (not listed or name == SSH_HOST):
            return self._verdict(
                False,
                "builtin:git-host",
                layer,
                "repositories are listed, and at this GitHub host nobody can tell which one is asked for"
                if name != SSH_HOST
                else "git over SSH cannot be judged by repository; use https://github.com/",
            )
        if not listed and is_public_resolver(name):
            return self._verdict(
                False,
                "builtin:public-resolver",
                layer,
                "DNS over HTTPS would pass the DNS filter by; only an exact rule opens this host",
            )
        return None

    def openable(self, authority: Authority) -> bool:
        """
        Say whether a rule for exactly this host and port would open it, in a profile or by ``km allow``.

        What a name resolves to is judged later: a rule for a name opens no private address.
        """
        port = authority.port
        if port == 80 and self.https_only:
            return False
        if authority.address is not None:
            entry = forbidden_range(normalise_address(authority.address))
            return entry is None or not entry.never
        return (
            authority.host != INSIDE_NAME
            and self._guard(authority.host, "connect", _Ports(), listed=True) is None
        )

    def _first(self, name: str) -> _Ports | None:
        """Return the first of `_rules`, without a generator: most names match nothing, and many are asked."""
        found = self._exact.get(name) or self._suffix.get(name)
        if found is not None:
            return found
        suffix, subdomains = self._suffix, self._subdomains
        at = name.find(".")
        while at >= 0:
            parent = name[at + 1 :]
            found = suffix.get(parent) or subdomains.get(parent)
            if found is not None:
                return found
            at = name.find(".", at + 1)
        return self._any

    def _rules(self, name: str) -> Iterable[_Ports]:
        """Yield what the rules that match a canonical name open, the most specific first."""
        found = self._exact.get(name)
        if found is not None:
            yield found
        suffix, subdomains = self._suffix, self._subdomains
        found = suffix.get(name)
        if found is not None:
            yield found
        at = name.find(".")
        while at >= 0:
            parent = name[at + 1 :]
            found = suffix.get(parent)
            if found is not None:
                yield found
            found = subdomains.get(parent)
            if found is not None:
                yield found
            at = name.find(".", at + 1)
        if self._any is not None:
            yield self._any

    def name(self, name: str) -> Verdict:
        """Say whether *name* may be resolved (layer ``dns``); any spelling, malformed ones are denied."""
        try:
            name = canonical_name(name)
        except ValueError as error:
            return Verdict(False, "builtin:malformed-name", "dns", str(error))
        if name == INSIDE_NAME:
            return self._verdict(True, "builtin:inside-api", "dns", "the sandbox's own services")
        ports = self._first(name)
        if ports is None:
            return self._no_rule
        denied = self._guard(name, "dns", ports)
        return denied or self._verdict(True, ports.first(), "dns", "allowed by the profile")

    def free_below(self, name: str) -> str | None:
        """
        Return the suffix below which a canonical name was chosen freely; empty when anywhere (``*``).

        None for a name that a rule lists as it is, and for one that no rule matches.
        """
        if name in self._exact or name in self._suffix:
            return None
        at = name.find(".")
        while at >= 0:
            parent = name[at + 1 :]
            if parent in self._suffix or parent in self._subdomains:
                return parent
            at = name.find(".", at + 1)
        return None if self._any is None else ""

    def connect(self, name: str, port: int, layer: str = "connect") -> Verdict:
        """
        Say whether *name* may be reached at TCP *port*.

        Args:
            name: any spelling of a host name; an address literal is denied here (ask `address`).
            port: 1 to 65535.
            layer: the layer that asks, for the verdict.
        """
        try:
            name = canonical_name(name)
        except ValueError as error:
            return Verdict(False, "builtin:malformed-name", layer, str(error))
        if name == INSIDE_NAME:
            if port == INSIDE_PORT:
                return self._verdict(True, "builtin:inside-api", layer, "the sandbox's own services")
            return Verdict(False, "builtin:port", layer, f"km.internal serves port {INSIDE_PORT} only")
        first = self._first(name)
        if first is None:
            return self._verdict(False, "builtin:default-deny", layer, _NO_RULE)
        denied = self._guard(name, layer, first)
        if denied is not None:
            return denied
        matched = ""
        for ports in self._rules(name):
            source = ports.by_port.get(port)
            if source is not None:
                return self._verdict(True, source, layer, "allowed by the profile")
            matched = matched or ports.first()
        if port == 80 and self.https_only:
            return self._verdict(False, "builtin:https-only", layer, "the profile allows HTTPS only")
        return Verdict(False, "builtin:port", layer, f"{matched} does not allow port {port}")

    def address(self, ip: Address, port: int, layer: str = "tcp") -> Verdict:
        """
        Say whether a literal address may be reached; only address rules open one.

        Loopback, link-local, instance metadata, multicast and km's own range are never open; other
        forbidden ranges only to a rule that lies inside them (``0.0.0.0/0`` opens no private address), and
        a public resolver only to a rule for its very address.
        """
        ip = normalise_address(ip)
        entry = forbidden_range(ip)
        if entry is not None and entry.never:
            return self._verdict(
                False, "builtin:forbidden-address", layer, f"{entry.what} is never reachable"
            )
        matched: str | None = None
        resolver = is_resolver_address(ip)
        for rule in self._address_rules(ip):
            if entry is not None and not names_range(rule.network, entry):
                continue
            if resolver and rule.network.prefixlen < rule.network.max_prefixlen:
                continue
            if port in rule.ports:
                return self._verdict(True, rule.source, layer, "allowed by the profile")
            matched = matched or rule.source
        if matched is not None:
            return Verdict(False, "builtin:port", layer, f"{matched} does not allow port {port}")
        if resolver:
            return self._verdict(
                False,
                "builtin:public-resolver",
                layer,
                "a public resolver would pass the DNS filter by; only a rule for this very address opens it",
            )
        if entry is not None:
            return self._verdict(
                False,
                "builtin:forbidden-address",
                layer,
                f"the address is {entry.what} ({entry.network}) and no rule names that range",
            )
        return self._verdict(
            False, "builtin:literal-address", layer, "no rule of the profile allows this address"
        )

    def _address_rules(self, ip: Address) -> Iterable[_AddressEntry]:
        value, bits = int(ip), ip.max_prefixlen
        for (version, length), table in self._addresses.items():
            if version == ip.version:
                yield from table.get(value >> (bits - length) << (bits - length), ())

    def resolved(self, name: str, ip: Address, port: int | None = None) -> Verdict:
        """
        Say whether an address that a resolver gave for *name* may be dialled.

        Forbidden ranges are denied (DNS rebinding), also inside IPv6 addresses that carry an IPv4 one.
        An exception of the operator (``private_hosts``) or of an address rule bound to this name allows
        its own CIDR, when that lies inside the forbidden range; instance metadata only when the
        exception is that single address.

        Args:
            name: any spelling of the host name that was resolved.
            ip: the address.
            port: the port to be dialled; given, an exception with ports must list it.
        """
        try:
            name = canonical_name(name)
        except ValueError as error:
            return Verdict(False, "builtin:malformed-name", "dns", str(error))
        ip = normalise_address(ip)
        entry = forbidden_range(ip)
        if name == INSIDE_NAME:
            return self._verdict(
                False, "builtin:inside-api", "dns", "km.internal is answered by the gate itself"
            )
        if entry is None:
            if is_resolver_address(ip) and name not in self._exact:
                return self._verdict(
                    False,
                    "builtin:public-resolver",
                    "dns",
                    "the name leads to a public resolver, past the DNS filter; only an exact rule opens that",
                )
            return self._verdict(True, "builtin:public-address", "dns", "a public address")
        for rule in self._exceptions.get(name, ()):
            if ip in rule.network and names_range(rule.network, entry) and _carries_nothing_else(ip, rule):
                if not rule.any_port and (not rule.ports or (port is not None and port not in rule.ports)):
                    continue
                return self._verdict(
                    True, rule.source, "dns", "allowed by the operator for exactly this range"
                )
        return Verdict(
            False,
            "builtin:private-address",
            "dns",
            f"{name} resolves to {ip}, which is {entry.what} ({entry.network})",
        )


def _carries_nothing_else(ip: Address, rule: _AddressEntry) -> bool:
    """Say that *ip* carries no forbidden IPv4 address besides what the exception names."""
    if not isinstance(ip, IPv6Address):
        return True
    return all(forbidden_range(inner) is None or inner in rule.network for inner in embedded_ipv4(ip))
