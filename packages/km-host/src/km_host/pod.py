"""
The pod supervisor: ``km-sidecar pod ID``, one small process for each sandbox.

Parent of the gate and of the sandbox's first process, holder of the listeners.  It starts nothing on its
own: `Substrate.prepare` starts it with the inputs on stdin, the answer ``{"ready": true}`` on stdout
means that namespace, listeners and gate stand; the workload starts on ``start``.  When it dies, gate and
sandbox die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import sys
import time
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from km_core.errors import GuardError, KmError, ProvisionError
from km_core.plan import SandboxPlan
from km_host.backend import GROUP, ExecBackend, GateHandle, PodBackend, PodContext
from km_host.fds import close_other_descriptors
from km_host.gatekeeper import GATE_TIMING, GateTiming
from km_host.lifeline import ENSURE_COMMAND, LIFELINE_TIMING, LifelineTiming
from km_host.listeners import Listeners
from km_host.pod_client import LOCK
from km_host.pod_inputs import MAX_LINE, PodInputs
from km_host.pod_log import log
from km_host.supervisor import Pod

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["ExecBackend", "GateHandle", "Listeners", "PodBackend", "PodContext", "load_backend", "main"]


def load_backend(context: PodContext) -> PodBackend:
    """
    Return the backend of the plan's substrate (entry-point group ``km.pods``).

    Raises:
        ProvisionError: no installed distribution has one.
    """
    name = context.plan.substrate
    found = [entry for entry in entry_points(group=GROUP) if entry.name == name]
    if len({entry.value for entry in found}) != 1:
        what = "two distributions offer" if found else "no installed distribution offers"
        raise ProvisionError(f"{what} a supervisor for the substrate {name!r}")
    module, _, function = found[0].value.partition(":")
    factory: Callable[[PodContext], PodBackend] = getattr(import_module(module), function)
    return factory(context)


def main(
    arguments: list[str],
    *,
    load: Callable[[PodContext], PodBackend] = load_backend,
    gate_timing: GateTiming = GATE_TIMING,
    lifeline_timing: LifelineTiming = LIFELINE_TIMING,
    ensure: tuple[str, ...] = ENSURE_COMMAND,
) -> int:
    """Read the inputs, go into the background, supervise; the answer goes to stdout as one line of JSON."""
    if len(arguments) != 1:
        sys.stderr.write("usage: km-sidecar pod ID\n")
        return 2
    os.umask(0o077)
    line = sys.stdin.buffer.readline(MAX_LINE)
    close_other_descriptors()
    if os.fork():
        os._exit(0)
    os.setsid()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        inputs = PodInputs.from_line(line)
        plan = SandboxPlan.from_data(json.loads((inputs.state_dir / "plan.json").read_text(encoding="utf-8")))
        if inputs.id != arguments[0]:
            raise ProvisionError("the supervisor's inputs are another sandbox's", where=inputs.id)
        context = PodContext(
            inputs.id, plan, inputs.config, inputs.state_dir, inputs.runtime_dir, inputs.audit_dir
        )
        _lock(inputs.runtime_dir / LOCK)

        async def supervise() -> int:
            pod = Pod(
                inputs,
                context,
                load(context),
                gate_timing=gate_timing,
                lifeline_timing=lifeline_timing,
                ensure=ensure,
            )
            return await pod.run(lambda: _answer({"ready": True, "pid": os.getpid()}))

        return asyncio.run(supervise())
    except KmError as error:
        log("pod_failed", **error.to_dict())
        _answer({"error": error.to_dict()})
    except Exception as error:  # noqa: BLE001 - the last place: it is logged and told, then the process ends
        log("pod_failed", why=repr(error))
        _answer(
            {"error": ProvisionError("the supervisor failed", why=repr(error), hint="see pod.log").to_dict()}
        )
    return 1


def _answer(message: dict[str, Any]) -> None:
    """Tell who started us, once; then stdin and stdout lead nowhere."""
    with contextlib.suppress(OSError):
        os.write(1, json.dumps(message).encode() + b"\n")
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    os.dup2(null, 1)
    os.close(null)


_LOCK_TRIES = 10
_LOCK_PAUSE_S = 0.02


def _lock(path: Path) -> None:
    """Take the sandbox's lock, held until this process has ended: who gets it next finds nothing of us."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    # kmd and clients look whether the lock is free by taking it shared for a moment.
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_S)
    else:
        os.close(descriptor)
        raise GuardError("the sandbox has a supervisor already", where=str(path))
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
