"""
A Docker sandbox as its pod supervisor sees it (`km_host.backend.PodBackend`).

Order: the pause container owns the namespaces, a helper makes the listeners in them and hands them to
the supervisor, the gate gets them from the supervisor, and only then is the workload's container made.

What dies when the supervisor does, however it does: the gate, by the end of its channel; and the pause
container, by the end of its standard input, and with it, as process 1 of their process namespace, every
process of the workload, commands of the engine's exec included.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import define, field, frozen

from km_core.errors import ProvisionError
from km_host import trust
from km_host.bootstrap import send_bootstrap
from km_host.inside import frames
from km_host.listeners import receive_listeners
from km_substrate_docker import hostfiles
from km_substrate_docker.containers import Limits, Specs, limit_gaps
from km_substrate_docker.engine import connect, find, remove, translate
from km_substrate_docker.gate_container import GateContainer, last_words
from km_substrate_docker.handover import rendezvous
from km_substrate_docker.hostfiles import Owners, Paths
from km_substrate_docker.image import load
from km_substrate_docker.overlay import overlay
from km_substrate_docker.stream import copy_output, hijack, wait_exit

if TYPE_CHECKING:
    import socket

    from docker import DockerClient
    from docker.models.containers import Container

    from km_host.backend import PodContext
    from km_host.listeners import Listeners
    from km_substrate_docker.image import Images

_HELPER_S = 30.0
_GATE_S = 30.0
_QUIET = 2
"""Processes of a main container in which nothing runs: the shell that holds it and its sleep."""


def make_backend(context: PodContext) -> DockerPod:
    """Return the backend for a sandbox (entry-point group ``km.pods``)."""
    return DockerPod(context, load(context.state_dir))


@frozen
class _StartedGate:
    channel: socket.socket
    pid: int
    container_id: str
    output: socket.socket
    early: bytes


@define
class DockerPod:
    """One sandbox on the engine."""

    context: PodContext
    _images: Images
    _owners: Owners = field(factory=Owners.here)
    _specs: Specs | None = None
    _limits: Limits | None = None
    _gaps: tuple[str, ...] = ()
    _leash: socket.socket | None = None
    _pause_id: str = ""
    _main_id: str = ""

    async def open(self) -> Listeners:
        """Make the namespaces and their listeners; what is left of an earlier run goes first."""
        return await asyncio.to_thread(self._open)

    async def spawn_gate(self, bootstrap: dict[str, Any], listeners: Listeners) -> GateContainer:
        """Start the gate's container and hand it *bootstrap* and the listeners over its own socket."""
        control = Path(str(bootstrap["kmd_socket"]))
        shared = self._paths.gate_runtime / "kmd.sock"
        if not hostfiles.share_socket(control, shared, self._owners.gate[1]):
            raise ProvisionError(
                "the sandbox's control socket cannot be shared with its gate",
                where=str(control),
                hint="is kmd running? km daemon status",
            )
        message = bootstrap | {"kmd_socket": str(shared)}
        started = await asyncio.to_thread(self._spawn_gate, message, listeners)
        log = self.context.log_dir / "gate.log"
        output = asyncio.create_task(copy_output(started.output, started.early, log))
        try:
            pidfd = os.pidfd_open(started.pid)
        except OSError:
            # It has ended already: wait() will say so.
            pidfd = -1
        return GateContainer(
            started.channel, started.pid, pidfd, self._images.engine, started.container_id, output
        )

    async def start(self, ca_pem: str) -> None:
        """Make and start the workload's container, which trusts *ca_pem* beside its image's CAs."""
        await asyncio.to_thread(self._start, ca_pem)

    async def wait(self) -> int:
        """Wait until the workload's container has ended."""
        return await wait_exit(self._images.engine, self._main_id)

    async def freeze(self) -> None:
        """Freeze every process of the workload's container, commands of exec included."""
        await asyncio.to_thread(self._freezer, freeze=True)

    async def thaw(self) -> None:
        """Let the workload's container go on."""
        await asyncio.to_thread(self._freezer, freeze=False)

    async def kill(self, timeout_s: float = 0.0) -> None:
        """Ask every process to end, wait, then remove the container."""
        await asyncio.to_thread(self._kill, timeout_s)

    async def close(self) -> None:
        """Remove every container of the sandbox."""
        await asyncio.to_thread(self._close)

    async def serve_exec(self, connection: socket.socket) -> None:
        """
        Hold a client's place while its command runs.

        Commands go to the engine; this connection tells the supervisor that the sandbox is in use.
        """
        loop = asyncio.get_running_loop()
        while await loop.sock_recv(connection, 64):
            pass

    def describe(self) -> dict[str, Any]:
        """Say which limits hold and what runs where."""
        limits = "enforced" if not self._gaps else f"partial (engine without {', '.join(self._gaps)})"
        return {"limits": limits, "freezer": True, "pause": self._pause_id[:12], "main": self._main_id[:12]}

    @property
    def _paths(self) -> Paths:
        return Paths.of(self.context)

    def _made(self) -> Specs:
        if self._specs is None:
            raise ProvisionError("the sandbox is not prepared", where=self.context.id)
        return self._specs

    def _open(self) -> Listeners:
        paths = self._paths
        with connect(self._images.engine) as client:
            _remove_all(client, self.context)
            paths.make(self._owners)
            with translate("the engine does not describe itself"):
                info = client.info()
            self._limits = Limits.of(self.context.plan.limits, info)
            self._gaps = limit_gaps(info)
            self._specs = Specs(
                self.context.id,
                self.context.plan,
                self.context.config,
                self._images,
                paths,
                self._owners,
            )
            self._start_pause(client)
            try:
                return self._hand_over(client)
            except BaseException:
                self._close()
                raise

    def _start_pause(self, client: DockerClient) -> None:
        with translate("the pause container cannot be started", where=self.context.id):
            pause = client.containers.create(**self._made().pause())
            self._pause_id = str(pause.id)
            self._leash, _ = hijack(self._images.engine, f"/containers/{pause.id}/attach?stream=1&stdin=1")
            pause.start()

    def _hand_over(self, client: DockerClient) -> Listeners:
        folder = self._paths.handover
        folder.mkdir(mode=0o711, exist_ok=True)
        # For root without a capability: the directory above is the operator's alone (0700), and the
        # helper's process and user are checked when it connects.
        folder.chmod(0o711)
        try:
            with rendezvous(folder / "s", mode=0o666) as meeting:
                helper = self._run(client, "the listeners' helper", self._made().helper(self._pause_id, "s"))
                with meeting.accept(
                    pid=_pid(helper),
                    uid=0,
                    still_running=lambda: _ended(helper),
                    timeout_s=_HELPER_S,
                    what="the listeners' helper",
                ) as channel:
                    listeners = receive_listeners(channel, expect_uid=0)
                    frames.send(channel, {})
                remove(helper)
                return listeners
        finally:
            folder.rmdir()

    def _spawn_gate(self, message: dict[str, Any], listeners: Listeners) -> _StartedGate:
        runtime = self._paths.gate_runtime
        bundle = trust.host_bundle()
        path = runtime / "bootstrap.sock"
        with (
            connect(self._images.engine) as client,
            rendezvous(path, mode=0o660, gid=self._owners.gate[1]) as meeting,
        ):
            for old in find(client, self.context.config.home, self.context.id, "gate"):
                remove(old)
            with translate("the gate's container cannot be started", where=self.context.id):
                gate = client.containers.create(**self._made().gate(str(path), str(bundle or "")))
                output, early = hijack(
                    self._images.engine, f"/containers/{gate.id}/attach?stream=1&stdout=1&stderr=1"
                )
                try:
                    gate.start()
                    gate.reload()
                    pid = _pid(gate)
                    channel = meeting.accept(
                        pid=pid,
                        uid=self._owners.gate[0],
                        still_running=lambda: _ended(gate),
                        timeout_s=_GATE_S,
                        what="the gate",
                    )
                    try:
                        send_bootstrap(channel, message, listeners)
                    except BaseException:
                        channel.close()
                        raise
                except BaseException as error:
                    said = last_words(output, early)
                    output.close()
                    remove(gate)
                    if isinstance(error, ProvisionError) and said:
                        error.why = f"{error.why}; it said: {said}" if error.why else f"it said: {said}"
                    raise
        return _StartedGate(channel, pid, str(gate.id), output, early)

    def _run(self, client: DockerClient, what: str, spec: dict[str, Any]) -> Container:
        with translate(f"{what} cannot be started", where=self.context.id):
            container = client.containers.create(**spec)
            container.start()
            container.reload()
        return container

    def _start(self, ca_pem: str) -> None:
        specs, limits = self._made(), self._limits
        if limits is None:  # pragma: no cover - set together with the specs
            raise ProvisionError("the sandbox is not prepared", where=self.context.id)
        with (
            connect(self._images.engine) as client,
            translate(
                "the sandbox's container cannot be started",
                where=self.context.id,
                hint="the sandbox image must have /bin/sh, and this machine room for it",
            ),
        ):
            for old in find(client, self.context.config.home, self.context.id, "main"):
                remove(old)
            main = client.containers.create(**specs.main(self._pause_id, limits))
            try:
                main.put_archive(
                    "/", overlay(main, ca_pem, self._owners, self.context.plan.workload.working_dir)
                )
                main.start()
                self._make_working_dir(client, main)
            except BaseException:
                remove(main)
                raise
            self._main_id = str(main.id)

    def _make_working_dir(self, client: DockerClient, main: Container) -> None:
        """
        Make a working directory below one of the sandbox's own places (others are in the overlay).

        By the sandbox's user inside: whatever it has laid in the way, nothing outside is touched.
        """
        place = self.context.plan.workload.working_dir
        if not place.startswith(("/workspace/", "/home/sandbox/")):
            return
        user = "{}:{}".format(*self._owners.sandbox)
        made = client.api.exec_create(str(main.id), ["mkdir", "-p", "--", place], user=user, workdir="/")
        said = client.api.exec_start(made["Id"])
        if client.api.exec_inspect(made["Id"]).get("ExitCode"):
            raise ProvisionError(
                "the working directory cannot be made",
                where="spec.execution.workingDir",
                why=said.decode(errors="replace").strip()[:200],
            )

    def _freezer(self, *, freeze: bool) -> None:
        with (
            connect(self._images.engine) as client,
            translate("the sandbox cannot be frozen or thawed", where=self.context.id),
        ):
            main = client.containers.get(self._main_id)
            if freeze and main.status == "running":
                main.pause()
            elif not freeze and main.status == "paused":
                main.unpause()

    def _kill(self, timeout_s: float) -> None:
        with connect(self._images.engine) as client:
            for main in find(client, self.context.config.home, self.context.id, "main"):
                if timeout_s > 0 and main.status == "running":
                    _ask(client, main, timeout_s)
                remove(main)

    def _close(self) -> None:
        if self._leash is not None:
            self._leash.close()
            self._leash = None
        with connect(self._images.engine) as client:
            _remove_all(client, self.context)
        for name in ("kmd.sock", "bootstrap.sock"):
            (self._paths.gate_runtime / name).unlink(missing_ok=True)


def _remove_all(client: DockerClient, context: PodContext) -> None:
    for container in find(client, context.config.home, context.id):
        remove(container)


def _pid(container: Container) -> int:
    return int(container.attrs["State"].get("Pid") or 0)


def _ended(container: Container) -> str:
    """Return how a container ended, empty while it runs."""
    with translate("a container cannot be looked at"):
        container.reload()
    state = container.attrs["State"]
    if state.get("Running"):
        return ""
    return str(state.get("Error") or f"exit code {state.get('ExitCode')}")


def _ask(client: DockerClient, main: Container, timeout_s: float) -> None:
    """Send SIGTERM to everything inside but the first process, and wait until it has gone."""
    with contextlib.suppress(ProvisionError), translate("the workload cannot be asked to end"):
        made = client.api.exec_create(str(main.id), ["/bin/sh", "-c", "kill -TERM -1"], user="0")
        client.api.exec_start(made["Id"])
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline and len(main.top().get("Processes") or ()) > _QUIET:
            time.sleep(0.05)
