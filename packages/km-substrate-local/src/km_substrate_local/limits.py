"""The limits of a sandbox: by control groups where the host allows it, else by resource limits."""

from __future__ import annotations

import hashlib
import math
import os
from typing import TYPE_CHECKING

from km_host.cgroup import ControlGroup, Limits, default_limits

if TYPE_CHECKING:
    from km_core.config import Config
    from km_core.plan import LimitsPlan

FIELDS = {"memory": "memory", "cpu": "cpus", "pids": "pids"}
"""Controller to the name of the limit in the configuration and in `LimitsPlan.explicit`."""
ENFORCED, PARTIAL = "enforced", "partial (rlimit)"
MAX_FILES = 65536


def wanted_limits(plan: LimitsPlan) -> Limits:
    """Return the plan's limits, with half the host and 512 processes where it names none."""
    default = default_limits()
    return Limits(
        plan.memory_bytes if plan.memory_bytes is not None else default.memory_bytes,
        plan.cpus if plan.cpus is not None else default.cpus,
        plan.pids if plan.pids is not None else default.pids,
    )


def gate_limits() -> Limits:
    """Return what a gate may use: a sandbox can starve its own gate, never the host."""
    default = default_limits()
    return Limits(max((default.memory_bytes or 0) // 2, 512 * 1024 * 1024), default.cpus, 256)


def group_prefix(config: Config) -> str:
    """Return what the names of this home's control groups begin with."""
    return f"km-{hashlib.sha256(str(config.home).encode()).hexdigest()[:8]}-"


def unenforceable(plan: LimitsPlan, missing: tuple[str, ...]) -> tuple[str, ...]:
    """Return the explicit limits among *missing* controllers, by the operator's names."""
    return tuple(FIELDS[name] for name in missing if FIELDS[name] in plan.explicit)


def probe_missing(limits: Limits) -> tuple[str, ...]:
    """Make a control group and say which limits it lacks; it is removed at once."""
    group = ControlGroup(f"km-probe-{os.getpid()}")
    try:
        return group.create(limits)
    finally:
        group.remove()


def resource_limits(limits: Limits, missing: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """
    Return (soft, hard) by name of the `resource` module.

    ``RLIMIT_DATA`` bounds each process, not their sum: it is what is there without a control group.
    """
    result = {"RLIMIT_CORE": (0, 0), "RLIMIT_NOFILE": (1024, MAX_FILES)}
    if "memory" in missing and limits.memory_bytes is not None:
        result["RLIMIT_DATA"] = (limits.memory_bytes, limits.memory_bytes)
    if "pids" in missing and limits.pids is not None:
        result["RLIMIT_NPROC"] = (limits.pids, limits.pids)
    return result


def processors(limits: Limits, missing: tuple[str, ...]) -> int:
    """Return how many processors to pin the sandbox to, 0 for all: what is left of a missing cpu quota."""
    return math.ceil(limits.cpus) if "cpu" in missing and limits.cpus is not None else 0
