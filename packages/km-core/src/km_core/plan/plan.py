"""
`SandboxPlan`: everything a substrate may know about a profile, as frozen plain data.

A plan is made by `km_core.compile`, is the same bytes for the same inputs, and is the only thing
substrates, the supervisor and the gate see (DESIGN section 4).
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from attrs import field, frozen

from km_core.types.group import GroupResolution  # noqa: TC001 - cattrs resolves it at run time

PLAN_API = 1


@frozen
class HostRule:
    """
    One name the sandbox may reach.

    Attributes:
        pattern: canonical name (lower case, A-labels, no dots at the ends); ``*`` for any name.
        kind: ``exact``, ``suffix`` (the name and what is below it), ``subdomains`` (only below it)
            or ``any``.
        ports: TCP ports; empty means the default web ports (443, and 80 unless HTTPS only).
        source: dotted path of the profile entry, with the entry.
    """

    pattern: str
    kind: str
    ports: tuple[int, ...] = ()
    source: str = ""


@frozen
class AddressRule:
    """A literal address range the sandbox may reach; *host* non-empty: only by that name (private mirrors)."""

    cidr: str
    ports: tuple[int, ...] = ()
    host: str = ""
    source: str = ""


@frozen
class NetworkPlan:
    """
    What may be reached, in the form every layer consumes.

    Attributes:
        aws_regions: regions that requests to AWS may be signed for; empty, and then not in the plan's data,
            where the profile names no host of AWS.
    """

    enforcement: str = "proxy"
    https_only: bool = False
    hosts: tuple[HostRule, ...] = ()
    addresses: tuple[AddressRule, ...] = ()
    groups: tuple[GroupResolution, ...] = ()
    aws_regions: tuple[str, ...] = ()


@frozen
class GitPlan:
    """Repository and ref rules; an empty *repos* means no repository access."""

    mode: str = "none"
    repos: tuple[str, ...] = ()
    refs: tuple[str, ...] | None = None


@frozen
class PlanFile:
    """A file written into the sandbox, owned by its user."""

    path: str
    content: str
    mode: int = 0o644


@frozen
class WorkloadPlan:
    """What runs inside."""

    shell: str = "/bin/bash"
    working_dir: str = "/workspace"
    env: tuple[tuple[str, str], ...] = ()
    files: tuple[PlanFile, ...] = ()
    init_commands: tuple[str, ...] = ()
    privileged: bool = False


@frozen
class LifecyclePlan:
    """Times in seconds; *ttl_s* None means no expiry."""

    ttl_s: int | None = None
    idle_timeout_s: int = 0
    max_lifetime_s: int | None = None
    teardown: str = "destroy"


@frozen
class BudgetPlan:
    """Limits in nano-dollars; None means no ceiling, 0 means nothing may be spent."""

    ai_limit_nusd: int | None = None
    compute_limit_nusd: int | None = None
    warning_threshold: float = 0.8


@frozen
class LimitsPlan:
    """Resource limits; *explicit* names those the operator asked for, which are enforced or refused."""

    memory_bytes: int | None = None
    cpus: float | None = None
    pids: int | None = None
    explicit: tuple[str, ...] = ()


@frozen
class SandboxPlan:
    """The whole contract of one sandbox, resolved."""

    profile: str
    profile_digest: str
    prefix: str
    substrate: str
    labels: tuple[tuple[str, str], ...] = ()
    lifecycle: LifecyclePlan = field(factory=LifecyclePlan)
    workload: WorkloadPlan = field(factory=WorkloadPlan)
    network: NetworkPlan = field(factory=NetworkPlan)
    git: GitPlan = field(factory=GitPlan)
    budget: BudgetPlan = field(factory=BudgetPlan)
    limits: LimitsPlan = field(factory=LimitsPlan)
    runners: tuple[str, ...] = ("pod", "gate")
    requirements: tuple[str, ...] = ()
    inert: tuple[str, ...] = ()
    api: int = PLAN_API

    def to_json(self) -> str:
        """Return canonical JSON: sorted keys, two-space indent, ASCII, one trailing newline."""
        return json.dumps(self.to_data(), indent=2, sort_keys=True) + "\n"

    def to_data(self) -> dict[str, Any]:
        """Return plain JSON data."""
        import cattrs

        data: dict[str, Any] = cattrs.Converter(
            unstruct_strat=cattrs.UnstructureStrategy.AS_DICT
        ).unstructure(self)
        if not self.network.aws_regions:
            del data["network"]["aws_regions"]
        return data

    @classmethod
    def from_data(cls, data: dict[str, Any]) -> SandboxPlan:
        """
        Rebuild a plan from `to_data`.

        Raises:
            PlanError: the data was written for another plan API, or is not a plan.
        """
        import cattrs

        from km_core.errors import PlanError

        if not isinstance(data, dict):
            raise PlanError("the plan is damaged", why="it is no JSON object")
        if data.get("api") != PLAN_API:
            raise PlanError(f"the plan was written for plan API {data.get('api')}, this km reads {PLAN_API}")
        try:
            return cattrs.Converter(forbid_extra_keys=True).structure(data, cls)
        except Exception as error:
            raise PlanError("the plan is damaged", why=str(error)) from error

    def digest(self) -> str:
        """Return the SHA-256 of the canonical JSON, in hex."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()
