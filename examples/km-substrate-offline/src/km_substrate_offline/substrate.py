"""The substrate ``offline``: sandboxes on Linux that have no network at all."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.control.substrate import Leftover
from km_core.errors import GuardError, ProvisionError
from km_core.lifecycle.files import make_private_dir
from km_core.lifecycle.tree import walk
from km_core.types import Problem, is_sandbox_id

from km_substrate_offline import kernel, rootfs
from km_substrate_offline.processes import (
    EXEC_LOCK,
    KEEPER,
    LOCK,
    STATE,
    First,
    first_of,
    home_mark,
    mark_started,
    processes_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from km_core.config import Config
    from km_core.control.substrate import Box
    from km_core.lifecycle.tree import Entry
    from km_core.plan import SandboxPlan

NAME = "offline"
MODES = frozenset({"proxy", "ebpf", "both"})
"""Without a network the promise of each of them is kept."""
PROCESS, RUNTIME = "process", "runtime directory"
FIRST_HOST_ID = 0x60000000
"""Root's sandboxes run as this uid and gid plus 28 bits of their id; keep that range free of accounts."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "PYTHONPATH")
_PREPARE_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 6.0


class OfflineSubstrate:
    """Implements `km_core.control.substrate.Substrate`."""

    name = NAME
    capabilities = frozenset({"exec", "stop"})

    def problems(self, plan: SandboxPlan, config: Config) -> Sequence[Problem]:  # noqa: ARG002 - the protocol's
        """Say what cannot be enforced for the plan, and what this host lacks."""
        return (*_wishes(plan), *_host_problems(plan))

    def prepare(self, box: Box) -> None:
        """Make namespaces, root and first process; no command runs in them yet."""
        if first_of(box.runtime_dir) is not None:
            return
        first = next(iter(self.problems(box.plan, box.config)), None)
        if first is not None:
            raise ProvisionError(first.message, where=first.path, hint=first.hint)
        if not box.token:
            raise ProvisionError("preparing a sandbox needs a fresh token", where=box.id)
        for directory in (box.runtime_dir, box.state_dir, box.state_dir / "logs"):
            make_private_dir(directory)
        _own_files(box)
        _start_keeper(box)

    def start(self, box: Box) -> None:
        """Let commands in."""
        _alive(box)
        mark_started(box.runtime_dir)

    def stop(self, box: Box) -> None:
        """End every process: politely, then not."""
        first = first_of(box.runtime_dir)
        if first is not None:
            _end(first.pid, signal.SIGTERM)
        self._kill(box)

    def pause(self, box: Box) -> None:
        """Refuse: nothing here freezes a workload."""
        raise GuardError("this substrate cannot pause", where=box.id, hint="use km stop")

    def resume(self, box: Box) -> None:
        """Prepare and start a stopped sandbox."""
        self.prepare(box)
        self.start(box)

    def destroy(self, box: Box) -> None:
        """Remove every trace but the state directory."""
        first = first_of(box.runtime_dir)
        if first is not None:
            _end(first.pid, signal.SIGKILL)
        self._kill(box)
        for name in (STATE, LOCK, EXEC_LOCK):
            (box.runtime_dir / name).unlink(missing_ok=True)
        # A create that was killed while it wrote its state leaves the file under its temporary name.
        for half in box.runtime_dir.glob(f".{STATE}.*"):
            half.unlink(missing_ok=True)
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
        """Run a command as the sandbox's user; there is no other, and no terminal."""
        if root:
            raise GuardError("this substrate has no root user", where=box.id, hint="leave --root out")
        if tty:
            raise GuardError("this substrate has no terminal", where=box.id, hint="add --no-tty")
        first = _alive(box)
        if not first.started:
            raise ProvisionError("the sandbox has not started", where=box.id)
        request = {
            "pid": first.pid,
            "argv": list(argv),
            "env": _environment(box) | dict(env),
            "cwd": cwd,
            "processes": box.plan.limits.pids or 0,
        }
        return _run(box, json.dumps(request).encode())

    def status(self, box: Box) -> dict[str, Any]:
        """Describe what runs."""
        first = first_of(box.runtime_dir)
        return {
            "running": first is not None and first.started,
            "enforcement": "no network" if first is not None else "",
            "limits": "partial (rlimit)" if first is not None else "none",
            "gate": {},
            "pod": {"pid": first.pid} if first is not None else {},
        }

    def leftovers(self, config: Config) -> Sequence[Leftover]:
        """List processes and runtime directories of this home."""
        found = [Leftover(sandbox_id, PROCESS, str(pid)) for pid, sandbox_id in processes_of(config)]
        with contextlib.suppress(OSError):
            found += [
                Leftover(entry.name, RUNTIME, str(entry))
                for entry in sorted(config.runtime_dir.iterdir())
                if is_sandbox_id(entry.name) and any((entry / name).exists() for name in (STATE, EXEC_LOCK))
            ]
        return tuple(found)

    def remove_leftover(self, config: Config, leftover: Leftover) -> None:
        """Remove one; what has gone in the meantime is fine."""
        if leftover.what == PROCESS:
            # The number may be another process's by now.
            if (int(leftover.detail), leftover.sandbox_id) in set(processes_of(config)):
                _end(int(leftover.detail), signal.SIGKILL)
        elif leftover.what == RUNTIME and is_sandbox_id(leftover.sandbox_id):
            shutil.rmtree(config.sandbox_runtime_dir(leftover.sandbox_id), ignore_errors=True)

    def _kill(self, box: Box) -> None:
        for pid, sandbox_id in processes_of(box.config):
            if sandbox_id == box.id:
                _end(pid, signal.SIGKILL)
        (box.runtime_dir / STATE).unlink(missing_ok=True)


