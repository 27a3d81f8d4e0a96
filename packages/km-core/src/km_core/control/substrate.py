"""What a substrate is: the interface `km_substrates` offers implement."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from attrs import field, frozen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from km_core.config import Config
    from km_core.plan import SandboxPlan
    from km_core.types import Problem


@frozen
class Box:
    """
    One sandbox as its substrate sees it: an id, its plan and where its files are.

    Attributes:
        state_dir: ``KM_HOME/sandboxes/ID`` (0700): ``plan.json``, ``workspace/``, ``home/``,
            ``gate/``, ``logs/``.
        runtime_dir: short directory for the sandbox's sockets (0700).
        audit_dir: where the sandbox's audit chains are.
        control_socket: the sandbox's own socket of the control plane.
        token: credential for that socket; touches this sandbox only.
    """

    id: str
    plan: SandboxPlan
    config: Config
    state_dir: Path
    runtime_dir: Path
    audit_dir: Path
    control_socket: Path
    token: str = field(default="", repr=False)


@frozen
class Leftover:
    """Something of a sandbox found on the host: *remove* it when no record owns it."""

    sandbox_id: str
    what: str
    detail: str = ""


class Substrate(Protocol):
    """
    A place where sandboxes run.

    Every method is idempotent and may be called again after a crash at any point.  All raise
    `ProvisionError` with a remedy when the host cannot do what is asked.
    """

    @property
    def name(self) -> str:
        """The word in profiles and on the command line."""

    @property
    def capabilities(self) -> frozenset[str]:
        """Of ``exec``, ``tty``, ``stop``, ``pause``, ``limits``, ``root`` (commands as root inside)."""

    def problems(self, plan: SandboxPlan, config: Config) -> Sequence[Problem]:
        """Say what this host cannot do for the plan; empty means it can all be enforced."""

    def prepare(self, box: Box) -> None:
        """Make namespace, listeners, gate and cgroup; nothing of the workload runs yet."""

    def start(self, box: Box) -> None:
        """Start the workload's first process; enforcement is already up."""

    def stop(self, box: Box) -> None:
        """End every process of the sandbox; its files stay."""

    def pause(self, box: Box) -> None:
        """Freeze the workload."""

    def resume(self, box: Box) -> None:
        """Thaw a frozen workload (a stopped one is prepared and started again)."""

    def destroy(self, box: Box) -> None:
        """Remove everything of the sandbox from the host, except `Box.state_dir`."""

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
        """Run a command inside with this process's stdin, stdout and stderr; return its exit code."""

    def status(self, box: Box) -> dict[str, Any]:
        """
        Describe what runs, as plain JSON data.

        Keys: ``running`` (bool), ``enforcement`` (``tproxy``, ``redirect``), ``limits``
        (``enforced``, ``partial (rlimit)``, ``none``), ``gate`` {pid, restarts, lease}, ``pod`` {pid}.
        """

    def leftovers(self, config: Config) -> Sequence[Leftover]:
        """List what is on the host of any sandbox of this ``KM_HOME``."""

    def remove_leftover(self, config: Config, leftover: Leftover) -> None:
        """Remove one of `leftovers`."""
