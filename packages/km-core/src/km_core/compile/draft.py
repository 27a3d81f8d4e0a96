"""From a merged profile to a plan: pure and deterministic."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from km_core.errors import PlanError
from km_core.ledger.money import nusd_from_usd
from km_core.plan import (
    AddressRule,
    BudgetPlan,
    GitPlan,
    HostRule,
    LifecyclePlan,
    LimitsPlan,
    NetworkPlan,
    PlanFile,
    SandboxPlan,
    WorkloadPlan,
)
from km_core.policy import NetworkPolicy, compile_address, compile_pattern, parse_address
from km_core.policy.aws import names_aws
from km_core.policy.repos import GitPolicy
from km_core.profile.duration import parse_duration, parse_ttl

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from km_core.secrets import CredentialRule
    from km_core.types import GroupResolution, Meter


_OVER_SSH = ("git@github.com:", "ssh://git@github.com/", "ssh://git@ssh.github.com:443/")
_GIT_ENV = {
    # Remotes written for SSH, which nobody could judge, are asked for over HTTPS (git-config(1)).
    "GIT_CONFIG_COUNT": str(len(_OVER_SSH)),
    **{f"GIT_CONFIG_KEY_{n}": "url.https://github.com/.insteadOf" for n in range(len(_OVER_SSH))},
    **{f"GIT_CONFIG_VALUE_{n}": url for n, url in enumerate(_OVER_SSH)},
    # The credential is the gate's; nobody inside is to be asked for one.
    "GIT_TERMINAL_PROMPT": "0",
}


def draft_plan(
    data: Mapping[str, Any],
    *,
    digest: str,
    substrate: str,
    groups: Sequence[GroupResolution],
    meters: Iterable[Meter],
    limits: LimitsPlan,
    inert: Sequence[str] = (),
    credentials: Sequence[CredentialRule] = (),
) -> SandboxPlan:
    """
    Make the plan of a merged, valid profile.

    Args:
        data: the merged document with its defaults filled in.
        digest: SHA-256 of the effective profile.
        substrate: where it will run.
        groups: what the profile's egress groups resolved to.
        meters: providers whose placeholder variables clients need.
        limits: resource limits, already resolved.
        inert: fields that have no meaning on this substrate, listed in the plan.
        credentials: the operator's rules, whose placeholder variables clients need too.
    """
    metadata, spec = data["metadata"], data["spec"]
    network = network_plan(spec["network"], groups, spec.get("identity") or {})
    return SandboxPlan(
        profile=metadata["name"],
        profile_digest=digest,
        prefix=metadata.get("prefix") or "sb",
        substrate=substrate,
        labels=tuple(sorted((metadata.get("labels") or {}).items())),
        lifecycle=_lifecycle(spec["lifecycle"]),
        workload=_workload(
            spec["execution"],
            network,
            groups,
            meters,
            credentials=credentials,
            ai_ceiling="ai" in (spec.get("budget") or {}),
            git=git_plan(spec.get("sourceAccess") or {}),
        ),
        network=network,
        git=git_plan(spec.get("sourceAccess") or {}),
        budget=_budget(spec.get("budget") or {}),
        limits=limits,
        inert=tuple(sorted(inert)),
    )


def network_plan(
    section: Mapping[str, Any], groups: Sequence[GroupResolution], identity: Mapping[str, Any] | None = None
) -> NetworkPlan:
    """
    Return the one form of the two lists that every layer consumes (spec/network.md section 1).

    Args:
        section: ``spec.network``.
        groups: what its egress groups resolved to.
        identity: ``spec.identity``, whose regions bound requests to AWS.
    """
    egress = section.get("egress") or {}
    hosts: list[HostRule] = []
    addresses: list[AddressRule] = []
    for index, entry in enumerate(egress.get("allowedHosts") or ()):
        source = f"spec.network.egress.allowedHosts[{index}] {entry}"
        if entry.startswith("@"):
            continue
        address = compile_address(entry, source=source)
        if address is not None:
            addresses.append(address)
        else:
            hosts.append(compile_pattern(entry, dns_list=False, source=source))
    for index, entry in enumerate(egress.get("allowedDNSSuffixes") or ()):
        if entry.startswith("@"):
            continue
        source = f"spec.network.egress.allowedDNSSuffixes[{index}] {entry}"
        hosts.append(compile_pattern(entry, dns_list=True, source=source))
    for group in groups:
        for entry in group.hosts:
            host, _, port = entry.rpartition(":")
            source = f"{group.name} {entry} ({group.source})"
            literal = parse_address(host)
            if literal is None:
                hosts.append(HostRule(pattern=host, kind="exact", ports=(int(port),), source=source))
            else:
                cidr = f"{literal}/{literal.max_prefixlen}"
                addresses.append(AddressRule(cidr=cidr, ports=(int(port),), source=source))
        addresses += [
            AddressRule(cidr=cidr, host=host, source=f"{group.name} {host} ({group.source})")
            for host, cidr in group.private
        ]
    return NetworkPlan(
        enforcement=section.get("enforcement") or "proxy",
        https_only=bool(section.get("httpsOnly")),
        hosts=tuple(hosts),
        addresses=tuple(addresses),
        groups=tuple(groups),
        aws_regions=tuple((identity or {}).get("allowedRegions") or ()) if names_aws(hosts) else (),
    )


def resolve_limits(
    config: Mapping[str, Any], *, memory: str | None, cpus: float | None, pids: int | None
) -> LimitsPlan:
    """
    Return the resource limits that somebody asked for: flags over configuration.

    They are *explicit*: enforced, or the create is refused.  What nobody asked for stays open in the plan,
    which knows no host; the substrate fills it in (half the host and 512 processes).

    Raises:
        PlanError: a size cannot be read.
    """
    memory = memory if memory is not None else config.get("memory")
    cpus = cpus if cpus is not None else config.get("cpus")
    pids = pids if pids is not None else config.get("pids")
    if (cpus is not None and cpus <= 0) or (pids is not None and pids < 1):
        raise PlanError("limits must be above 0", where="limits")
    asked = (("memory", memory), ("cpus", cpus), ("pids", pids))
    return LimitsPlan(
        memory_bytes=None if memory is None else parse_size(str(memory)),
        cpus=None if cpus is None else float(cpus),
        pids=None if pids is None else int(pids),
        explicit=tuple(name for name, value in asked if value is not None),
    )


def parse_size(text: str) -> int:
    """
    Return bytes of ``512M``, ``2G``, ``1.5GiB`` or a plain number; units are powers of 1024.

    Raises:
        PlanError: the text is no size, or it is below 16 MiB.
    """
    import re

    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([kKmMgGtT]?)(?:i?[bB])?", text.strip())
    if match is None:
        raise PlanError(f"{text!r} is not a size", where="limits.memory", hint="write 512M or 2G")
    factor = 1024 ** "kmgt".index(match[2].lower()) * 1024 if match[2] else 1
    size = int(float(match[1]) * factor)
    if size < 16 * 1024 * 1024:
        raise PlanError(
            f"{text} is too little memory to run anything", where="limits.memory", hint="use 64M or more"
        )
    return size


def _lifecycle(section: Mapping[str, Any]) -> LifecyclePlan:
    longest = section.get("maxLifetime")
    return LifecyclePlan(
        ttl_s=parse_ttl(section["ttl"]),
        idle_timeout_s=parse_duration(section["idleTimeout"]),
        max_lifetime_s=parse_duration(longest) if longest else None,
        teardown=section["teardownPolicy"],
    )


def _workload(
    section: Mapping[str, Any],
    network: NetworkPlan,
    groups: Sequence[GroupResolution],
    meters: Iterable[Meter],
    *,
    credentials: Sequence[CredentialRule],
    ai_ceiling: bool,
    git: GitPlan,
) -> WorkloadPlan:
    meters = tuple(meters)
    policy = NetworkPolicy.from_plan(
        network, ai_ceiling=ai_ceiling, metered_hosts=[host for meter in meters for host in meter.hosts]
    )
    env: dict[str, str] = {} if GitPolicy.from_plan(git) is None else dict(_GIT_ENV)
    for meter in meters:
        rule = meter.injection
        if rule is not None and any(policy.connect(host, 443, "tls").allow for host in meter.hosts):
            env.update(rule.env)
    for credential in credentials:
        if policy.connect(credential.host, 443, "tls").allow:
            env.update(credential.env)
    for group in groups:
        for name, value in group.env:
            if env.setdefault(name, value) != value:
                # Among them are the placeholders of credentials and where models are reached.
                raise PlanError(
                    f"the group sets the variable {name}, which is already set to something else",
                    where=group.name,
                    hint="leave out one of the groups that set it",
                )
    env.update(section.get("env") or {})
    return WorkloadPlan(
        shell=section["shell"],
        working_dir=section["workingDir"],
        env=tuple(sorted(env.items())),
        files=tuple(
            PlanFile(path=path, content=content)
            for path, content in (section.get("configFiles") or {}).items()
        ),
        init_commands=tuple(section.get("initCommands") or ()),
        privileged=bool(section.get("privileged")),
    )


def git_plan(section: Mapping[str, Any]) -> GitPlan:
    """Return the repository rules of ``spec.sourceAccess``."""
    github = section.get("github") or {}
    refs = github.get("allowedRefs")
    return GitPlan(
        mode=section.get("mode") or "none",
        repos=tuple(github.get("allowedRepos") or ()),
        refs=tuple(refs) if refs is not None else None,
    )


def _budget(section: Mapping[str, Any]) -> BudgetPlan:
    def limit(pool: str) -> int | None:
        part = section.get(pool)
        return (
            None
            if part is None
            else nusd_from_usd(part["maxSpendUSD"], where=f"spec.budget.{pool}.maxSpendUSD")
        )

    return BudgetPlan(
        ai_limit_nusd=limit("ai"),
        compute_limit_nusd=limit("compute"),
        warning_threshold=float(section.get("warningThreshold") or 0.8),
    )