def _wishes(plan: SandboxPlan) -> Iterator[Problem]:
    """Yield what the plan allows and a sandbox without a network cannot give or cannot hold."""
    network = plan.network
    if network.enforcement not in MODES:
        yield Problem("spec.network.enforcement", f"{network.enforcement} is not known", hint="use proxy")
    if network.hosts or network.addresses or network.groups:
        yield Problem("spec.network.egress", "this substrate reaches nothing", hint="leave the lists empty")
    if plan.git.repos:
        yield Problem("spec.sourceAccess.github.allowedRepos", "this substrate reaches no repository")
    if plan.budget.ai_limit_nusd is not None:
        yield Problem("spec.budget.ai", "this substrate reaches no model", hint="leave it out")
    if plan.budget.compute_limit_nusd is not None:
        yield Problem("spec.budget.compute", "nothing here meters compute", hint="leave it out")
    if plan.workload.privileged:
        yield Problem("spec.execution.privileged", "this substrate has no root user")
    for name in plan.limits.explicit:
        yield Problem(f"limits.{name}", "this substrate cannot enforce it", hint="leave it out")


def _host_problems(plan: SandboxPlan) -> Iterator[Problem]:
    where = "spec.runtime.substrate"
    if not kernel.supported():
        yield Problem(where, "this system is not Linux on x86_64 or aarch64")
        return
    for name in ("user/max_user_namespaces", "user/max_net_namespaces", "kernel/unprivileged_userns_clone"):
        with contextlib.suppress(OSError):
            if Path("/proc/sys", name).read_text(encoding="ascii").strip() == "0":
                yield Problem(where, f"/proc/sys/{name} is 0", hint="ask the host's administrator")
    shell = Path(plan.workload.shell)
    if not any(shell.is_relative_to(place) for place in ("/bin", "/usr")) or not shell.exists():
        yield Problem("spec.execution.shell", f"the host has no {shell} to show inside", hint="use /bin/sh")


def _alive(box: Box) -> First:
    first = first_of(box.runtime_dir)
    if first is None:
        raise ProvisionError("nothing of the sandbox runs", where=box.id, hint=f"km resume {box.id}")
    return first


