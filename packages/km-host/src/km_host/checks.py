"""Health checks of a Linux host for ``km doctor``; nothing stays changed."""

from __future__ import annotations

import os

from km_core.errors import KmError
from km_core.types import CheckResult
from km_host import caps
from km_host.cgroup import ControlGroup, default_limits


def check_programs() -> CheckResult:
    """Say whether bubblewrap, nftables and iproute2 are installed."""
    old = caps.bubblewrap_obstacle()
    missing = (*caps.missing_programs(), *([old] if old is not None else []))
    if missing:
        return CheckResult(
            "ERROR", "; ".join(error.what for error in missing), "; ".join(error.hint for error in missing)
        )
    return CheckResult("OK", f"{', '.join(caps.PACKAGES)} are installed")


def check_namespaces() -> CheckResult:
    """Make namespaces and listeners for real, in a process that ends at once."""
    try:
        how = caps.probe_namespaces()
    except KmError as error:
        return CheckResult("ERROR", str(error), error.hint)
    if how == "redirect":
        return CheckResult(
            "WARN", "connections are steered by redirect: slower", "load the module nft_tproxy"
        )
    return CheckResult("OK", "user and network namespaces work, connections are steered by tproxy")


def check_limits() -> CheckResult:
    """Make a control group and say which limits it can enforce."""
    group = ControlGroup(f"km-doctor-{os.getpid()}")
    try:
        missing = group.create(default_limits())
        freezer = group.has_freezer
    finally:
        group.remove()
    lacking = [*missing, *([] if freezer else ["pause"])]
    if lacking:
        return CheckResult(
            "WARN",
            f"not enforced by control groups here: {', '.join(lacking)}",
            "run km as root or in a systemd user session with delegated controllers",
        )
    return CheckResult("OK", "memory, cpu, pids and the freezer work")
