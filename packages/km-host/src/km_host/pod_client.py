"""Starting, asking and ending pod supervisors, from a substrate's point of view."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from km_core.control.rpc import ControlClient
from km_core.errors import ControlUnavailableError, ProvisionError, from_dict
from km_core.types import is_sandbox_id
from km_host.pod_inputs import PodInputs
from km_host.processes import command_of, environment_of, own_processes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from km_core.config import Config
    from km_core.control.substrate import Box

POD_COMMAND = (sys.executable, "-P", "-m", "km_core.sidecars.runner", "pod")
KEPT_VARIABLES = (
    "PATH",
    "LANG",
    "LC_ALL",
    "PYTHONPATH",
    "XDG_RUNTIME_DIR",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "KM_CONFIG_PATH",
    "KM_BLOCK_PLUGINS",
)
"""Variables of the caller that a long-running process inherits; nothing that may hold a credential."""
SOCKET, LOCK, EXEC_SOCKET = "pod.sock", "pod.lock", "exec.sock"


def spawn_pod(
    box: Box, *, alias: str = "", command: Sequence[str] = POD_COMMAND, timeout_s: float = 60.0
) -> None:
    """
    Start the supervisor of a sandbox and wait until its gate is ready.

    A supervisor that runs already is left as it is.

    Raises:
        KmError: it could not be started; what it said.
    """
    if pod_is_alive(box.runtime_dir):
        return
    try:
        for directory in (box.runtime_dir, box.audit_dir, box.state_dir / "gate", box.state_dir / "logs"):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ProvisionError(
            "the sandbox's directories cannot be made",
            where=str(error.filename or box.state_dir),
            why=error.strerror or type(error).__name__,
            hint="destroy the sandbox and create it again",
        ) from error
    inputs = PodInputs(
        id=box.id,
        config=box.config,
        state_dir=box.state_dir,
        runtime_dir=box.runtime_dir,
        audit_dir=box.audit_dir,
        control_socket=box.control_socket,
        token=box.token,
        alias=alias,
    )
    log = box.state_dir / "logs" / "pod.log"
    with os.fdopen(
        os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600), "ab"
    ) as errors:
        process = subprocess.Popen(
            [*command, box.id],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd="/",
            env=child_environment(box.config),
            start_new_session=True,
        )
    with process:
        answer = _converse(process, inputs.to_line(), timeout_s)
    if answer.get("ready") is not True:
        if "error" in answer:
            raise from_dict(answer["error"])
        raise ProvisionError("the supervisor does not start", where=box.id, hint=f"see {log}")


def child_environment(config: Config) -> dict[str, str]:
    """Return the environment of a long-running process of *config*'s home."""
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return kept | {"KM_HOME": str(config.home), "KM_RUNTIME_DIR": str(config.runtime_dir)}


def _converse(process: subprocess.Popen[bytes], line: bytes, timeout_s: float) -> dict[str, Any]:
    """Hand *line* over and read the answer; the process goes into the background before it answers."""
    if process.stdin is None or process.stdout is None:  # pragma: no cover - both are pipes
        raise ProvisionError("the supervisor has no pipes")
    with contextlib.suppress(BrokenPipeError):
        process.stdin.write(line)
        process.stdin.flush()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()
    answer = b""
    deadline = time.monotonic() + timeout_s
    while b"\n" not in answer:
        readable, _, _ = select.select([process.stdout], [], [], max(deadline - time.monotonic(), 0))
        chunk = os.read(process.stdout.fileno(), 65536) if readable else b""
        if not chunk:
            break
        answer += chunk
    try:
        message = json.loads(answer.partition(b"\n")[0] or b"{}")
    except ValueError:
        message = {}
    return message if isinstance(message, dict) else {}


def call_pod(
    runtime_dir: Path, op: str, args: dict[str, Any] | None = None, *, timeout_s: float = 30.0
) -> Any:
    """
    Ask a supervisor.

    Raises:
        ControlUnavailableError: nobody answers.
        KmError: what it answered.
    """
    with ControlClient(runtime_dir / SOCKET, timeout_s=timeout_s) as client:
        return client.call(op, **(args or {}))


def pod_is_alive(runtime_dir: Path) -> bool:
    """Say whether a supervisor holds the sandbox's lock."""
    try:
        descriptor = os.open(runtime_dir / LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def end_pod(box: Box, *, timeout_s: float = 10.0, grace_s: float = 10.0) -> None:
    """
    End a sandbox's supervisor and with it everything it holds; one that is gone is fine.

    Args:
        box: the sandbox.
        timeout_s: how long the workload may take to end when asked.
        grace_s: how much longer the supervisor may take before it is killed.

    Raises:
        ProvisionError: it cannot be ended.
    """
    if not pod_is_alive(box.runtime_dir):
        _end_unlocked(box, grace_s)
        return
    with contextlib.suppress(ControlUnavailableError):
        call_pod(box.runtime_dir, "stop", {"timeout_s": timeout_s}, timeout_s=timeout_s + grace_s)
    if _gone(box.runtime_dir, grace_s):
        return
    for pid in pods_of(box.config, box.id):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if not _gone(box.runtime_dir, grace_s):
        raise ProvisionError("the sandbox's supervisor does not end", where=box.id, hint="run km reconcile")


def _end_unlocked(box: Box, timeout_s: float) -> None:
    """End supervisors that were just started: they hold no lock yet, and go on in a child of their own."""
    deadline = time.monotonic() + timeout_s
    while pids := pods_of(box.config, box.id):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise ProvisionError(
                "the sandbox's supervisor does not end", where=box.id, hint="run km reconcile"
            )
        time.sleep(0.01)


def _gone(runtime_dir: Path, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while pod_is_alive(runtime_dir):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def pods_of(config: Config, sandbox_id: str = "") -> dict[int, str]:
    """Return the running supervisors of this ``KM_HOME`` as pid to sandbox id; only *sandbox_id*'s when given."""
    found = {}
    for pid in own_processes():
        words = command_of(pid)
        name = words[-1] if len(words) >= 2 and words[-2] == "pod" else ""
        if is_sandbox_id(name) and sandbox_id in {"", name} and pid != os.getpid():
            home = environment_of(pid).get("KM_HOME")
            if home is not None and Path(home) == config.home:
                found[pid] = name
    return found