def _host_id(sandbox_id: str) -> int:
    return FIRST_HOST_ID + (int(sandbox_id.rpartition("-")[2], 16) & 0x0FFFFFFF)


def _own_files(box: Box) -> None:
    """Make the sandbox's directories; root's sandboxes own theirs, everybody else's are the operator's."""
    owner = _host_id(box.id) if os.geteuid() == 0 else os.geteuid()

    def give(entry: Entry) -> None:
        os.chown(entry.name, owner, owner, dir_fd=entry.directory, follow_symlinks=False)

    for directory in (box.state_dir / "workspace", box.state_dir / "home"):
        directory.mkdir(mode=0o700, exist_ok=True)
        if os.geteuid() == 0 and directory.lstat().st_uid != owner:
            walk(directory, give)
            os.chown(directory, owner, owner, follow_symlinks=False)


def _start_keeper(box: Box) -> None:
    request = {
        "runtime_dir": str(box.runtime_dir),
        "workspace": str(box.state_dir / "workspace"),
        "home": str(box.state_dir / "home"),
        "host_id": _host_id(box.id),
    }
    credentials = {"socket": str(box.control_socket), "token": box.token}
    log = box.state_dir / "logs" / "keeper.log"
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(log, flags, 0o600), "ab") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", KEEPER, home_mark(box.config), box.id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
            start_new_session=True,
        )
    with process:
        answer = _converse(process, request, credentials)
    if "pid" not in answer:
        raise ProvisionError(
            "the sandbox's namespaces cannot be made",
            where=box.id,
            why=str(answer.get("error", "its keeper ended")),
            hint=f"see {log}",
        )


def _converse(process: subprocess.Popen[bytes], *lines: Mapping[str, Any]) -> dict[str, Any]:
    """Hand the first line over, read the answer, hand the rest over; the process detaches by itself."""
    if process.stdin is None or process.stdout is None:  # pragma: no cover - both are pipes
        return {}
    answer = b""
    deadline = time.monotonic() + _PREPARE_TIMEOUT_S
    with contextlib.suppress(BrokenPipeError):
        for index, line in enumerate(lines):
            process.stdin.write(json.dumps(line).encode() + b"\n")
            process.stdin.flush()
            while index == 0 and b"\n" not in answer:
                left = max(deadline - time.monotonic(), 0)
                readable, _, _ = select.select([process.stdout], [], [], left)
                chunk = os.read(process.stdout.fileno(), 65536) if readable else b""
                if not chunk:
                    return {}
                answer += chunk
    message = json.loads(answer or b"{}")
    return message if isinstance(message, dict) else {}


def _run(box: Box, request: bytes) -> int:
    """Run the process that enters the sandbox; a lock says meanwhile that somebody works in it."""
    lock = os.open(box.runtime_dir / EXEC_LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        read_end, write_end = os.pipe()
        try:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "km_substrate_offline.enter", str(read_end)],
                env={name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ},
                pass_fds=(read_end,),
            )
        finally:
            os.close(read_end)
        with process:
            try:
                with os.fdopen(write_end, "wb") as sink, contextlib.suppress(BrokenPipeError):
                    sink.write(request)
                return process.wait()
            except BaseException:
                process.kill()
                raise
    finally:
        os.utime(lock)
        os.close(lock)


def _environment(box: Box) -> dict[str, str]:
    return {
        "HOME": rootfs.HOME,
        "LANG": "C.UTF-8",
        "LOGNAME": "sandbox",
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "SHELL": box.plan.workload.shell,
        "USER": "sandbox",
        "KM_SANDBOX_ID": box.id,
    }


def _end(pid: int, number: signal.Signals) -> None:
    """Send a signal and wait for the end, for a few seconds."""
    try:
        descriptor = os.pidfd_open(pid)
    except (ProcessLookupError, OSError):
        return
    try:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            signal.pidfd_send_signal(descriptor, number)
            select.select([descriptor], [], [], _STOP_TIMEOUT_S)
    finally:
        os.close(descriptor)
