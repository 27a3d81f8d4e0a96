"""The plan: frozen, JSON, pure data."""

from __future__ import annotations

from km_core.plan.additions import PlanAdditions
from km_core.plan.plan import (
    PLAN_API,
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
from km_core.plan.policy import Grant, policy_data, policy_version, with_policy

__all__ = [
    "PLAN_API",
    "AddressRule",
    "BudgetPlan",
    "GitPlan",
    "Grant",
    "HostRule",
    "LifecyclePlan",
    "LimitsPlan",
    "NetworkPlan",
    "PlanAdditions",
    "PlanFile",
    "SandboxPlan",
    "WorkloadPlan",
    "policy_data",
    "policy_version",
    "with_policy",
]
