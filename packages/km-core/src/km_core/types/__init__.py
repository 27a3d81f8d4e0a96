"""Frozen values that cross the hook line."""

from __future__ import annotations

from km_core.types.agent import Agent, AgentRequest, AgentResult
from km_core.types.check import CheckResult, DoctorCheck
from km_core.types.claim import Answer, Claim
from km_core.types.distribution import canonical_distribution
from km_core.types.event import Delivery, Event
from km_core.types.group import EgressGroup, GroupResolution
from km_core.types.ids import is_alias, is_sandbox_id, new_sandbox_id
from km_core.types.inside import InsideRequest, InsideResponse, InsideService, Relay
from km_core.types.meter import (
    CallPlan,
    Decoder,
    Endpoint,
    EndpointKind,
    InjectionRule,
    Meter,
    ResponseFilter,
    UsageParser,
)
from km_core.types.problem import Problem, Severity
from km_core.types.sandbox import SandboxRecord, SandboxState, deadline, policy_at_end
from km_core.types.sidecar import Sidecar
from km_core.types.usage import Usage
from km_core.types.verdict import Verdict

__all__ = [
    "Agent",
    "AgentRequest",
    "AgentResult",
    "Answer",
    "CallPlan",
    "CheckResult",
    "Claim",
    "Decoder",
    "Delivery",
    "DoctorCheck",
    "EgressGroup",
    "Endpoint",
    "EndpointKind",
    "Event",
    "GroupResolution",
    "InjectionRule",
    "InsideRequest",
    "InsideResponse",
    "InsideService",
    "Meter",
    "Problem",
    "Relay",
    "ResponseFilter",
    "SandboxRecord",
    "SandboxState",
    "Severity",
    "Sidecar",
    "Usage",
    "UsageParser",
    "Verdict",
    "canonical_distribution",
    "deadline",
    "is_alias",
    "is_sandbox_id",
    "new_sandbox_id",
    "policy_at_end",
]
