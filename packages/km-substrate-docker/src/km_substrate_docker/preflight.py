"""What an engine cannot do for a plan, found before anything is made."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from km_core.errors import KmError, ProvisionError
from km_core.types import CheckResult, Problem, Severity
from km_substrate_docker import image
from km_substrate_docker.containers import limit_gaps
from km_substrate_docker.engine import connect, default_host, translate

if TYPE_CHECKING:
    from km_core.config import Config
    from km_core.plan import LimitsPlan, SandboxPlan

_RUNTIME = "spec.runtime.substrate"


def problems(plan: SandboxPlan, config: Config) -> list[Problem]:
    """Return what stands in the way of *plan*; empty means the engine enforces all of it."""
    if plan.network.enforcement != "proxy":
        return [
            Problem(
                "spec.network.enforcement",
                f"docker enforces mode proxy, not {plan.network.enforcement}",
                hint="a container without a network device has nothing else to enforce on",
            )
        ]
    host = default_host()
    try:
        with connect(host) as client:
            with translate("the engine does not describe itself", where=host):
                info = client.info()
            unfit = engine_fault(info)
            if unfit is not None:
                return [_problem(unfit)]
            found = _limit_problems(plan.limits, info)
            try:
                image.resolve(client, host, config)
            except ProvisionError as error:
                found.append(_problem(error))
            return found
    except ProvisionError as error:
        return [_problem(error)]


def engine_fault(info: dict[str, Any]) -> ProvisionError | None:
    """
    Return why this engine cannot run sandboxes at all, from its own description, or None.

    Descriptors are handed from containers to this machine's processes, and user ids must mean the same
    on both sides: the engine must share this machine's kernel and user namespace.
    """
    options = " ".join(map(str, info.get("SecurityOptions") or ()))
    if info.get("OSType") != "linux" or info.get("KernelVersion") != os.uname().release:
        return ProvisionError(
            "the engine runs on another machine or in a virtual machine",
            why=f"its kernel is {info.get('KernelVersion')}, this machine's is {os.uname().release}",
            hint="use an engine on this machine, or the substrate local",
        )
    for word, what in (("name=rootless", "rootless"), ("name=userns", "with remapped users")):
        if word in options:
            return ProvisionError(
                f"the engine runs {what}",
                why="the gate could not be told apart from the workload by its user",
                hint="use the engine's usual mode, or the substrate local, which needs no root",
            )
    if "name=seccomp" not in options:
        return ProvisionError(
            "the engine cannot filter system calls",
            why="it was built or started without seccomp",
            hint="use an engine with seccomp",
        )
    return None


def check_engine() -> CheckResult:
    """Say for ``km doctor`` whether an engine fits and has the base image."""
    host = default_host()
    try:
        with connect(host) as client:
            with translate("the engine does not describe itself", where=host):
                info = client.info()
            unfit = engine_fault(info)
            if unfit is not None:
                return CheckResult("WARN", f"docker: {unfit}", unfit.hint)
            gaps = limit_gaps(info)
            if gaps:
                return CheckResult("WARN", f"docker: the engine cannot limit {', '.join(gaps)}")
            if not image.has_base(client):
                return CheckResult("WARN", "docker: the base image is not built", image.build_command())
    except KmError as error:
        return CheckResult("SKIPPED", f"docker: {error.what}", error.hint)
    return CheckResult("OK", f"docker: {info.get('ServerVersion')} at {host}, base image {image.base_tag()}")


def _limit_problems(limits: LimitsPlan, info: dict[str, Any]) -> list[Problem]:
    found = []
    for name in limit_gaps(info):
        explicit = name in limits.explicit
        found.append(
            Problem(
                f"limits.{name}",
                f"the engine cannot limit {name}",
                severity=Severity.ERROR if explicit else Severity.WARNING,
                hint="boot the host with the controller, or leave the limit out",
            )
        )
    if limits.cpus is not None and limits.cpus > int(info.get("NCPU") or 0):
        found.append(Problem("limits.cpus", f"the host has {info.get('NCPU')} cores, not {limits.cpus:g}"))
    return found


def _problem(error: ProvisionError) -> Problem:
    return Problem(_RUNTIME, str(error), hint=error.hint)
