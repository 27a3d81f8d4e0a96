"""What one plan reaches that another does not: names, addresses, repositories, refs."""

from __future__ import annotations

import string
from ipaddress import collapse_addresses, ip_network
from typing import TYPE_CHECKING

from attrs import evolve

from km_core.policy import NetworkPolicy, forbidden_range, is_public_resolver
from km_core.policy.addresses import names_range
from km_core.policy.network import WEB_PORTS
from km_core.policy.refs import ref_allowed
from km_core.policy.repos import repo_allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from km_core.plan import AddressRule, GitPlan, HostRule, NetworkPlan, SandboxPlan
    from km_core.policy.addresses import Network

Found = tuple[str, str]
"""Path of the entry behind it, and what it reaches, for people."""


def new_hosts(known: SandboxPlan, looked_at: SandboxPlan, metered_hosts: Sequence[str]) -> Iterator[Found]:
    """Yield the names and ports that only *looked_at* allows; ports 80 by ``httpsOnly`` alone are left out."""
    rules = (*known.network.hosts, *looked_at.network.hosts)
    word = _fresh_label({label for rule in rules for label in rule.pattern.split(".")})
    allows = _policy(looked_at, metered_hosts)
    allowed = _policy(known, metered_hosts)
    # Without the two switches that have lines of their own, so that they do not repeat for every host.
    uncapped = evolve(known, budget=evolve(known.budget, ai_limit_nusd=None))
    elsewhere = _policy(uncapped, metered_hosts)
    plain = _policy(evolve(uncapped, network=evolve(known.network, https_only=False)), metered_hosts)
    seen = set()
    for rule in looked_at.network.hosts:
        opened: dict[tuple[str, ...], list[int]] = {}
        uncounted = False
        for port in _asked(rule, rules):
            new = []
            # httpsOnly closes port 80; that it also keeps a rule from naming a resolver is no part of its line.
            by_rules = plain if port == 80 else elsewhere
            for what, name in _witnesses(rule, word):
                if not allows.connect(name, port).allow or allowed.connect(name, port).allow:
                    continue
                if not by_rules.connect(name, port).allow:
                    new.append(what)
                elif allowed.connect(name, port).rule == "builtin:unmetered-ai-host":
                    uncounted = True
            if new:
                opened.setdefault(tuple(new), []).append(port)
        for parts, ports in opened.items():
            found = f"{_reached(rule, parts)} ({_ports(ports)})"
            if (rule.pattern, found) not in seen:
                seen.add((rule.pattern, found))
                yield rule.source, found
        if uncounted and (rule.pattern, "uncounted") not in seen:
            seen.add((rule.pattern, "uncounted"))
            yield rule.source, f"{rule.pattern}: a model host that nothing meters, since no ceiling is set"


def _asked(rule: HostRule, rules: Sequence[HostRule]) -> list[int]:
    """Return the ports to ask about: a resolver's exact rule also lets broader rules open theirs to it."""
    ports = list(rule.ports or WEB_PORTS)
    if rule.kind == "exact" and is_public_resolver(rule.pattern):
        ports += [port for other in rules for port in other.ports or WEB_PORTS]
    return list(dict.fromkeys(ports))


def _policy(plan: SandboxPlan, metered_hosts: Sequence[str]) -> NetworkPolicy:
    return NetworkPolicy.from_plan(
        plan.network, ai_ceiling=plan.budget.ai_limit_nusd is not None, metered_hosts=metered_hosts
    )


def _witnesses(rule: HostRule, word: str) -> Iterator[tuple[str, str]]:
    """Yield what a rule covers and a name that stands for it."""
    if rule.kind == "any":
        yield "any", f"{word}.{word}"
        return
    if rule.kind in {"exact", "suffix"}:
        yield "itself", rule.pattern
    if rule.kind in {"suffix", "subdomains"}:
        yield "below", f"{word}.{rule.pattern}"


def _reached(rule: HostRule, parts: tuple[str, ...]) -> str:
    if "any" in parts:
        return "every name"
    if parts == ("below",):
        return f"subdomains of {rule.pattern}"
    return f"{rule.pattern} and its subdomains" if "below" in parts else rule.pattern


def _ports(ports: Iterable[int]) -> str:
    listed = [str(port) for port in sorted(ports, reverse=True)]
    return ("ports " if len(listed) > 1 else "port ") + ", ".join(listed)


def _fresh_label(used: set[str]) -> str:
    """Return the shortest label that no rule has, so that it fits below the longest names too."""
    for letter in string.ascii_lowercase:
        if letter not in used:
            return letter
    number = 0
    while f"n{number}" in used:
        number += 1
    return f"n{number}"


