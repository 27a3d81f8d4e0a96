"""
What a pod supervisor asks of a substrate: the interface behind the entry-point group ``km.pods``.

A substrate's distribution declares ``NAME = "module:factory"`` in that group, where NAME is the plan's
substrate and ``factory(PodContext) -> PodBackend``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from attrs import frozen

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from km_core.config import Config
    from km_core.plan import SandboxPlan
    from km_host.listeners import Listeners

GROUP = "km.pods"


@frozen
class PodContext:
    """
    What a backend may know of its sandbox.

    Attributes:
        state_dir: ``KM_HOME/sandboxes/ID``.
        runtime_dir: the sandbox's socket directory (0700).
        audit_dir: ``KM_HOME/audit/ID``.
        log_dir: ``state_dir/logs``, where ``gate.log`` and ``init.log`` go.
    """

    id: str
    plan: SandboxPlan
    config: Config
    state_dir: Path
    runtime_dir: Path
    audit_dir: Path

    @property
    def log_dir(self) -> Path:
        """The directory of the sandbox's logs."""
        return self.state_dir / "logs"


class GateHandle(Protocol):
    """A gate that was started and has its bootstrap message."""

    @property
    def channel(self) -> socket.socket:
        """The stream the gate answers on with JSON lines; the pod owns it from here and closes it."""

    @property
    def pid(self) -> int:
        """The gate's process id on the host, 0 when it is not known."""

    async def wait(self) -> int:
        """Wait until the gate has ended; returns its exit code, -N for signal N."""

    def kill(self) -> None:
        """End it at once; a gate that has ended is fine."""


class PodBackend(Protocol):
    """
    One sandbox on its substrate, seen from its supervisor.

    The supervisor calls `open` once, `spawn_gate` at the beginning and again whenever a gate ended,
    `start` at most once, and `close` at the end whatever happened before.  Every method raises
    `ProvisionError` with a remedy when it cannot do what is asked.  What a backend makes must die with
    the supervisor's process, or be found by the substrate's ``leftovers``.
    """

    async def open(self) -> Listeners:
        """Make cgroup, namespace and listeners; the backend keeps nothing of the sockets itself."""

    async def spawn_gate(self, bootstrap: dict[str, Any], listeners: Listeners) -> GateHandle:
        """
        Start a gate and send it *bootstrap* with the listeners (`km_host.bootstrap.send_bootstrap`).

        The backend may rewrite paths that the gate sees elsewhere (a container).
        """

    async def start(self, ca_pem: str) -> None:
        """Start the workload's first process, with *ca_pem* among the CAs it trusts."""

    async def wait(self) -> int:
        """Wait until the workload's first process has ended; returns its exit code."""

    async def freeze(self) -> None:
        """Freeze the workload; `ProvisionError` where there is no freezer."""

    async def thaw(self) -> None:
        """Thaw the workload."""

    async def kill(self, timeout_s: float = 0.0) -> None:
        """End every process of the workload: ask, wait up to *timeout_s*, then make it so."""

    async def close(self) -> None:
        """Remove everything of the workload from the host, files excepted; safe to call twice."""

    def describe(self) -> dict[str, Any]:
        """Return ``{"limits": str, "freezer": bool, …}`` as plain JSON data."""


@runtime_checkable
class ExecBackend(Protocol):
    """A backend whose supervisor serves ``exec.sock`` (`km_host.exec_channel`)."""

    async def serve_exec(self, connection: socket.socket) -> None:
        """Serve one client's connection (non-blocking) until its command has ended."""
