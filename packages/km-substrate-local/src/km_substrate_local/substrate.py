"""The substrate ``local``: daemon-less sandboxes on Linux."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.control.substrate import Leftover
from km_core.errors import ControlUnavailableError, GuardError, KmError, ProvisionError
from km_core.plan import SandboxPlan
from km_core.types import Problem, is_sandbox_id
from km_host import caps
from km_host.cgroup import ControlGroup, groups_with_prefix
from km_host.exec_client import run_command
from km_host.pod_client import (
    EXEC_SOCKET,
    LOCK,
    POD_COMMAND,
    SOCKET,
    call_pod,
    end_pod,
    pod_is_alive,
    pods_of,
    spawn_pod,
)
from km_host.processes import environment_of, own_processes
from km_substrate_local import limits, rootfs
from km_substrate_local.places import directory_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from km_core.config import Config
    from km_core.control.substrate import Box

NAME = "local"
POD, PROCESS, GROUP, RUNTIME = "supervisor", "process", "control group", "runtime directory"


class LocalSubstrate:
    """
    Implements `km_core.control.substrate.Substrate`.

    Args:
        pod_command: what starts a supervisor; the sandbox's id is added.
    """

    name = NAME
    capabilities = frozenset({"exec", "tty", "stop", "pause", "limits"})

    def __init__(self, *, pod_command: Sequence[str] = POD_COMMAND) -> None:
        self._pod_command = tuple(pod_command)

    def problems(self, plan: SandboxPlan, config: Config) -> Sequence[Problem]:
        """Say what this host cannot do for the plan."""
        return tuple(_problems(plan, config))

    def prepare(self, box: Box) -> None:
        """Start the supervisor, which makes everything but the workload."""
        if not box.token and not pod_is_alive(box.runtime_dir):
            raise ProvisionError("preparing a sandbox needs a fresh token", where=box.id)
        spawn_pod(box, command=self._pod_command)

    def start(self, box: Box) -> None:
        """Start the first process inside; it waits for commands."""
        call_pod(box.runtime_dir, "start")

    def stop(self, box: Box) -> None:
        """End supervisor, gate and workload."""
        end_pod(box)

    def pause(self, box: Box) -> None:
        """Freeze the workload; `ProvisionError` where the host has no freezer."""
        call_pod(box.runtime_dir, "freeze")

    def resume(self, box: Box) -> None:
        """Thaw the workload, or prepare and start a stopped one."""
        if not pod_is_alive(box.runtime_dir):
            self.prepare(box)
            self.start(box)
            return
        call_pod(box.runtime_dir, "thaw")

    def destroy(self, box: Box) -> None:
        """Remove every trace but the state directory; works without a supervisor too."""
        end_pod(box, timeout_s=3.0)
        for leftover in self.leftovers(box.config):
            if leftover.sandbox_id == box.id and leftover.what != RUNTIME:
                self.remove_leftover(box.config, leftover)
        # kmd's socket in the same directory is kmd's to remove.
        for name in (SOCKET, f".{SOCKET}", EXEC_SOCKET, LOCK):
            (box.runtime_dir / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            box.runtime_dir.rmdir()

    def exec(
        self,
        box: Box,
        argv: Sequence[str],
        *,
        env: Mapping[str, str],
        cwd: str,
        root: bool,
        tty: bool,
    ) -> int:
        """Run a command as the sandbox's user; there is no other."""
        if root:
            raise GuardError(
                "a local sandbox has no root user",
                where=box.id,
                hint="leave --root out, or use the docker substrate",
            )
        return run_command(box.runtime_dir / EXEC_SOCKET, argv, env=env, cwd=cwd, terminal=tty)

    def status(self, box: Box) -> dict[str, Any]:
        """Describe what runs."""
        nothing = {"running": False, "enforcement": "", "limits": "none", "gate": {}, "pod": {}}
        if not pod_is_alive(box.runtime_dir):
            return nothing
        try:
            answer = call_pod(box.runtime_dir, "status", timeout_s=5.0)
        except ControlUnavailableError:
            return nothing
        keys = ("running", "enforcement", "limits", "gate", "state", "reason")
        return {key: answer[key] for key in keys} | {
            "pod": {"pid": answer["pod_pid"]},
            "not_enforced": answer["backend"].get("not_enforced", []),
        }

    def leftovers(self, config: Config) -> Sequence[Leftover]:
        """List supervisors, processes, control groups and runtime directories of this home."""
        return tuple(_leftovers(config))

    def remove_leftover(self, config: Config, leftover: Leftover) -> None:
        """Remove one; what has gone in the meantime is fine."""
        if leftover.what in {POD, PROCESS}:
            pid = int(leftover.detail)
            # The number may be another process's by now.
            if (leftover.sandbox_id, pid) in {(name, pid) for pid, name in _processes(config)}:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        elif leftover.what == GROUP:
            ControlGroup.existing(leftover.detail).remove()
        elif leftover.what == RUNTIME and is_sandbox_id(leftover.sandbox_id):
            shutil.rmtree(config.sandbox_runtime_dir(leftover.sandbox_id), ignore_errors=True)