def new_addresses(known: NetworkPlan, looked_at: NetworkPlan) -> Iterator[Found]:
    """Yield the address ranges and ports that only *looked_at* opens, exceptions for private mirrors too."""
    seen = set()
    for rule in looked_at.addresses:
        network = ip_network(rule.cidr)
        entry = forbidden_range(network.network_address)
        named = entry is not None and names_range(network, entry)
        if named and entry is not None and entry.never and not rule.host:
            continue
        ports = [
            port
            for port in _opened(rule, looked_at)
            if not _covered(network, port, rule.host, known, inside=named)
        ]
        what = f"address {network}" if network.num_addresses == 1 else f"addresses {network}"
        if rule.host:
            what = f"{rule.host} at {what}"
        if ports and (what, tuple(ports)) not in seen:
            seen.add((what, tuple(ports)))
            yield rule.source, what if ports == [0] else f"{what} ({_ports(ports)})"


def _opened(rule: AddressRule, plan: NetworkPlan) -> list[int]:
    """Return the ports of a rule; 0 stands for all those of an exception that names none."""
    if rule.host and not rule.ports:
        return [0]
    ports = rule.ports or WEB_PORTS
    return [port for port in ports if not (plan.https_only and port == 80)]


def _covered(network: Network, port: int, host: str, known: NetworkPlan, *, inside: bool) -> bool:
    """Say whether the rules of *known* open all of *network* at *port*, private ranges as strictly."""
    candidates = []
    for rule in known.addresses:
        # With httpsOnly a rule's port 80 is closed, which has a line of its own.
        opened = rule.ports or (() if rule.host else WEB_PORTS)
        if rule.host != host or (opened and port not in opened):
            continue
        other = ip_network(rule.cidr)
        entry = forbidden_range(network.network_address)
        if other.version != network.version or (inside and (entry is None or not names_range(other, entry))):
            continue
        candidates.append(other)
    return any(
        network.subnet_of(merged)  # type: ignore[arg-type]  # the versions are equal, as checked above
        for merged in collapse_addresses(candidates)  # type: ignore[type-var]  # all of one version
    )


def new_repos(known: GitPlan, looked_at: GitPlan) -> Iterator[Found]:
    """Yield the repository patterns that reach more than those of *known*."""
    old, new = _repos(known), _repos(looked_at)
    char = _fresh_char((*old, *new))
    for index, pattern in enumerate(new):
        wanted = pattern.lower().removeprefix("github.com/")
        texts = [f"{char}/{char}"] if wanted == "*" else [wanted.replace("*", ""), wanted.replace("*", char)]
        if any(_repo(new, text) and not _repo(old, text) for text in texts):
            path = f"spec.sourceAccess.github.allowedRepos[{index}] {pattern}"
            yield path, _repository(wanted)


def _repository(wanted: str) -> str:
    if wanted == "*":
        return "every repository"
    return f"the repositories {wanted}" if "*" in wanted else f"the repository {wanted}"


def _repos(git: GitPlan) -> tuple[str, ...]:
    return () if git.mode == "none" else git.repos


def _repo(patterns: Sequence[str], text: str) -> bool:
    try:
        return repo_allowed(patterns, text).allow
    except ValueError:
        return False


def new_refs(known: GitPlan, looked_at: GitPlan) -> Iterator[Found]:
    """Yield the ref patterns that may be pushed to more than those of *known*; none without repositories."""
    if not _repos(looked_at):
        return
    old = () if not _repos(known) else known.refs
    char = _fresh_char((*(old or ()), *(looked_at.refs or ())))
    fills = ("", char, f"heads/{char}", f"tags/{char}")
    if looked_at.refs is None:
        if not all(ref_allowed(old, f"refs/{fill or char}").allow for fill in fills):
            yield "spec.sourceAccess.github.allowedRefs", "pushing every ref"
        return
    for index, pattern in enumerate(looked_at.refs):
        texts = [pattern.replace("*", fill) for fill in fills] if "*" in pattern else [pattern]
        if any(
            ref_allowed(looked_at.refs, text).allow and not ref_allowed(old, text).allow for text in texts
        ):
            yield f"spec.sourceAccess.github.allowedRefs[{index}] {pattern}", f"pushing {pattern}"


def _fresh_char(patterns: Iterable[str]) -> str:
    """Return a letter or digit that no pattern has, or else a word that none has."""
    used = set("".join(patterns).lower())
    for char in string.digits + string.ascii_lowercase:
        if char not in used:
            return char
    return "0q9z8x7w6v"
