"""The Docker substrate: what `km` asks of it, mostly passed on to the sandbox's supervisor."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import struct
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

from km_core.control.substrate import Leftover
from km_core.errors import ControlUnavailableError, KmError, ProvisionError
from km_host.pod_client import (
    EXEC_SOCKET,
    LOCK,
    SOCKET,
    call_pod,
    end_pod,
    pod_is_alive,
    pods_of,
    spawn_pod,
)
from km_substrate_docker import image
from km_substrate_docker.engine import connect, default_host, find, remove, role_of, socket_path
from km_substrate_docker.hostfiles import SANDBOX_USER, Owners

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from docker import DockerClient
    from docker.models.containers import Container

    from km_core.config import Config
    from km_core.control.substrate import Box
    from km_core.plan import SandboxPlan
    from km_core.types import Problem

_START_S = 90.0
_STOP_S = 10.0
CONTAINERS = "containers"
"""What leftovers of Docker sandboxes are."""


@frozen
class DockerSubstrate:
    """Sandboxes as containers of the Docker engine on this machine."""

    @property
    def name(self) -> str:
        """The word in profiles and on the command line."""
        return "docker"

    @property
    def capabilities(self) -> frozenset[str]:
        """Everything a substrate can be asked, root commands included."""
        return frozenset({"exec", "tty", "stop", "pause", "limits", "root"})

    def problems(self, plan: SandboxPlan, config: Config) -> Sequence[Problem]:
        """Say what this engine cannot do for the plan (`km_substrate_docker.preflight`)."""
        from km_substrate_docker.preflight import problems

        return problems(plan, config)

    def prepare(self, box: Box) -> None:
        """
        Start the supervisor, and with it namespaces, listeners and gate.

        Raises:
            ProvisionError: an image is missing, or a part cannot be started; nothing of it is left.
        """
        if pod_is_alive(box.runtime_dir):
            return
        host = default_host()
        with connect(host) as client:
            image.store(image.resolve(client, host, box.config), box.state_dir)
        try:
            spawn_pod(box, timeout_s=_START_S)
        except KmError:
            # The supervisor clears up after itself; this is for one that could not.
            self._clear(box)
            raise

    def start(self, box: Box) -> None:
        """Start the workload's container; a running one is left alone."""
        call_pod(box.runtime_dir, "start", timeout_s=_START_S)

    def stop(self, box: Box) -> None:
        """End the supervisor and every container; files stay."""
        end_pod(box, timeout_s=_STOP_S, grace_s=30.0)
        self._clear(box)

    def pause(self, box: Box) -> None:
        """Freeze the workload's container."""
        call_pod(box.runtime_dir, "freeze")

    def resume(self, box: Box) -> None:
        """Thaw a frozen sandbox; a stopped one is prepared and started again."""
        if pod_is_alive(box.runtime_dir):
            call_pod(box.runtime_dir, "thaw")
            return
        self.prepare(box)
        self.start(box)

    def destroy(self, box: Box) -> None:
        """Remove supervisor, containers and socket directories, and give the files back to the operator."""
        self.stop(box)
        if os.geteuid() != 0:
            from km_substrate_docker.reclaim import reclaim

            reclaim(box)
        for name in ("gate", "handover"):
            shutil.rmtree(box.runtime_dir / name, ignore_errors=True)
        # The control plane's socket in the same directory is its own to remove.
        for name in (SOCKET, f".{SOCKET}", EXEC_SOCKET, LOCK):
            (box.runtime_dir / name).unlink(missing_ok=True)
        (box.state_dir / image.FILE).unlink(missing_ok=True)

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
        """
        Run a command inside with this process's stdin, stdout and stderr; return its exit code.

        Raises:
            ProvisionError: the sandbox does not run, or is frozen.
        """
        from km_substrate_docker.execute import execute

        host = self._host(box)
        uid, gid = Owners.here().sandbox
        user = "0:0" if root else f"{uid}:{gid}"
        with self._in_use(box) as place, connect(host) as client:
            main = self._main(client, box)
            return execute(
                client,
                host,
                str(main.id),
                argv,
                env=_login(root=root, tty=tty) | dict(env),
                cwd=cwd,
                user=user,
                tty=tty,
                place=place,
            )

    def status(self, box: Box) -> dict[str, Any]:
        """Describe what runs, as the supervisor sees it."""
        stopped: dict[str, Any] = {"running": False, "enforcement": "", "limits": "", "gate": {}, "pod": {}}
        if not pod_is_alive(box.runtime_dir):
            return stopped
        try:
            seen = call_pod(box.runtime_dir, "status")
        except ControlUnavailableError:
            return stopped
        gate = seen.get("gate") or {}
        return {
            "running": bool(seen.get("running")),
            "state": seen.get("state", ""),
            "enforcement": seen.get("enforcement", ""),
            "limits": seen.get("limits", ""),
            "reason": seen.get("reason", ""),
            "gate": {key: gate.get(key) for key in ("pid", "restarts", "state", "lease")},
            "pod": {"pid": seen.get("pod_pid")},
            "containers": seen.get("backend") or {},
        }

    def leftovers(self, config: Config) -> Sequence[Leftover]:
        """List this home's containers, one entry for each sandbox."""
        found: dict[str, list[str]] = {}
        for host in _engines(config):
            with contextlib.suppress(ProvisionError), connect(host) as client:
                for container in find(client, config.home):
                    found.setdefault(_sandbox_of(container), []).append(role_of(container))
        return [
            Leftover(sandbox_id, CONTAINERS, ", ".join(roles)) for sandbox_id, roles in sorted(found.items())
        ]

    def remove_leftover(self, config: Config, leftover: Leftover) -> None:
        """Remove a sandbox's containers, its supervisor first so that it makes no new ones."""
        if leftover.what != CONTAINERS:
            return
        for pid in pods_of(config, leftover.sandbox_id):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for host in _engines(config):
            with contextlib.suppress(ProvisionError), connect(host) as client:
                for container in find(client, config.home, leftover.sandbox_id):
                    remove(container)

    def _host(self, box: Box) -> str:
        """Return the engine a sandbox is on."""
        return image.load(box.state_dir).engine

    def _clear(self, box: Box) -> None:
        try:
            host = self._host(box)
        except ProvisionError:
            # Never prepared: nothing was made.
            return
        with connect(host) as client:
            for container in find(client, box.config.home, box.id):
                remove(container)

    def _main(self, client: DockerClient, box: Box) -> Container:
        for container in find(client, box.config.home, box.id, "main"):
            if container.status == "running":
                return container
            if container.status == "paused":
                raise ProvisionError("the sandbox is paused", where=box.id, hint=f"km resume {box.id}")
        raise ProvisionError("the sandbox does not run", where=box.id, hint=f"km resume {box.id}")

    @contextlib.contextmanager
    def _in_use(self, box: Box) -> Iterator[socket.socket]:
        """Hold a place at the supervisor, so that it knows of the command and we know that it is there."""
        with socket.socket(socket.AF_UNIX) as place:
            try:
                # Not a timeout of Python's, which fails at once when others wait to be accepted too.
                place.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 5, 0))
                place.connect(str(box.runtime_dir / EXEC_SOCKET))
            except OSError as error:
                raise ProvisionError(
                    "the sandbox has no supervisor, so nothing runs inside",
                    where=box.id,
                    why=str(error),
                    hint=f"km resume {box.id}",
                ) from error
            yield place


def _login(*, root: bool, tty: bool) -> dict[str, str]:
    """Return what a login would set; nothing else of the operator's environment goes inside."""
    user, home = ("root", "/root") if root else (SANDBOX_USER, f"/home/{SANDBOX_USER}")
    env = {"HOME": home, "USER": user, "LOGNAME": user, "LANG": "C.UTF-8"}
    return env | ({"TERM": os.environ.get("TERM", "xterm")} if tty else {})


def _sandbox_of(container: Container) -> str:
    from km_substrate_docker.engine import LABEL_SANDBOX

    return str((container.labels or {}).get(LABEL_SANDBOX, ""))


def _engines(config: Config) -> list[str]:
    """Return the engines that may hold something of this home: today's, and those its sandboxes name."""
    hosts = {default_host()}
    for path in (config.home / "sandboxes").glob(f"*/{image.FILE}"):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            hosts.add(str(json.loads(path.read_text(encoding="utf-8"))["engine"]))
    reachable = []
    for host in sorted(hosts):
        # An engine that does not run holds nothing that runs, and asking must not cost an import.
        with contextlib.suppress(ProvisionError):
            if Path(socket_path(host)).is_socket():
                reachable.append(host)
    return reachable