def _problems(plan: SandboxPlan, config: Config) -> Iterator[Problem]:
    if plan.network.enforcement != "proxy":
        yield Problem(
            "spec.network.enforcement",
            f"local sandboxes cannot enforce {plan.network.enforcement}",
            hint="use enforcement: proxy",
        )
    if plan.workload.privileged:
        yield Problem(
            "spec.execution.privileged", "a local sandbox has no root user", hint="use the docker substrate"
        )
    for error in (*caps.missing_programs(), caps.bubblewrap_obstacle(), caps.user_namespace_obstacle()):
        if error is not None:
            yield _host_problem(error)
    try:
        rootfs.system_python()
    except ProvisionError as error:
        yield _host_problem(error)
    shell = Path(plan.workload.shell)
    if not any(shell.is_relative_to(place) for place in ("/bin", "/usr")) or not shell.exists():
        yield Problem("spec.execution.shell", f"the host has no {shell} to show inside", hint="use /bin/bash")
    yield from directory_problems(plan.workload.working_dir, [str(path) for path in config.read_only_paths])
    for path in config.read_only_paths:
        why = rootfs.read_only_problem(path, config)
        if why:
            yield Problem("local.read_only_paths", f"{path} {why}")
    if plan.limits.explicit:
        missing = limits.probe_missing(limits.wanted_limits(plan.limits))
        for name in limits.unenforceable(plan.limits, missing):
            yield Problem(
                f"limits.{name}",
                "this host cannot enforce it: no control group with that controller can be made",
                hint="run km as root or in a systemd user session with delegated controllers",
            )


def _host_problem(error: KmError) -> Problem:
    return Problem("spec.runtime.substrate", error.what, hint=error.hint)


def _leftovers(config: Config) -> Iterator[Leftover]:
    supervisors = pods_of(config)
    for pid, sandbox_id in _processes(config):
        yield Leftover(sandbox_id, POD if pid in supervisors else PROCESS, str(pid))
    prefix = limits.group_prefix(config)
    for name in groups_with_prefix(prefix):
        sandbox_id = name.removeprefix(prefix).removesuffix("-gate")
        if is_sandbox_id(sandbox_id):
            yield Leftover(sandbox_id, GROUP, name)
    with contextlib.suppress(OSError):
        for entry in sorted(config.runtime_dir.iterdir()):
            if is_sandbox_id(entry.name) and entry.is_dir() and _is_ours(config, entry.name):
                yield Leftover(entry.name, RUNTIME, str(entry))


def _processes(config: Config) -> Iterator[tuple[int, str]]:
    """Yield supervisors, gates and sandboxes of this home, with their sandbox's id."""
    found = pods_of(config)
    yield from found.items()
    for pid in own_processes():
        environment = environment_of(pid)
        sandbox_id = environment.get("KM_POD", "")
        if pid not in found and is_sandbox_id(sandbox_id) and environment.get("KM_HOME") == str(config.home):
            yield pid, sandbox_id


def _is_ours(config: Config, sandbox_id: str) -> bool:
    """Say whether a runtime directory is a local sandbox's, or nobody's any more."""
    import json

    path = config.sandbox_dir(sandbox_id) / "plan.json"
    try:
        return SandboxPlan.from_data(json.loads(path.read_text(encoding="utf-8"))).substrate == NAME
    except FileNotFoundError:
        return True
    except (OSError, ValueError, KmError):
        return False
